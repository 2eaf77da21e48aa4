"""LENI and Reborn as PyTorch operators: schemas, fakes, autograd, autocast and the choice of backend.

No arithmetic here: the definitions and the folding are in ``reference.py``, the kernels in ``csrc/`` and
``triton_kernels.py``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, extension, triton_support
from ..backends import Backend, Operation
from . import reference, triton_kernels
from .reference import Folded, Layer, Norm

KERNEL_SIZES = (3, 5, 7)
"""The deconvolution sizes that the fused kernels have; the reference takes any odd one."""


# ---- the operators -----------------------------------------------------------------------------------------
# leni_kernels::leni_folded_{cpp,triton}(
#     Tensor x, Tensor taps, Tensor weight, Tensor bias, bool channels_last) -> Tensor
# Parameters are float32 (float64 for a float64 x). ``channels_last`` says which stride of x is 1 and how y is
# laid out.


def _fake(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(x, memory_format=memory_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, taps, weight, _, _ = inputs
    ctx.save_for_backward(x, taps, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *reference.leni_folded_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[:4]), None


def _register(name: str) -> Any:
    torch.library.register_fake(f"leni_kernels::{name}", _fake)
    torch.library.register_autograd(f"leni_kernels::{name}", _backward, setup_context=_save)
    return getattr(torch.ops.leni_kernels, name).default


if extension.why_missing is None:
    _leni_folded_cpp = _register("leni_folded_cpp")
if triton_support.why_missing is None:
    triton_support.define_operator("leni_folded_triton", triton_kernels.leni_folded)
    _leni_folded_triton = _register("leni_folded_triton")


# ---- which backend, and why --------------------------------------------------------------------------------


def _channels_last(x: Tensor) -> bool | None:
    """Whether the kernels read x with channels (True) or columns (False) at stride 1; None if neither is."""
    if x.stride(3) == 1 or x.stride(1) == 1:
        return x.stride(3) != 1
    # The stride of a dimension of size 1 says nothing.
    return False if x.shape[3] == 1 else True if x.shape[1] == 1 else None


def _why_no_kernel(x: Tensor, kernel_size: int) -> str | None:
    if kernel_size not in KERNEL_SIZES:
        return f"the deconvolution is {kernel_size}×{kernel_size}; kernels exist for sizes {KERNEL_SIZES}"
    if _channels_last(x) is None:
        return "x has stride 1 neither along channels nor along columns, and the kernels do not copy"
    return None


def _why_not_cpp(x: Tensor, kernel_size: int) -> str | None:
    if extension.why_missing is not None:
        return extension.why_missing
    if x.device.type != "cpu":
        return f"x is on {x.device.type}"
    if checks.autocast_dtype(x) not in (torch.float32, torch.bfloat16, torch.float64):
        return f"the CPU kernels take float32, bfloat16 and float64, not {checks.autocast_dtype(x)}"
    return _why_no_kernel(x, kernel_size)


def _why_not_triton(x: Tensor, kernel_size: int) -> str | None:
    return triton_support.why_not_here(x) or _why_no_kernel(x, kernel_size)


def _run_cpp(x: Tensor, folded: Folded) -> Tensor:
    x = x.to(checks.autocast_dtype(x))
    return _leni_folded_cpp(x, *folded, _channels_last(x))


def _run_triton(x: Tensor, folded: Folded) -> Tensor:
    x = x.to(checks.autocast_dtype(x))
    return _leni_folded_triton(x, *folded, _channels_last(x))


# ---- LENI in its folded form -------------------------------------------------------------------------------


class FoldedCall(NamedTuple):
    """One call of folded LENI."""

    x: Tensor
    folded: Folded

    @property
    def kernel_size(self) -> int:
        return self.folded.taps.shape[-1]


_LENI_FOLDED = Operation(
    "leni_folded",
    Backend("cpp", lambda call: _why_not_cpp(call.x, call.kernel_size), lambda call: _run_cpp(*call)),
    Backend("triton", lambda call: _why_not_triton(call.x, call.kernel_size),
            lambda call: _run_triton(*call)),
    Backend("reference", lambda call: None, lambda call: reference.leni_folded(call.x, *call.folded)),
)


def leni_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LENI with its norms folded, for inference: ``weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype; contiguous, channels-last, or a slice of either, which the
            kernels read in place.
        taps: ``[C, k, k]``, k odd.
        weight: ``[C, 2C]``; the first C columns act on the positive branch.
        bias: ``[C]``.

    Returns:
        ``[N, C, H, W]`` in x's dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, an even k, or tensors on several devices.
        TypeError: for dtypes that do not fit x's.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    channels = checks.feature_map("leni_folded", x)
    checks.odd_kernel("leni_folded", "taps", taps, (channels, "k", "k"))
    _check_folded("leni_folded", x, taps, weight, bias)
    dtype = reference.folding_dtype(x.dtype)
    return _LENI_FOLDED(FoldedCall(x, Folded(taps.to(dtype), weight.to(dtype), bias.to(dtype))))


def _check_folded(name: str, x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor) -> None:
    """What the folded forms of LENI and Reborn ask of their tensors alike."""
    channels = x.shape[1]
    checks.shape(name, "weight", weight, (channels, 2 * channels))
    checks.shape(name, "bias", bias, (channels,))
    checks.same_device(name, x=x, taps=taps, weight=weight, bias=bias)
    operand = checks.autocast_dtype(x)
    checks.dtype_in(name, (operand, reference.folding_dtype(operand)), taps=taps, weight=weight, bias=bias)


# ---- LENI --------------------------------------------------------------------------------------------------


class LeniParameters(NamedTuple):
    """The tensors of one LENI block, in the order of :func:`reference.fold_leni`."""

    deconv_weight: Tensor
    negative_norm: Norm
    fusion_norm: Norm
    compress_weight: Tensor
    compress_bias: Tensor | None

    def layers(self) -> tuple[Layer, Layer, Layer, Layer]:
        """The block as the four layers of the definition."""
        return (_deconv_layer(self.deconv_weight, groups=self.deconv_weight.shape[0]), self.negative_norm,
                self.fusion_norm, partial(F.conv2d, weight=self.compress_weight, bias=self.compress_bias))


class LeniCall(NamedTuple):
    """One call of LENI: tensors for the kernels (None if there is an obstacle), layers for the definition."""

    x: Tensor
    parameters: LeniParameters | None
    layers: tuple[Layer, Layer, Layer, Layer]
    obstacle: str | None

    @property
    def kernel_size(self) -> int:
        return self.parameters.deconv_weight.shape[-1]

    def why_not_fused(self) -> str | None:
        if self.parameters is None:
            return self.obstacle
        norms = self.parameters.negative_norm, self.parameters.fusion_norm
        if any(norm.uses_batch_statistics for norm in norms):
            return "a batch norm uses batch statistics (training mode), and only inference is fused so far"
        return None

    def folded(self) -> Folded:
        return reference.fold_leni(*self.parameters)


_LENI = Operation(
    "leni",
    Backend("cpp", lambda call: call.why_not_fused() or _why_not_cpp(call.x, call.kernel_size),
            lambda call: _run_cpp(call.x, call.folded())),
    Backend("triton", lambda call: call.why_not_fused() or _why_not_triton(call.x, call.kernel_size),
            lambda call: _run_triton(call.x, call.folded())),
    Backend("reference", lambda call: None, lambda call: reference.leni(call.x, *call.layers)),
)


def leni(x: Tensor, deconv_weight: Tensor, negative_norm: Norm, fusion_norm: Norm, compress_weight: Tensor,
         compress_bias: Tensor | None = None) -> Tensor:
    """LENI (Cai, Peng, Shen 2023, §3.1): ``P · BN2([max(x, 0); BN1(D ⋆ᵀ min(x, 0))]) + c``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype; contiguous, channels-last, or a slice of either.
        deconv_weight: D, ``[C, 1, k, k]``, k odd: a depthwise transposed convolution, stride 1, padding k//2.
        negative_norm: BN1, a :class:`Norm` over C channels.
        fusion_norm: BN2, a :class:`Norm` over 2C channels.
        compress_weight: P, ``[C, 2C, 1, 1]``.
        compress_bias: c, ``[C]``, or None.

    Returns:
        ``[N, C, H, W]`` in x's dtype (autocast's under autocast) and memory format.

    Raises:
        ValueError: for shapes that do not fit, an even k, an empty plane, or tensors on several devices.
        TypeError: for dtypes that do not fit x's.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    parameters = LeniParameters(deconv_weight, negative_norm, fusion_norm, compress_weight, compress_bias)
    return run_leni(x, parameters)


def run_leni(x: Tensor, parameters: LeniParameters | None,
             layers: tuple[Layer, Layer, Layer, Layer] | None = None, obstacle: str | None = None) -> Tensor:
    """:func:`leni`, with the layers that the definition is to call, or without parameters and why."""
    channels = checks.feature_map("leni", x)
    if parameters is not None:
        _check_block("leni", x, parameters, channels, deconv_channels=(channels, 1))
        checks.norm("leni", "fusion_norm", parameters.fusion_norm, 2 * channels)
    return _LENI(LeniCall(x, parameters, layers or parameters.layers(), obstacle))


# ---- Reborn ------------------------------------------------------------------------------------------------


class RebornParameters(NamedTuple):
    """The tensors of one Reborn block."""

    deconv_weight: Tensor
    negative_norm: Norm
    compress_weight: Tensor
    compress_bias: Tensor | None
    groups: int

    def layers(self) -> tuple[Layer, Layer, Layer]:
        """The block as the three layers of the definition."""
        return (_deconv_layer(self.deconv_weight, groups=self.groups), self.negative_norm,
                partial(F.conv2d, weight=self.compress_weight, bias=self.compress_bias))


class RebornCall(NamedTuple):
    """One call of Reborn."""

    x: Tensor
    layers: tuple[Layer, Layer, Layer]


_REBORN = Operation("reborn", Backend("reference", lambda call: None,
                                      lambda call: reference.reborn(call.x, *call.layers)))
_REBORN_FOLDED = Operation("reborn_folded", Backend("reference", lambda call: None,
                                                    lambda call: reference.reborn_folded(*call)))


def reborn(x: Tensor, deconv_weight: Tensor, negative_norm: Norm, compress_weight: Tensor,
           compress_bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """Reborn (Cai, Huang, Peng 2021, eq. 2): ``P · [max(x, 0); BN1(D ⋆ᵀ min(x, 0))] + c``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype.
        deconv_weight: D, ``[C, C // groups, k, k]``, k odd: a transposed convolution, stride 1, padding k//2.
        negative_norm: BN1, a :class:`Norm` over C channels.
        compress_weight: P, ``[C, 2C, 1, 1]``.
        compress_bias: c, ``[C]``, or None.
        groups: the groups of D.

    Returns:
        ``[N, C, H, W]`` in x's dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, an even k, an empty plane, or tensors on several devices.
        TypeError: for dtypes that do not fit x's.
    """
    parameters = RebornParameters(deconv_weight, negative_norm, compress_weight, compress_bias, groups)
    return run_reborn(x, parameters)


def run_reborn(x: Tensor, parameters: RebornParameters | None,
               layers: tuple[Layer, Layer, Layer] | None = None) -> Tensor:
    """:func:`reborn`, with the layers that the definition is to call."""
    channels = checks.feature_map("reborn", x)
    if parameters is not None:
        groups = parameters.groups
        checks.groups("reborn", groups, channels)
        _check_block("reborn", x, parameters, channels, deconv_channels=(channels, channels // groups))
    return _REBORN(RebornCall(x, layers or parameters.layers()))


def reborn_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
    """Reborn with its norm folded, for inference: ``weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype.
        taps: ``[C, C // groups, k, k]``, k odd.
        weight: ``[C, 2C]``; the first C columns act on the positive branch.
        bias: ``[C]``.
        groups: the groups of the transposed convolution.

    Returns and raises as :func:`leni_folded`.
    """
    channels = checks.feature_map("reborn_folded", x)
    checks.groups("reborn_folded", groups, channels)
    checks.odd_kernel("reborn_folded", "taps", taps, (channels, channels // groups, "k", "k"))
    _check_folded("reborn_folded", x, taps, weight, bias)
    return _REBORN_FOLDED((x, taps, weight, bias, groups))


def _deconv_layer(weight: Tensor, groups: int) -> Layer:
    return partial(F.conv_transpose2d, weight=weight, padding=weight.shape[-1] // 2, groups=groups)


def _check_block(name: str, x: Tensor, parameters: LeniParameters | RebornParameters, channels: int,
                 deconv_channels: tuple[int, int]) -> None:
    """What LENI and Reborn ask of their tensors alike."""
    weight, bias = parameters.compress_weight, parameters.compress_bias
    checks.odd_kernel(name, "deconv_weight", parameters.deconv_weight, (*deconv_channels, "k", "k"))
    checks.norm(name, "negative_norm", parameters.negative_norm, channels)
    checks.shape(name, "compress_weight", weight, (channels, 2 * channels, 1, 1))
    tensors = {"x": x, "deconv_weight": parameters.deconv_weight, "compress_weight": weight}
    if bias is not None:
        checks.shape(name, "compress_bias", bias, (channels,))
        tensors["compress_bias"] = bias
    checks.same_device(name, **tensors)
    checks.same_dtype(name, **tensors)
