"""How far a result may be from the definition in float64: by ``‖result − truth‖ / ‖truth‖``, dtype by dtype."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from harness import sides
from torch import Tensor, nn

import leni_kernels as lk
from leni_kernels.leni import reference
from leni_kernels.reborn import reference as reborn_reference

HALVES = ("bfloat16", "float16")
BOUNDS = {"float64": 1e-11, "float32": 2e-5, "tf32": 2e-3, "bfloat16": 2**-7, "float16": 2**-10}
"""Those of the tests: of a step in ``tests/leni/test_triton_training.py``, of TF32 in ``tests/leni/test_triton.py``, of
half precision in ``tests/pointwise/test_parity.py``. As there, what PyTorch's layers are off by may count too."""

Tensors = Mapping[str, Tensor]


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Inside, products and convolutions of float32 are TF32 if ``dtype`` says so."""
    _allow_tf32(dtype == "tf32")
    try:
        yield
    finally:
        _allow_tf32(False)


def _allow_tf32(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def uninitialised_is_nan() -> Iterator[None]:
    """Inside, ``torch.empty`` is filled with NaN: an element that no kernel wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def error(result: Tensor, truth: Tensor, scale: float = 0.0) -> float:
    """``‖result − truth‖ / max(‖truth‖, scale)``; infinite for a wrong shape or a NaN."""
    if result.shape != truth.shape:
        return math.inf
    distance = (result.to(truth.dtype) - truth).norm().item()
    size = max(truth.norm().item(), scale)
    return math.inf if math.isnan(distance) else distance / size if size else distance


def errors(results: Tensors, truth: Tensors) -> dict[str, float]:
    """The error of each tensor."""
    # BN2 undoes BN1's shift and all but its scale: their true gradients are 0, or nearly.
    scales = {f"bn_negative.{name}": truth[f"bn_fusion.{name}"].norm().item() for name in ("weight", "bias")
              if f"bn_fusion.{name}" in truth}
    return {name: error(results[name], truth[name], scales.get(name, 0.0)) for name in truth}


def failures(dtype: str, found: Mapping[str, float], composed: Mapping[str, float] | None = None) -> list[str]:
    """The tensors that are too far off, worst first, in words.

    Each may be off by the dtype's bound, and by twice what it is in ``composed``, the errors of PyTorch's layers.
    """
    allowed = {name: max(BOUNDS.get(dtype, 0.0), 2 * composed[name] + 1e-6 if composed else 0.0) for name in found}
    wrong = sorted((name for name in found if not found[name] <= allowed[name] or found[name] == math.inf),
                   key=lambda name: -found[name] / allowed[name])
    return [f"{name}: error {found[name]:.2g}, allowed {allowed[name]:.2g}" for name in wrong]


# ---- the definition, where PyTorch runs it fast ------------------------------------------------------------


def definition_of(block: nn.Module) -> Callable[[Tensor], Tensor]:
    """A block composed of PyTorch's layers, its transposed convolution as the equal one with flipped taps.

    For that one PyTorch has fast kernels in every dtype. Anything but a LENI or Reborn block runs on the reference.
    """
    if not isinstance(block, (lk.LENI2d, lk.Reborn2d)):
        return sides.composed(block)

    def deconv(x: Tensor) -> Tensor:
        weight = reborn_reference.flipped(block.deconv.weight, block.deconv.groups)
        return F.conv2d(x, weight, padding=block.deconv.padding, groups=block.deconv.groups)

    if isinstance(block, lk.LENI2d):
        return lambda x: reference.leni(x, deconv, block.bn_negative, block.bn_fusion, block.compress)
    return lambda x: reborn_reference.reborn(x, deconv, block.bn_negative, block.compress)


def step_of_definition(block: nn.Module) -> sides.Step:
    """The training step of :func:`definition_of`."""
    return sides.composed(sides.step(block, definition_of(block)))


def truth_of_step(block: nn.Module, pair: sides.Pair) -> dict[str, Tensor]:
    """y and all gradients of a training step, in float64."""
    x, grad = pair
    double = step_of_definition(copy.deepcopy(block).double())
    return double((x.detach().double().requires_grad_(), grad.double()))


@contextmanager
def untuned() -> Iterator[None]:
    """Inside, the library takes its first choice for a convolution: what is run once is not worth trials."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def as_plain(errors: Mapping[str, float]) -> dict[str, Any]:
    """Errors as JSON has them."""
    return {name: value if math.isfinite(value) else str(value) for name, value in errors.items()}
