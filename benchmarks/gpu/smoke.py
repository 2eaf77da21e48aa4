"""Every operator in every layout and dtype against the definition in float64, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from harness import sides
from torch import Tensor, nn

import leni_kernels as lk

from . import judging
from .device import Gpu
from .records import Record


class Operator(NamedTuple):
    """A module of C channels, in training, in eval mode with gradients, or folded, which has none."""

    make: Callable[[int], nn.Module]
    mode: str = "training"
    dimensions: int = 2


def _conv_relu(dimensions: int, outputs: Callable[[int], int] = lambda channels: channels + 1, kernel: int = 3,
               **options: Any) -> Operator:
    modules = {1: lk.ConvReLU1d, 2: lk.ConvReLU2d, 3: lk.ConvReLU3d}

    def make(channels: int) -> nn.Module:
        groups = channels if options.get("groups") == "all" else options.get("groups", 1)
        settings = {"padding": kernel // 2 * options.get("dilation", 1), **options, "groups": groups}
        return modules[dimensions](channels, outputs(channels), kernel, **settings)

    return Operator(make, dimensions=dimensions)


def _same(channels: int) -> int:
    return channels


OPERATORS = {
    "LENI": Operator(lk.LENI2d),
    "LENI folded": Operator(lk.LENI2d, "folded"),
    "ConvReLU2d": _conv_relu(2),
    "Reborn": Operator(lk.Reborn2d),
    "Reborn folded": Operator(lk.Reborn2d, "folded"),
    "AdaReLU": Operator(lk.AdaReLU),
    "FullyParametricReLU": Operator(lk.FullyParametricReLU),
    "CReLU": Operator(lambda channels: lk.CReLU()),
    "ConvReLU1d": _conv_relu(1),
    "ConvReLU3d": _conv_relu(3, _same),
}
"""Judged in every layout and dtype, at three shapes each."""

VARIANTS = {
    "LENI in eval mode": Operator(lk.LENI2d, "eval"),
    "LENI 5×5": Operator(lambda channels: lk.LENI2d(channels, 5)),
    "LENI 7×7": Operator(lambda channels: lk.LENI2d(channels, 7)),
    "Reborn in eval mode": Operator(lk.Reborn2d, "eval"),
    "ConvReLU2d with stride 2": _conv_relu(2, stride=2),
    "ConvReLU2d in two groups": _conv_relu(2, _same, groups=2),
    "ConvReLU2d depthwise": _conv_relu(2, _same, groups="all"),
    "ConvReLU2d 1×1": _conv_relu(2, kernel=1),
    "ConvReLU2d dilated": _conv_relu(2, dilation=2),
    "ConvReLU2d 11×11": _conv_relu(2, kernel=11),
    "AdaReLU with one threshold": Operator(lambda channels: lk.AdaReLU(1)),
}
"""Judged in both layouts, in float32 and bfloat16, at the typical shape."""

LAYOUTS = ("channels_last", "channels_first")
SHAPES = {
    "typical": {1: (4, 64, 200), 2: (4, 64, 28, 28), 3: (2, 16, 4, 14, 14)},
    "tails": {1: (3, 19, 37), 2: (3, 19, 9, 13), 3: (2, 5, 3, 5, 7)},
    "deep": {1: (4, 128, 14), 2: (4, 128, 7, 7), 3: (2, 32, 2, 7, 7)},
}
"""By the number of spatial dimensions: 64 channels; odd sizes everywhere; many channels on a small plane. In three
dimensions there are fewer: 27 taps of 64 channels in float32 are a minute's work for the compiler."""

REHEARSED_SHAPES = {
    "typical": {1: (1, 4, 8), 2: (1, 4, 4, 4), 3: (1, 4, 1, 2, 2)},
    "tails": {1: (1, 3, 5), 2: (1, 3, 3, 3), 3: (1, 3, 2, 1, 3)},
    "deep": {1: (2, 4, 2), 2: (2, 6, 2, 3), 3: (1, 4, 1, 1, 2)},
}


class Case(NamedTuple):
    """One operator at one shape in one layout and dtype."""

    operator: str
    shape: str
    layout: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.operator}, {self.shape}, {self.layout}, {self.dtype}"


def cases(here: Gpu, short: bool) -> list[Case]:
    """All cases, the most important first: half precision, then float32, and float64 last."""
    if short:
        turns = zip(OPERATORS, [*SHAPES] * 4, [*LAYOUTS] * 5, ["float32", "bfloat16", "float64"] * 4, strict=False)
        return [Case(*turn) for turn in turns]
    found = [Case(operator, shape, layout, dtype) for dtype in ("bfloat16", "float32", "float16", "float64")
             for shape in SHAPES for operator in OPERATORS for layout in LAYOUTS]
    variants = [Case(operator, "typical", layout, dtype) for dtype in ("bfloat16", "float32")
                for operator in VARIANTS for layout in LAYOUTS]
    products = [Case(operator, "typical", layout, "tf32") for operator in ("LENI", "Reborn", "ConvReLU2d")
                for layout in LAYOUTS]
    return sorted([*found, *variants, *products], key=lambda case: case.dtype == "float64")


def run(case: Case, here: Gpu) -> Record:
    """Judge one case."""
    block, x = _block(case, here), _input(case, here)
    with judging.precision(case.dtype), judging.uninitialised_is_nan():
        with lk.use_backend("triton"):
            results, grad = _outcome(copy.deepcopy(block), x)
        if grad is None:
            truth = {"y": sides.composed(copy.deepcopy(block).double())(x.double())}
        else:
            truth = _of_definition(copy.deepcopy(block).double(), x.double(), grad.double())
    found, composed = judging.errors(results, truth), None
    if case.dtype in judging.HALVES:
        layers = {"y": sides.composed(block)(x)} if grad is None else _of_definition(block, x, grad)
        composed = judging.errors(layers, truth)
    wrong = judging.failures(case.dtype, found, composed)
    worst = max(found, key=found.get)
    return {"failures": wrong, "worst": worst, "error": judging.as_plain(found)[worst],
            **({"composed_error": judging.as_plain(composed)[worst]} if composed else {})}


def launch(case: Case, here: Gpu) -> None:
    """Launch what the case launches, on other numbers."""
    with judging.precision(case.dtype):
        _outcome(_block(case, here), _input(case, here))


def _operator(case: Case) -> Operator:
    return {**OPERATORS, **VARIANTS}[case.operator]


def _block(case: Case, here: Gpu) -> nn.Module:
    operator = _operator(case)
    block = sides.as_trained(operator.make(_shape(case, here)[1])).train(operator.mode == "training")
    for name, parameter in block.named_parameters():
        if name in ("threshold", "positive_slope", "negative_slope"):
            nn.init.normal_(parameter)
    block = block.to(here.device, here.dtype(case.dtype))
    return lk.fold(block, inplace=True) if operator.mode == "folded" else block


def _shape(case: Case, here: Gpu) -> tuple[int, ...]:
    return here.size(SHAPES, REHEARSED_SHAPES)[case.shape][_operator(case).dimensions]


def _input(case: Case, here: Gpu) -> Tensor:
    x = torch.randn(_shape(case, here), device=here.device, dtype=here.dtype(case.dtype))
    return sides.in_layout(x, case.layout)


def _outcome(block: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """y, all gradients and buffers of a step, and the gradient of y that it took; of a folded block y, and None."""
    parameters = {name: tensor for name, tensor in block.named_parameters() if tensor.requires_grad}
    if not parameters and any(True for _ in block.parameters()):
        with torch.inference_mode():
            return {"y": block(x)}, None
    x = x.detach().requires_grad_()
    y = block(x)
    grad = torch.randn_like(y)
    return _with_gradients(block, x, parameters, y, grad), grad


def _of_definition(block: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """What :func:`_outcome` returns first, from the definition."""
    x = x.detach().requires_grad_()
    with lk.use_backend("reference"):
        return _with_gradients(block, x, dict(block.named_parameters()), judging.definition_of(block)(x), grad)


def _with_gradients(block: nn.Module, x: Tensor, parameters: dict[str, Tensor], y: Tensor,
                    grad: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(y, (x, *parameters.values()), grad)
    running = {name: buffer.clone() for name, buffer in block.named_buffers() if buffer.is_floating_point()}
    return {"y": y.detach(), **dict(zip(("x", *parameters), gradients, strict=True)), **running}
