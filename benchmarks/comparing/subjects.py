"""What two commits are compared on: modules, in training or in their inference form, by their public names only.

This runs on either commit's package, so nothing that it imports may reach below ``leni_kernels``' public names.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import leni_kernels as lk

LAYOUTS = ("channels_first", "channels_last")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUFFERS = 4
"""Inputs that take turns, so that no call finds its x where the one before left it."""


class Subject(NamedTuple):
    """A module on an input of one shape; ``training`` is its step, otherwise it runs in its inference form."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    training: bool
    layout: str
    dtype: str

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape))
        work = "step" if self.training else "inference"
        return f"{self.name} {work}, {shape}, {self.layout.replace('_', '-')}, {self.dtype}"


class Prepared(NamedTuple):
    """A subject that is ready to be timed."""

    call: Callable[[], Any]
    backend: str
    sizes: list[float]
    """The mean absolute value of every tensor that a call returns: what two commits must agree on."""


def everywhere(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], training: bool,
               layouts: Iterable[str] = LAYOUTS) -> list[Subject]:
    """A subject in every layout and dtype."""
    return [Subject(name, make, shape, training, layout, dtype) for dtype in DTYPES for layout in layouts]


def tiny(name: str, make: Callable[[], nn.Module], channels: int) -> list[Subject]:
    """Calls whose kernels have next to nothing to do: what is left is the time around them."""
    return [Subject(name, make, (1, channels, 4, 4), training, "channels_first", "float32")
            for training in (False, True)]


def prepare(subject: Subject, device: torch.device) -> Prepared:
    """Make a subject's module and inputs, the same ones in every process."""
    torch.manual_seed(0)
    to = {"device": device, "dtype": DTYPES[subject.dtype]}
    module = _like_trained(subject.make()).to(**to).train(subject.training)
    for parameter in module.parameters():
        parameter.data = _in_layout(parameter.data, subject.layout)
    xs = [_in_layout(torch.randn(subject.shape, **to), subject.layout) for _ in range(BUFFERS)]
    if not subject.training:
        module = lk.fold(copy.deepcopy(module))
    backend = ", ".join(sorted({decision.backend for decision in lk.explain(module, xs[0])}))
    run = _step(module, xs) if subject.training else _inference(module, xs)
    torch.manual_seed(0)
    return Prepared(run, backend, [tensor.double().abs().mean().item() for tensor in run()])


def _like_trained(module: nn.Module) -> nn.Module:
    """The module with parameters and statistics such as training leaves."""
    with torch.no_grad():
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias", "threshold", "slope")):
                tensor.normal_(0, 0.3)
    return module


def _in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The tensor, dense with channels or columns innermost, in any dimensions."""
    if layout == "channels_last" and tensor.dim() > 2:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    return tensor.contiguous()


def _inference(module: nn.Module, xs: list[Tensor]) -> Callable[[], list[Tensor]]:
    turns = itertools.cycle(xs)

    def run() -> list[Tensor]:
        with torch.inference_mode():
            return [module(next(turns))]

    return run


def _step(module: nn.Module, xs: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Forward, and backward to x and all parameters."""
    parameters = list(module.parameters())
    shape = module(xs[0])
    pairs = itertools.cycle([(x.requires_grad_(), torch.randn_like(shape)) for x in xs])

    def run() -> list[Tensor]:
        x, grad = next(pairs)
        y = module(x)
        return [y.detach(), *torch.autograd.grad(y, (x, *parameters), grad)]

    return run


def batch(elements: int, channels: int, size: int, dimensions: int = 2) -> tuple[int, ...]:
    """The shape of an input of about so many elements."""
    return (max(1, elements // (channels * size**dimensions)), channels, *[size] * dimensions)


def agree(mine: Sequence[float], others: Sequence[float], dtype: str) -> bool:
    """Whether the sizes of two commits' results are equal but for rounding.

    What is next to nothing beside the others, as the gradient of a shift that a norm undoes, is rounding itself.
    """
    tolerance, least = (1e-3 if dtype == "float32" else 3e-2), 1e-3 * max(*mine, *others)
    return len(mine) == len(others) and all(abs(a - b) <= tolerance * max(a, b, least)
                                            for a, b in zip(mine, others, strict=True))
