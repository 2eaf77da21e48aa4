"""Reborn as PyTorch operators: schemas, fakes, autograd, autocast and the choice of backend.

No arithmetic here: the definitions and the folding are in ``reference.py``, the kernels in ``csrc/`` and
``triton_tail.py``. The folded form is ConvReLU's kernel; what Reborn shares with LENI is in ``ops.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, extension, triton_support
from ..backends import Backend, Operation, with_reference
from ..conv_relu import ops as conv_relu_ops
from . import reference, triton_tail
from .batch_norms import NegativeNorm, Statistics, merged_over, summed_over, through_statistics
from .ops import (
    check_block,
    check_folded,
    check_values,
    deconv_layer,
    empty_as,
    is_channels_last,
    laid_out,
    no_double_backward,
    only_first_differentiable,
    operators_of,
    precise,
    rounded_weight,
    values_of,
    vector_of,
    why_no_layout,
    why_not_on_cpu,
)
from .reference import Layer, Norm

# ---- the operators -----------------------------------------------------------------------------------------
# The deconvolution makes z; the tail behind it, [max(x, 0); z] and the folded 1×1 convolution, is one operator, and
# each pass of its backward another. On the CPU a dense 3×3 deconvolution of few enough channels, in float32 and with
# the batch's statistics, has kernels of its own; any other is the library's.


class RebornKernels(NamedTuple):
    """The operators of one backend, for z = D ⋆ᵀ min(x, 0); all activations but grad in one layout."""

    tail: Any
    """(x, z, weight, bias, channels_last, mean=None) -> y, for z less its mean"""
    statistics: Any
    """(z, channels_last) -> mean, variance"""
    weight_gradient: Any
    """(grad, x, z, mean, channels_last) -> weight's gradient, for [max(x, 0); z] less ``mean``, and bias's"""
    negative_gradient: Any
    """(grad, z, weight, constant, slope, channels_last) -> z's gradient"""
    input_gradient: Any
    """(grad, x, negative, weight, channels_last) -> x's gradient, ``negative`` where x < 0"""
    deconvolve: Any = None
    """(x, D, channels_last) -> z, mean, variance, for a dense 3×3 D"""
    deconv_gradient: Any = None
    """(grad, z's gradient, x, D, weight, needs_input, needs_deconv, channels_last) -> x's and D's gradients"""


_TAIL = tuple(name for name in RebornKernels._fields if name not in RebornKernels._field_defaults)
"""What every backend has; without the others the library deconvolves."""


def _parameter_of(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=reference.folding_dtype(x.dtype))


def _fake_reborn_deconvolve(x: Tensor, deconv_weight: Tensor, channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    return empty_as(x, channels_last), *_fake_reborn_statistics(x, channels_last)


def _fake_reborn_deconv_gradient(grad: Tensor, grad_z: Tensor, x: Tensor, deconv_weight: Tensor, weight: Tensor,
                                 needs_input: bool, needs_deconv: bool, channels_last: bool) -> tuple[Tensor, Tensor]:
    return (empty_as(x, channels_last) if needs_input else x.new_empty(0),
            deconv_weight.new_empty(deconv_weight.shape if needs_deconv else 0))


def _fake_reborn_tail(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, channels_last: bool,
                      mean: Tensor | None = None) -> Tensor:
    return empty_as(x, channels_last)


def _fake_reborn_statistics(z: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    return _parameter_of(z, z.shape[1]), _parameter_of(z, z.shape[1])


def _fake_reborn_weight_gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor,
                                 channels_last: bool) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return _parameter_of(x, channels, 2 * channels), _parameter_of(x, channels)


def _fake_reborn_negative_gradient(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None,
                                   slope: Tensor | None, channels_last: bool) -> Tensor:
    return empty_as(z, channels_last)


def _fake_reborn_input_gradient(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor,
                                channels_last: bool) -> Tensor:
    return empty_as(x, channels_last)


_REBORN_FAKES = RebornKernels(
    _fake_reborn_tail, _fake_reborn_statistics, _fake_reborn_weight_gradient, _fake_reborn_negative_gradient,
    _fake_reborn_input_gradient, _fake_reborn_deconvolve, _fake_reborn_deconv_gradient)


def _weight_gradient_by_reference(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor,
                                  channels_last: bool) -> tuple[Tensor, Tensor]:
    return reference.reborn_weight_gradient(grad, x, z, mean)


def _negative_gradient_by_reference(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None,
                                    slope: Tensor | None, channels_last: bool) -> Tensor:
    return laid_out(reference.reborn_negative_gradient(grad, z, weight, constant, slope), channels_last)


def _input_gradient_by_reference(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor,
                                 channels_last: bool) -> Tensor:
    return laid_out(reference.reborn_input_gradient(grad, x, negative, weight), channels_last)


_PASSES_BY_REFERENCE = {"weight_gradient": _weight_gradient_by_reference,
                        "negative_gradient": _negative_gradient_by_reference,
                        "input_gradient": _input_gradient_by_reference}

MOST_CONVOLVED_CHANNELS = 256
"""Beyond them a thread would keep more than 9 MiB of transformed weights."""


class _Deconvolution:
    """z = D ⋆ᵀ min(x, 0) and the last pass of backward, by the backend's kernels or else the library, in x's layout."""

    def __init__(self, kernels: RebornKernels, x: Tensor, weight: Tensor, groups: int, channels_last: bool,
                 trains: bool) -> None:
        self.kernels, self.weight, self.groups, self.channels_last = kernels, weight, groups, channels_last
        # The kernels spread a NaN over a tile of pixels: no harm where the batch's statistics spread it to all.
        self.fused = (kernels.deconvolve is not None and trains and groups == 1 and weight.shape[-1] == 3
                      and x.dtype == torch.float32 and x.shape[1] <= MOST_CONVOLVED_CHANNELS)

    def _of_library(self, tensor: Tensor) -> Tensor:
        # A copy only where sizes of 1 let the library choose the other of two equal layouts.
        return tensor.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """z, and its mean and variance where they come with it."""
        if self.fused:
            return self.kernels.deconvolve(x, self.weight, self.channels_last)
        return self._of_library(reference.reborn_deconvolve(x, self.weight, self.groups)),

    def backward(self, grad: Tensor, grad_z: Tensor, x: Tensor, weight: Tensor, needs_x: bool,
                 needs_deconv: bool) -> tuple[Tensor, Tensor]:
        """The gradients of x, through both branches of the tail with this ``weight``, and D; empty unless needed."""
        if self.fused:
            return self.kernels.deconv_gradient(grad, grad_z, x, self.weight, weight, needs_x, needs_deconv,
                                                self.channels_last)
        grad_x = grad_deconv = x.new_empty(0)
        if needs_x:
            negative = self._of_library(reference.reborn_deconvolve_backward(grad_z, self.weight, self.groups))
            grad_x = self.kernels.input_gradient(grad, x, negative, weight, self.channels_last)
        if needs_deconv:
            grad_deconv = reference.reborn_deconv_gradient(grad_z, x, self.weight, self.groups).contiguous()
        return grad_x, grad_deconv


def _define_reborn_training(backend: str, kernels: RebornKernels) -> Any:
    """Define leni_kernels::reborn_training_<backend>: y, z, and the norm's mean, variance and count of values.

    Given a mean and a variance, the running ones, the norm uses those and no gradient goes through them. Only x, z
    and vectors of channels are kept for backward. ``group`` is as in LENI's training.
    """

    def forward(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, compress_weight: Tensor,
                compress_bias: Tensor, mean: Tensor | None, variance: Tensor | None, eps: float, groups: int,
                channels_last: bool, group: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        norm = NegativeNorm(norm_weight, norm_bias, compress_weight, compress_bias, eps)
        a, = precise(x, channels_last) if mean is None else (x,)
        dtype = reference.folding_dtype(a.dtype)
        z, *of_z = _Deconvolution(kernels, a, deconv_weight.to(a.dtype), groups, channels_last, mean is None).forward(a)
        if mean is None or variance is None:
            statistics = Statistics.of(z, *(of_z or kernels.statistics(z, channels_last)))
            mean, variance, count = merged_over(group, statistics) if group else statistics
        else:
            # An operator's outputs are no views of its inputs.
            mean, variance, count = Statistics.of(z, mean.clone(), variance.clone())
        y = kernels.tail(a, z, *norm.fold(variance, dtype), channels_last, mean.to(dtype))
        return y.to(x.dtype), z.to(x.dtype), mean, variance, count

    def backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, norm_weight: Tensor, norm_bias: Tensor,
                 compress_weight: Tensor, compress_bias: Tensor, z: Tensor, mean: Tensor, variance: Tensor,
                 count: Tensor, eps: float, groups: int, channels_last: bool, group: str, trains: bool,
                 needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        needs_x, needs_deconv, needs_parameters = needs
        norm = NegativeNorm(norm_weight, norm_bias, compress_weight, compress_bias, eps)
        grad_x, grad_deconv, *grad_parameters = (x.new_empty(0) for _ in range(6))
        a, grad = precise(x, channels_last, grad) if trains else (x, grad)
        dtype = reference.folding_dtype(a.dtype)
        deconvolution = _Deconvolution(kernels, a, deconv_weight.to(a.dtype), groups, channels_last, trains)
        if a.dtype != x.dtype:
            z = deconvolution.forward(a)[0]
        weight = norm.fold(variance, dtype)[0]
        through = None, None
        if trains or needs_parameters:
            of_features = torch.cat([torch.zeros_like(mean), mean]).to(dtype)
            *grad_parameters, grad_mean, grad_variance = norm.fold_backward(
                variance, *kernels.weight_gradient(grad, a, z, of_features, channels_last),
                rounded_weight(backend, weight, a))
            if trains and (needs_x or needs_deconv):
                if group:
                    grad_mean, grad_variance = summed_over(group, grad_mean, grad_variance)
                through = through_statistics(mean, count, grad_mean, grad_variance, dtype)
        if needs_x or needs_deconv:
            grad_z = kernels.negative_gradient(grad, z, weight, *through, channels_last)
            grad_x, grad_deconv = deconvolution.backward(grad, grad_z, a, weight, needs_x, needs_deconv)
        return grad_x.to(x.dtype), grad_deconv.to(deconv_weight.dtype), *grad_parameters

    def fake_forward(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        y, z = (empty_as(x, rest[-2]) for _ in range(2))
        mean, variance = (norm_weight.new_empty(x.shape[1], dtype=torch.float64) for _ in range(2))
        return y, z, mean, variance, mean.new_empty(())

    def fake_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        parameters, channels_last, trains, (needs_x, needs_deconv, needs_parameters) = rest[:4], rest[-4], *rest[-2:]
        return (empty_as(x, channels_last) if needs_x else x.new_empty(0),
                deconv_weight.new_empty(deconv_weight.shape) if needs_deconv else x.new_empty(0),
                *(torch.empty_like(parameter) if trains or needs_parameters else x.new_empty(0)
                  for parameter in parameters))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6], *output[1:])
        ctx.options = *inputs[8:], inputs[6] is None
        only_first_differentiable(ctx, output)

    def run_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        needs_x, needs_deconv, *needs_parameters = ctx.needs_input_grad[:6]
        needs = [needs_x, needs_deconv, any(needs_parameters)]
        gradients = backward_operator(grad, *ctx.saved_tensors, *ctx.options, needs)
        asked = zip(gradients, ctx.needs_input_grad[:6], strict=True)
        return *(gradient if needed else None for gradient, needed in asked), *[None] * 6

    forward_operator = torch.library.custom_op(f"leni_kernels::reborn_training_{backend}", forward, mutates_args=())
    backward_operator = torch.library.custom_op(f"leni_kernels::reborn_training_backward_{backend}", backward,
                                                mutates_args=())
    forward_operator.register_fake(fake_forward)
    backward_operator.register_fake(fake_backward)
    forward_operator.register_autograd(run_backward, setup_context=save)
    backward_operator.register_autograd(no_double_backward, setup_context=lambda *_, **__: None)
    return forward_operator


if extension.why_missing is None:
    _reborn_training_cpp = _define_reborn_training("cpp", RebornKernels(
        *operators_of("reborn", "cpp", _REBORN_FAKES, RebornKernels._fields)))


@triton_support.operators_when_needed
def _define_triton() -> None:
    global _reborn_training_triton
    for name in _TAIL:
        triton_support.define_operator(f"reborn_{name}_triton", getattr(triton_tail, f"reborn_{name}"))
    kernels = RebornKernels(*operators_of("reborn", "triton", _REBORN_FAKES, _TAIL))
    _reborn_training_triton = _define_reborn_training("triton", kernels._replace(
        **{name: with_reference(f"reborn_{name}", "triton", getattr(kernels, name), by_reference)
           for name, by_reference in _PASSES_BY_REFERENCE.items()}))


# ---- Reborn ------------------------------------------------------------------------------------------------


class RebornParameters(NamedTuple):
    """The tensors of one Reborn block; without a ``compress_weight`` it returns 2C channels."""

    deconv_weight: Tensor
    negative_norm: Norm
    compress_weight: Tensor | None
    compress_bias: Tensor | None
    groups: int

    def layers(self) -> tuple[Layer, Layer, Layer | None]:
        """The block as the layers of the definition."""
        compress = None if self.compress_weight is None else partial(
            F.conv2d, weight=self.compress_weight, bias=self.compress_bias, padding=self.compress_weight.shape[-1] // 2)
        return deconv_layer(self.deconv_weight, groups=self.groups), self.negative_norm, compress


class RebornCall(NamedTuple):
    """One call of Reborn, as :class:`ops.LeniCall`."""

    x: Tensor
    parameters: RebornParameters | None
    layers: tuple[Layer, Layer, Layer | None]
    obstacle: str | None
    group: str

    @property
    def trains(self) -> bool:
        """Whether the norm takes its statistics from the batch."""
        return self.parameters.negative_norm.uses_batch_statistics

    def why_not_fused(self) -> str | None:
        if self.parameters is None:
            return self.obstacle
        if self.parameters.compress_weight is None:
            return "the block does not compress, and the kernels fuse what a 1×1 convolution reads"
        size = self.parameters.compress_weight.shape[-1]
        if size != 1:
            return f"the compression is {size}×{size}; kernels exist for 1×1"
        if self.trains and self.x.shape[0] == 0 and not self.group:
            return "an empty batch has no statistics"
        return None


class RebornFoldedCall(NamedTuple):
    """One call of folded Reborn, in the order of :func:`reference.reborn_folded`."""

    x: Tensor
    taps: Tensor
    weight: Tensor
    bias: Tensor
    groups: int

    def why_not_dense(self) -> str | None:
        """Why the folded form should not become one convolution of C × C weights a tap."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self[:4]):
            return "a gradient is asked for, and its kernels compute none"
        if self.taps.shape[1] < self.x.shape[1]:
            return "the deconvolution has groups, and one dense convolution would multiply more than the layers do"
        if values_of(self.x) < self.x.shape[1]:
            return "x has fewer sites than channels, and making one weight of both would take longer than the layers"
        return None


def _run_reborn_folded(backend: str, call: RebornFoldedCall) -> Tensor:
    weight, offsets, below = reference.reborn_taps(call.taps, call.weight, call.groups)
    threshold = weight.new_zeros(weight.shape[1:])
    return conv_relu_ops.run_taps(backend, call.x, weight, threshold, call.bias, offsets, below)


_REBORN_FOLDED = Operation(
    "reborn_folded",
    Backend("cpp", lambda call: conv_relu_ops.why_not_cpp(call.x) or call.why_not_dense(),
            partial(_run_reborn_folded, "cpp")),
    Backend("triton", lambda call: conv_relu_ops.why_not_triton(call.x) or call.why_not_dense(),
            partial(_run_reborn_folded, "triton")),
    Backend("reference", lambda call: None, lambda call: reference.reborn_folded(*call)),
)


def _why_reborn_not_cpp(call: RebornCall) -> str | None:
    return call.why_not_fused() or why_not_on_cpu(call.x)


def _why_reborn_not_triton(call: RebornCall) -> str | None:
    return call.why_not_fused() or triton_support.why_not_here(call.x) or why_no_layout(call.x)


def _run_reborn_cpp(call: RebornCall) -> Tensor:
    return _run_training(call, _reborn_training_cpp)


def _run_reborn_triton(call: RebornCall) -> Tensor:
    return _run_training(call, _reborn_training_triton)


def _run_training(call: RebornCall, operator: Any) -> Tensor:
    channels_last = is_channels_last(call.x)
    x = checks.in_autocast_dtype(call.x, channels_last)
    deconv_weight, norm, compress_weight, compress_bias, groups = call.parameters
    channels = x.shape[1]
    if call.trains:
        check_values(x, call.group)
    dtype = reference.folding_dtype(x.dtype)
    vector = partial(vector_of, dtype, x.device)
    running = (None, None) if call.trains else (norm.running_mean.to(dtype), norm.running_var.to(dtype))
    y, _, *statistics = operator(
        x, deconv_weight.to(x.dtype), vector(norm.weight, channels, 1), vector(norm.bias, channels, 0),
        compress_weight.to(dtype).flatten(1), vector(compress_bias, channels, 0), *running, norm.eps, groups,
        channels_last, call.group)
    if call.trains:
        with torch.no_grad():
            norm.update(*statistics)
    return y


_REBORN = Operation(
    "reborn",
    Backend("cpp", _why_reborn_not_cpp, _run_reborn_cpp),
    Backend("triton", _why_reborn_not_triton, _run_reborn_triton),
    Backend("reference", lambda call: None, lambda call: reference.reborn(call.x, *call.layers)),
)
_REBORN_FEATURES_FOLDED = Operation("reborn_features_folded", Backend(
    "reference", lambda call: None, lambda call: reference.reborn_features_folded(*call)))


def reborn(x: Tensor, deconv_weight: Tensor, negative_norm: Norm, compress_weight: Tensor | None = None,
           compress_bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """Reborn (Cai, Huang, Peng 2021, eq. 2): ``P · [max(x, 0); BN1(D ⋆ᵀ min(x, 0))] + c``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype; contiguous, channels-last, or a slice of either.
        deconv_weight: D, ``[C, C // groups, k, k]``, k odd: a transposed convolution, stride 1, padding k//2.
        negative_norm: BN1, a :class:`Norm` over C channels.
        compress_weight: P, ``[C, 2C, m, m]``, m odd: 1, or the 3 of one of the paper's variants, with padding m//2;
            or None for no compression.
        compress_bias: c, ``[C]``, or None.
        groups: the groups of D; C makes it depthwise.

    Returns:
        ``[N, C, H, W]`` in x's dtype (autocast's under autocast) and memory format; without compression
        ``[N, 2C, H, W]``, the positive branch and then the negative one.

    Raises:
        ValueError: for shapes that do not fit, an even k or m, an empty plane, a bias without a compression, or
            tensors on several devices.
        TypeError: for dtypes that do not fit x's.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    parameters = RebornParameters(deconv_weight, negative_norm, compress_weight, compress_bias, groups)
    return run_reborn(x, parameters)


def run_reborn(x: Tensor, parameters: RebornParameters | None,
               layers: tuple[Layer, Layer, Layer | None] | None = None, obstacle: str | None = None,
               group: str = "") -> Tensor:
    """:func:`reborn`, with the layers that the definition is to call, or without parameters and why."""
    channels = checks.feature_map("reborn", x)
    if parameters is not None:
        groups = parameters.groups
        checks.groups("reborn", groups, channels)
        check_block("reborn", x, parameters, channels, deconv_channels=(channels, channels // groups))
        if parameters.compress_weight is not None:
            checks.odd_kernel("reborn", "compress_weight", parameters.compress_weight,
                              (channels, 2 * channels, "m", "m"))
        elif parameters.compress_bias is not None:
            raise ValueError("reborn: compress_bias needs a compress_weight")
    return _REBORN(RebornCall(x, parameters, layers or parameters.layers(), obstacle, group))


def reborn_features_folded(x: Tensor, taps: Tensor, shift: Tensor, groups: int = 1) -> Tensor:
    """Reborn without compression, its norm folded, for inference: ``[max(x, 0); taps ⋆ᵀ min(x, 0) + shift]``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype.
        taps: ``[C, C // groups, k, k]``, k odd.
        shift: ``[C]``.
        groups: the groups of the transposed convolution.

    Returns:
        ``[N, 2C, H, W]`` in x's dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, an even k, or tensors on several devices.
        TypeError: for dtypes that do not fit x's.
    """
    name = "reborn_features_folded"
    channels = checks.feature_map(name, x)
    checks.groups(name, groups, channels)
    checks.odd_kernel(name, "taps", taps, (channels, channels // groups, "k", "k"))
    checks.shape(name, "shift", shift, (channels,))
    checks.same_device(name, x=x, taps=taps, shift=shift)
    operand = checks.autocast_dtype(x)
    checks.dtype_in(name, (operand, reference.folding_dtype(operand)), taps=taps, shift=shift)
    return _REBORN_FEATURES_FOLDED((x, taps, shift, groups))


def reborn_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
    """Reborn with its norm folded, for inference: ``weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype; contiguous, channels-last, or a slice of either.
        taps: ``[C, C // groups, k, k]``, k odd.
        weight: ``[C, 2C]``; the first C columns act on the positive branch.
        bias: ``[C]``.
        groups: the groups of the transposed convolution.

    Returns and raises as :func:`ops.leni_folded`.
    """
    channels = checks.feature_map("reborn_folded", x)
    checks.groups("reborn_folded", groups, channels)
    checks.odd_kernel("reborn_folded", "taps", taps, (channels, channels // groups, "k", "k"))
    check_folded("reborn_folded", x, taps, weight, bias)
    dtype = reference.folding_dtype(x.dtype)
    return _REBORN_FOLDED(RebornFoldedCall(x, taps.to(dtype), weight.to(dtype), bias.to(dtype), groups))
