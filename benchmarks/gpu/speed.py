"""How fast the kernels are beside what they replace, and how much of the GPU's bandwidth and product rate they use.

Sides alternate on inputs that take turns and together exceed the cache several times; medians count; a result that is
not the definition's gets no time. What is so short that launches are all of it is also replayed from a CUDA graph.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from cases.conv_relu import shared as conv_relu
from cases.conv_relu.training import peer_step
from harness import maps, sides, timing
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import leni_kernels as lk
from leni_kernels.leni import reference
from leni_kernels.leni.modules import FoldedLENI2d

from . import judging
from .device import Gpu
from .records import Record

SECONDS, ROUNDS, WARM_UP = 0.25, (5, 40), 2
BYTES = 192 * 2**20
"""Of one input: four times a large cache."""

SMALL_BYTES = 2 * 2**20
"""Of an input that is small: its kernels take less than their launches."""

INPUTS = 3
"""How many inputs take turns."""

JUDGED = 2
"""Images whose results are judged at inference, where each is computed by itself."""

SHAPES = ((64, 56), (64, 112), (32, 112), (16, 112), (128, 28), (256, 14))
"""(C, H) of the papers' layers."""

LAYERS = (conv_relu.LAYERS[4], conv_relu.LAYERS[0], conv_relu.LAYERS[3], conv_relu.LAYERS[1])
"""ResNet's 64 → 64, DenseNet's 128 → 32, VGG's 256 → 256, and a 1×1."""


class Case(NamedTuple):
    """One measurement; ``work`` is that of the bars, ``what`` the layer or activation."""

    work: str
    what: str
    channels: int
    size: int
    layout: str
    dtype: str
    kind: str = "large"
    """"large", "small", which is replayed from a graph too, or "compiled", beside ``torch.compile``."""

    def __str__(self) -> str:
        return (f"{self.work} {self.what} {self.channels}×{self.size}² {self.layout} {self.dtype} "
                f"{self.kind}".replace("  ", " "))


def cases(here: Gpu, short: bool) -> list[Case]:
    """All cases, the most important first."""
    last, first = "channels_last", "channels_first"
    ceilings = Case("ceilings", "", 8192, 1, last, "bfloat16")
    if short:
        return [
            ceilings, Case("leni_inference", "", 16, 112, last, "bfloat16", "compiled"),
            Case("leni_training", "", 16, 112, last, "bfloat16", "small"),
            *_of_layers(LAYERS[:1], last, "bfloat16")[:1], Case("pointwise", "AdaReLU step", 64, 56, first, "bfloat16")]

    def blocks(layout: str, dtype: str, kind: str = "large") -> list[Case]:
        return [Case(work, "", *shape, layout, dtype, kind) for work in ("leni_inference", "leni_training")
                for shape in (SHAPES[:1] if kind == "small" else SHAPES)]

    reborn = [Case("reborn_training", "", *shape, last, "bfloat16") for shape in SHAPES[:1] + SHAPES[4:5]]
    pointwise = [Case("pointwise", f"{name} {work}", 64, 56, layout, "bfloat16") for layout in (last, first)
                 for name in ("AdaReLU", "FullyParametricReLU", "CReLU") for work in ("forward", "step")]
    small = [*blocks(last, "bfloat16", "small"), *_of_layers(LAYERS[:1], last, "bfloat16", "small"),
             Case("pointwise", "AdaReLU step", 64, 56, last, "bfloat16", "small"),
             Case("reborn_training", "", 64, 56, last, "bfloat16", "small")]
    compiled = [Case("leni_inference", "", *shape, last, "bfloat16", "compiled") for shape in SHAPES]
    compiled.insert(1, Case("leni_training", "", 64, 56, last, "bfloat16", "compiled"))
    found = [ceilings, *blocks(last, "bfloat16"), *_of_layers(LAYERS, last, "bfloat16"), *small, *compiled,
            *pointwise, *reborn, *blocks(first, "bfloat16"), *_of_layers(LAYERS, first, "bfloat16"),
            *blocks(last, "float16"), *blocks(last, "float32"), *_of_layers(LAYERS, last, "float32"),
            *blocks(first, "float16"), *blocks(first, "float32")]
    # A rehearsal has shapes of its own, one for all.
    return list({case[:2] + case[4:]: case for case in found}.values()) if here.rehearses else found


def _of_layers(layers: tuple[conv_relu.Layer, ...], layout: str, dtype: str, kind: str = "large") -> list[Case]:
    return [Case(work, str(layer), layer.channels, layer.size, layout, dtype, kind)
            for work in ("conv_relu_inference", "conv_relu_training") for layer in layers]


# ---- one case ----------------------------------------------------------------------------------------------

Function = Callable[[Any], Any]


class Work(NamedTuple):
    """What a case compares: functions of one input, among them "ours"."""

    inputs: list[Any]
    functions: dict[str, Function]
    truth: Callable[[Any], judging.Tensors]
    """What ours should be, in float64."""
    layers: Callable[[Any], judging.Tensors]
    """The same made of PyTorch's layers in the case's dtype."""
    bytes: int
    """The fewest that a call moves."""
    flops: float
    """Of the products in a call."""


def run(case: Case, here: Gpu) -> Record:
    """Check and time one case."""
    if case.work == "ceilings":
        return _ceilings(here)
    with lk.use_backend("triton"):
        work = work_of(case, here)
        first = work.inputs[0]
        with judging.untuned():
            truth = work.truth(first)
            found = judging.errors(_judged(work.functions["ours"](first)), truth)
            wrong = judging.failures(case.dtype, found, judging.errors(work.layers(first), truth))
        del truth
        timed = {name: function for name, function in work.functions.items() if name != "ours" or not wrong}
        medians = _times(timed, work.inputs, here)
        if case.kind == "small":
            medians |= _replayed(timed, work.inputs, here)
    return {
        "failures": wrong, "errors": judging.as_plain(found),
        "batch": tree_leaves(first)[0].shape[0], "milliseconds": {name: 1e3 * time for name, time in medians.items()},
        "ratios": ratios(medians), "bytes": work.bytes, "flops": work.flops,
    }


def launch(case: Case, here: Gpu) -> None:
    """Launch what the case launches."""
    if case.work != "ceilings":
        work = work_of(case, here)
        work.functions["ours"](work.inputs[0])


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """The peers against ours, and ours against what it stands for, by the names that the bars look for."""
    if "ours" not in medians:
        return {}
    peers = {name: medians[name] / medians["ours"] for name in ("eager", "flipped", "compiled") if name in medians}
    found = {f"{name}/ours": ratio for name, ratio in peers.items()}
    if peers:
        found["best/ours"] = min(peers.values())
    found |= {f"ours/{name}": medians["ours"] / medians[name] for name in ("relu", "relu_conv") if name in medians}
    return found | {f"ours/{name}, replayed": medians["ours, replayed"] / medians[f"{name}, replayed"]
                    for name in ("relu", "relu_conv") if f"{name}, replayed" in medians}


def _judged(result: Any) -> dict[str, Tensor]:
    return {"y": result[:JUDGED]} if isinstance(result, Tensor) else result


def _times(functions: Mapping[str, Function], inputs: list[Any], here: Gpu) -> dict[str, float]:
    turns = itertools.cycle(inputs)
    timed = {name: maps.on(function, turns) for name, function in functions.items()}
    samples = timing.alternate(timed, here.timer(), *here.size((SECONDS, ROUNDS, WARM_UP), (0.0, (1, 1), 0)))
    return {name: timing.summary(values)["median"] for name, values in samples.items()}


def _replayed(functions: Mapping[str, Function], inputs: list[Any], here: Gpu) -> dict[str, float]:
    """The times of CUDA graphs of the functions."""
    replays = {}
    for name, function in functions.items():
        graphs = itertools.cycle([here.graph(partial(function, each))[0] for each in inputs])
        replays[f"{name}, replayed"] = lambda _, graphs=graphs: next(graphs)()
    return _times(replays, inputs, here)


def _ceilings(here: Gpu) -> Record:
    """What the GPU itself can do: the bandwidth of a copy, and the rate of a product in bfloat16."""
    dtype, count, side = here.dtype("bfloat16"), here.size(2**29, 2**12), here.size(8192, 64)
    x = torch.randn(count, device=here.device, dtype=dtype)
    a, b = torch.randn(2, side, side, device=here.device, dtype=dtype)
    copied, product = torch.empty_like(x), torch.empty_like(a)
    sides_of_it = {"copy": lambda _: copied.copy_(x), "product": lambda _: torch.mm(a, b, out=product)}
    medians = _times(sides_of_it, [None], here)
    return {"bytes_per_second": 2 * x.nbytes / medians["copy"],
            "flops_per_second": 2 * side**3 / medians["product"]}


# ---- what the cases compare --------------------------------------------------------------------------------


def work_of(case: Case, here: Gpu) -> Work:
    """What a case compares, on inputs of its size."""
    return _WORKS[case.work](case, here)


def _activations(case: Case, here: Gpu, channels: int, size: int, dimensions: int = 2) -> list[Tensor]:
    """Random inputs of so many channels and such a size; as many images as make the case's own activation large."""
    dtype = here.dtype(case.dtype)
    images = (SMALL_BYTES if case.kind == "small" else BYTES) // (case.channels * case.size**2 * dtype.itemsize)
    shape = here.size((max(1, images), channels, *[size] * dimensions), (JUDGED, channels, *(3, 4)[-dimensions:]))
    return [sides.in_layout(torch.randn(shape, device=here.device, dtype=dtype), case.layout)
            for _ in range(here.size(INPUTS, 1))]


def _pairs(xs: list[Tensor], grads: list[Tensor]) -> list[sides.Pair]:
    return [(x.requires_grad_(), grad) for x, grad in zip(xs, grads, strict=True)]


def _copier(x: Tensor) -> Function:
    target = torch.empty_like(x)
    return lambda inputs: target.copy_(tree_leaves(inputs)[0].detach())


def _relu_step(pair: sides.Pair) -> Any:
    return torch.autograd.grad(pair[0].relu(), pair[0], pair[1])


def _inference(inputs: list[Tensor], functions: dict[str, Function], truth: Function, layers: Function, bytes: int,
               flops: float) -> Work:
    """The work of functions without gradients, of which the first images are judged."""
    without = torch.inference_mode()
    return Work(inputs, {name: without(function) for name, function in functions.items()},
                lambda x: _judged(without(truth)(x[:JUDGED].double())), lambda x: _judged(without(layers)(x[:JUDGED])),
                bytes, flops)


def _leni_inference(case: Case, here: Gpu) -> Work:
    inputs = _activations(case, here, case.channels, case.size)
    block = _block(sides.random_leni(case.channels), case, here)
    folded = reference.fold_leni(*block.parameters_for_kernels())
    parameters = [tensor.detach().to(inputs[0].dtype) for tensor in (folded.taps, folded.weight, folded.bias)]
    functions = {"ours": FoldedLENI2d(folded), "relu": torch.relu, "copy": _copier(inputs[0])}
    if case.kind == "compiled":
        compiled = here.compile(reference.leni_folded)
        functions["compiled"] = lambda x: compiled(x, *parameters)
    else:
        functions |= {"eager": sides.composed(block), "by hand": lambda x: reference.leni_folded(x, *parameters)}
    return _inference(inputs, functions, lambda x: judging.definition_of(copy.deepcopy(block).double())(x),
                      judging.definition_of(block), 2 * inputs[0].nbytes, _flops_of_product(inputs[0]))


def _leni_training(case: Case, here: Gpu) -> Work:
    block = _block(sides.random_leni(case.channels), case, here)
    definition = judging.definition_of(block)
    peer, forward = ("compiled", here.compile(definition)) if case.kind == "compiled" else ("flipped", definition)
    functions = {peer: sides.composed(sides.step(block, forward)), "relu": _relu_step}
    return _training_of_block(case, here, block, functions, passes=8)


def _reborn_training(case: Case, here: Gpu) -> Work:
    block = _block(sides.as_trained(lk.Reborn2d(case.channels)), case, here)
    functions = {"flipped": sides.composed(sides.step(block, judging.definition_of(block)))}
    return _training_of_block(case, here, block, functions, passes=13)


def _training_of_block(case: Case, here: Gpu, block: nn.Module, functions: dict[str, Function], passes: int) -> Work:
    xs, grads = (_activations(case, here, case.channels, case.size) for _ in range(2))
    block.train()
    functions = {"ours": sides.step(block), **functions, "copy": _copier(xs[0])}
    if case.kind == "large":
        functions["eager"] = sides.composed(sides.step(block))
    flops = 3 * (_flops_of_product(xs[0]) + 18.0 * xs[0].numel() * case.channels * isinstance(block, lk.Reborn2d))
    return Work(_pairs(xs, grads), functions, partial(judging.truth_of_step, block),
                lambda pair: judging.step_of_definition(copy.deepcopy(block))(pair), passes * xs[0].nbytes, flops)


def _block(block: nn.Module, case: Case, here: Gpu) -> nn.Module:
    return block.to(here.device, here.dtype(case.dtype))


def _flops_of_product(x: Tensor) -> float:
    """Of the bare product [pixels × 2C] · [2C × C]."""
    return 4.0 * x.numel() * x.shape[1]


def _conv_relu(case: Case, here: Gpu) -> Work:
    layer = next(layer for layer in conv_relu.LAYERS if str(layer) == case.what)
    of_layer = conv_relu.Case(layer, case.layout, str(here.dtype(case.dtype)).removeprefix("torch."))
    module = of_layer.module(here.device)
    outer = (layer.size + 2 * layer.padding - layer.kernel) // layer.stride + 1
    xs = _activations(case, here, layer.channels, layer.size, layer.dimensions)
    grads = _activations(case, here, layer.outputs, outer, layer.dimensions)
    flops = 2.0 * grads[0].numel() * layer.channels * layer.kernel**layer.dimensions
    x, y = xs[0].nbytes, grads[0].nbytes
    if case.work == "conv_relu_inference":
        functions = {"ours": module, "relu_conv": conv_relu.peer(of_layer, module)}
        return _inference(xs, functions, lambda x: sides.composed(copy.deepcopy(module).double())(x),
                          sides.composed(module), x + y, flops)
    functions = {"ours": sides.step(module), "relu_conv": peer_step(of_layer, module)}
    return Work(_pairs(xs, grads), functions, partial(judging.truth_of_step, module),
                judging.step_of_definition(module), 4 * x + 3 * y, 3 * flops)


_ACTIVATIONS = {"AdaReLU": lk.AdaReLU, "FullyParametricReLU": lk.FullyParametricReLU,
                "CReLU": lambda channels: lk.CReLU()}


def _pointwise(case: Case, here: Gpu) -> Work:
    name, work = case.what.split()
    module = _block(_ACTIVATIONS[name](case.channels), case, here)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    widened = 2 if name == "CReLU" else 1
    xs = _activations(case, here, case.channels, case.size)
    if work == "forward":
        return _inference(xs, {"ours": module, "relu": torch.relu, "copy": _copier(xs[0])},
                          lambda x: sides.composed(copy.deepcopy(module).double())(x), sides.composed(module),
                          (1 + widened) * xs[0].nbytes, 0.0)
    grads = _activations(case, here, widened * case.channels, case.size)
    functions = {"ours": sides.step(module), "copy": _copier(xs[0]),
                 "relu": lambda pair: _relu_step((pair[0], pair[1][:, :case.channels]) if widened > 1 else pair)}
    return Work(_pairs(xs, grads), functions, partial(judging.truth_of_step, module),
                judging.step_of_definition(module), (3 + 2 * widened) * xs[0].nbytes, 0.0)


_WORKS = {
    "leni_inference": _leni_inference, "leni_training": _leni_training, "reborn_training": _reborn_training,
    "conv_relu_inference": _conv_relu, "conv_relu_training": _conv_relu, "pointwise": _pointwise,
}
