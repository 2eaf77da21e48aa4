"""LENI and Reborn as PyTorch operators: schemas, fakes, autograd, autocast and the choice of backend.

No arithmetic here: the definitions and the folding are in ``reference.py``, the kernels in ``csrc/``,
``triton_kernels.py`` and ``triton_training.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, extension, triton_support
from ..backends import Backend, Operation
from ..conv_relu import ops as conv_relu_ops
from . import reference, triton_kernels, triton_training
from .batch_norms import (
    BatchNorms,
    NegativeNorm,
    Statistics,
    fold_backward,
    merged_over,
    summed_over,
    through_statistics,
)
from .reference import Folded, Layer, Norm

KERNEL_SIZES = (3, 5, 7)
"""The deconvolution sizes that the fused kernels have; the reference takes any odd one."""


# ---- the operators -----------------------------------------------------------------------------------------
# Of each backend: leni_folded, which is inference; the passes of training, which have no autograd; and leni_training,
# which is made of them. Parameters are float32 (float64 for a float64 x). ``channels_last`` says which stride of x
# is 1 and how y and dx are laid out.


class Kernels(NamedTuple):
    """The operators of one backend."""

    folded: Any
    """(x, taps, weight, bias, channels_last) -> y"""
    statistics: Any
    """(x, taps, channels_last) -> mean, variance"""
    weight_gradient: Any
    """(grad, x, taps, channels_last, mean=None) -> weight's gradient, for features less their mean, and bias's"""
    input_gradient: Any
    """(grad, x, taps, weight, constant, slope, channels_last) -> x's gradient, taps' gradient"""


def _empty_as(x: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _fake_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, channels_last: bool) -> Tensor:
    return _empty_as(x, channels_last)


def _fake_statistics(x: Tensor, taps: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    features = 2 * x.shape[1]
    return taps.new_empty(features), taps.new_empty(features)


def _fake_weight_gradient(
    grad: Tensor, x: Tensor, taps: Tensor, channels_last: bool, mean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return taps.new_empty(channels, 2 * channels), taps.new_empty(channels)


def _fake_input_gradient(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None,
                         slope: Tensor | None, channels_last: bool) -> tuple[Tensor, Tensor]:
    return _empty_as(x, channels_last), taps.new_empty(taps.shape)


_FAKES = Kernels(_fake_folded, _fake_statistics, _fake_weight_gradient, _fake_input_gradient)


def _no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("leni_kernels: double backward through the training kernels is not supported; "
                              "use_backend('reference') supports it")


def _operators(mechanism: str, backend: str, fakes: Kernels | RebornKernels, names: tuple[str, ...]) -> list[Any]:
    """The operators leni_kernels::<mechanism>_<name>_<backend>, with their fakes registered."""
    operators = []
    for name in names:
        qualified = f"leni_kernels::{mechanism}_{name}_{backend}"
        torch.library.register_fake(qualified, getattr(fakes, name))
        if name != "folded":
            torch.library.register_autograd(qualified, _no_double_backward, setup_context=lambda *_, **__: None)
        operators.append(getattr(torch.ops.leni_kernels, f"{mechanism}_{name}_{backend}").default)
    return operators


def _save_folded(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, taps, weight, _, ctx.channels_last = inputs
    ctx.save_for_backward(x, taps, weight)


def _backward_by_reference(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *reference.leni_folded_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[:4]), None


def _backward_by_kernels(kernels: Kernels, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # with create_graph: only the reference can be differentiated again
        return _backward_by_reference(ctx, grad)
    x, taps, weight = ctx.saved_tensors
    gradients: list[Tensor | None] = [None] * 4
    if any(ctx.needs_input_grad[:2]):
        gradients[:2] = kernels.input_gradient(grad, x, taps, weight, None, None, ctx.channels_last)
    if any(ctx.needs_input_grad[2:4]):
        gradients[2:] = kernels.weight_gradient(grad, x, taps, ctx.channels_last)
    return *gradients, None


# ---- training as one operator, made of the passes ----------------------------------------------------------


def _define_training(backend: str, kernels: Kernels) -> Any:
    """Define leni_kernels::leni_training_<backend>: y and the batch's mean, variance and count of values.

    Only x and vectors of channels are kept for backward. With the name of a process ``group`` the statistics, and
    in backward their gradients, are those of all its processes, which is what SyncBatchNorm computes.
    """

    def forward(x: Tensor, taps: Tensor, negative_weight: Tensor, negative_bias: Tensor, fusion_weight: Tensor,
                fusion_bias: Tensor, compress_weight: Tensor, compress_bias: Tensor, negative_eps: float,
                fusion_eps: float, channels_last: bool, group: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norms = BatchNorms(negative_weight, fusion_weight, fusion_bias, compress_weight, compress_bias, negative_eps,
                           fusion_eps)
        statistics = Statistics(*kernels.statistics(x, taps, channels_last), taps.new_full((), _values(x)))
        mean, variance, count = merged_over(group, statistics) if group else statistics
        return kernels.folded(x, taps, *norms.fold(mean, variance), channels_last), mean, variance, count

    def backward(grad: Tensor, x: Tensor, taps: Tensor, negative_weight: Tensor, fusion_weight: Tensor,
                 fusion_bias: Tensor, compress_weight: Tensor, compress_bias: Tensor, mean: Tensor, variance: Tensor,
                 count: Tensor, negative_eps: float, fusion_eps: float, channels_last: bool, group: str,
                 needs_input: bool,
                 ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        norms = BatchNorms(negative_weight, fusion_weight, fusion_bias, compress_weight, compress_bias, negative_eps,
                           fusion_eps)
        g = fold_backward(norms, variance, *kernels.weight_gradient(grad, x, taps, channels_last, mean))
        grad_x, grad_taps = x.new_empty(0), taps.new_empty(0)
        if needs_input:
            grad_mean, grad_variance = summed_over(group, g.mean, g.variance) if group else (g.mean, g.variance)
            constant, slope = through_statistics(mean, count, grad_mean, grad_variance)
            weight = norms.fold(mean, variance)[0]
            grad_x, grad_taps = kernels.input_gradient(grad, x, taps, weight, constant, slope, channels_last)
        return grad_x, grad_taps, *g[:5]

    def fake_forward(x: Tensor, taps: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        channels_last = rest[-2]
        return _empty_as(x, channels_last), *_fake_statistics(x, taps, channels_last), taps.new_empty(())

    def fake_backward(grad: Tensor, x: Tensor, taps: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        parameters, (channels_last, _, needs_input) = rest[:5], rest[-3:]
        inputs = (_empty_as(x, channels_last), torch.empty_like(taps)) if needs_input else (
            x.new_empty(0), taps.new_empty(0))
        return *inputs, *map(torch.empty_like, parameters)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, taps, negative_weight, _, *fusion_and_compress = inputs[:8]
        ctx.save_for_backward(x, taps, negative_weight, *fusion_and_compress, *output[1:])
        ctx.options = inputs[8:]

    def run_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        needs_input = any(ctx.needs_input_grad[:2])
        grad_x, grad_taps, grad_gamma, *others = backward_operator(grad, *ctx.saved_tensors, *ctx.options, needs_input)
        inputs = (grad_x, grad_taps) if needs_input else (None, None)
        # β1 shifts what BN2 centres: its gradient is 0.
        return *inputs, grad_gamma, torch.zeros_like(grad_gamma), *others, None, None, None, None

    forward_operator = torch.library.custom_op(f"leni_kernels::leni_training_{backend}", forward, mutates_args=())
    backward_operator = torch.library.custom_op(f"leni_kernels::leni_training_backward_{backend}", backward,
                                                mutates_args=())
    forward_operator.register_fake(fake_forward)
    backward_operator.register_fake(fake_backward)
    forward_operator.register_autograd(run_backward, setup_context=save)
    backward_operator.register_autograd(_no_double_backward, setup_context=lambda *_, **__: None)
    return forward_operator


if extension.why_missing is None:
    _CPP = Kernels(*_operators("leni", "cpp", _FAKES, Kernels._fields))
    torch.library.register_autograd("leni_kernels::leni_folded_cpp", partial(_backward_by_kernels, _CPP),
                                    setup_context=_save_folded)
    _leni_training_cpp = _define_training("cpp", _CPP)
if triton_support.why_no_operators is None:
    for name, launch in zip(Kernels._fields, (
            triton_kernels.leni_folded, triton_training.leni_statistics, triton_training.leni_weight_gradient,
            triton_training.leni_input_gradient), strict=True):
        triton_support.define_operator(f"leni_{name}_triton", launch)
    _TRITON = Kernels(*_operators("leni", "triton", _FAKES, Kernels._fields))
    torch.library.register_autograd("leni_kernels::leni_folded_triton", partial(_backward_by_kernels, _TRITON),
                                    setup_context=_save_folded)
    _leni_training_triton = _define_training("triton", _TRITON)


# ---- which backend, and why --------------------------------------------------------------------------------


def _values(x: Tensor) -> int:
    """How many values of x a channel has."""
    return x.numel() // x.shape[1]


def _channels_last(x: Tensor) -> bool | None:
    """Whether the kernels read x with channels (True) or columns (False) at stride 1; None if neither is."""
    if x.stride(3) == 1 or x.stride(1) == 1:
        return x.stride(3) != 1
    # The stride of a dimension of size 1 says nothing.
    return False if x.shape[3] == 1 else True if x.shape[1] == 1 else None


def _why_no_size(kernel_size: int) -> str | None:
    if kernel_size not in KERNEL_SIZES:
        return f"the deconvolution is {kernel_size}×{kernel_size}; kernels exist for sizes {KERNEL_SIZES}"
    return None


def _why_no_layout(x: Tensor) -> str | None:
    if _channels_last(x) is None:
        return "x has stride 1 neither along channels nor along columns, and the kernels do not copy"
    return None


def _why_not_on_cpu(x: Tensor) -> str | None:
    if extension.why_missing is not None:
        return extension.why_missing
    if x.device.type != "cpu":
        return f"x is on {x.device.type}"
    if checks.autocast_dtype(x) not in (torch.float32, torch.bfloat16, torch.float64):
        return f"the CPU kernels take float32, bfloat16 and float64, not {checks.autocast_dtype(x)}"
    return _why_no_layout(x)


def _why_not_cpp(x: Tensor, kernel_size: int) -> str | None:
    return _why_not_on_cpu(x) or _why_no_size(kernel_size)


def _why_not_triton(x: Tensor, kernel_size: int) -> str | None:
    return triton_support.why_not_here(x) or _why_no_size(kernel_size) or _why_no_layout(x)


def _run_cpp(x: Tensor, folded: Folded) -> Tensor:
    x = x.to(checks.autocast_dtype(x))
    return _CPP.folded(x, *folded, _channels_last(x))


def _run_triton(x: Tensor, folded: Folded) -> Tensor:
    x = x.to(checks.autocast_dtype(x))
    return _TRITON.folded(x, *folded, _channels_last(x))


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
    group: str
    """The process group whose batches the norms see in training; "" for this process alone."""

    @property
    def kernel_size(self) -> int:
        return self.parameters.deconv_weight.shape[-1]

    @property
    def trains(self) -> bool:
        """Whether the norms take their statistics from the batch."""
        return self.parameters.negative_norm.uses_batch_statistics

    def why_not_fused(self) -> str | None:
        if self.parameters is None:
            return self.obstacle
        if self.trains != self.parameters.fusion_norm.uses_batch_statistics:
            return "one batch norm uses batch statistics and the other running ones"
        if self.trains and self.x.shape[0] == 0 and not self.group:
            return "an empty batch has no statistics"
        return None

    def folded(self) -> Folded:
        return reference.fold_leni(*self.parameters)


def _why_leni_not_cpp(call: LeniCall) -> str | None:
    return call.why_not_fused() or _why_not_cpp(call.x, call.kernel_size)


def _why_leni_not_triton(call: LeniCall) -> str | None:
    return call.why_not_fused() or _why_not_triton(call.x, call.kernel_size)


def _run_leni_cpp(call: LeniCall) -> Tensor:
    return _run_training(call, _leni_training_cpp) if call.trains else _run_cpp(call.x, call.folded())


def _run_leni_triton(call: LeniCall) -> Tensor:
    return _run_training(call, _leni_training_triton) if call.trains else _run_triton(call.x, call.folded())


def _check_values(x: Tensor, group: str) -> None:
    """What batch norm asks of a batch in training."""
    if _values(x) == 1 and not group:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")


def _vector(dtype: torch.dtype, device: torch.device, tensor: Tensor | None, size: int, default: float) -> Tensor:
    return torch.full((size,), default, dtype=dtype, device=device) if tensor is None else tensor.to(dtype)


def _run_training(call: LeniCall, operator: Any) -> Tensor:
    x = call.x.to(checks.autocast_dtype(call.x))
    deconv_weight, negative, fusion, compress_weight, compress_bias = call.parameters
    channels = x.shape[1]
    _check_values(x, call.group)
    dtype = reference.folding_dtype(x.dtype)
    vector = partial(_vector, dtype, x.device)
    norms = BatchNorms(
        vector(negative.weight, channels, 1), vector(fusion.weight, 2 * channels, 1),
        vector(fusion.bias, 2 * channels, 0), compress_weight.to(dtype).flatten(1),
        vector(compress_bias, channels, 0), negative.eps, fusion.eps)
    gamma, *others = norms
    beta = vector(negative.bias, channels, 0)
    taps = deconv_weight.to(dtype).squeeze(1)
    y, *statistics = operator(x, taps, gamma, beta, *others, _channels_last(x), call.group)
    with torch.no_grad():
        of_negative, of_fusion = norms.batch_statistics(beta, Statistics(*statistics))
        negative.update(*of_negative)
        fusion.update(*of_fusion)
    return y


_LENI = Operation(
    "leni",
    Backend("cpp", _why_leni_not_cpp, _run_leni_cpp),
    Backend("triton", _why_leni_not_triton, _run_leni_triton),
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
             layers: tuple[Layer, Layer, Layer, Layer] | None = None, obstacle: str | None = None,
             group: str = "") -> Tensor:
    """:func:`leni`, with the layers that the definition is to call, or without parameters and why."""
    channels = checks.feature_map("leni", x)
    if parameters is not None:
        _check_block("leni", x, parameters, channels, deconv_channels=(channels, 1))
        checks.norm("leni", "fusion_norm", parameters.fusion_norm, 2 * channels)
    return _LENI(LeniCall(x, parameters, layers or parameters.layers(), obstacle, group))


# ---- Reborn: its operators ---------------------------------------------------------------------------------
# The deconvolution makes z; the tail behind it, [max(x, 0); z] and the folded 1×1 convolution, is one operator, and
# each pass of its backward another. A dense 3×3 deconvolution in float32 has kernels of its own; any other is the
# library's.


class RebornKernels(NamedTuple):
    """The operators of one backend, for z = D ⋆ᵀ min(x, 0); all activations but grad in one layout."""

    convolve: Any
    """(x, weight, negative, channels_last) -> the 3×3 convolution of x, or of min(x, 0) where ``negative``"""
    convolve_backward: Any
    """(grad, x, weight, needs_input, channels_last) -> what z's gradient gives min(x, 0), if it is needed, and D"""
    tail: Any
    """(x, z, weight, bias, channels_last) -> y"""
    statistics: Any
    """(z, channels_last) -> mean, variance"""
    weight_gradient: Any
    """(grad, x, z, mean, channels_last) -> weight's gradient, for [max(x, 0); z] less ``mean``, and bias's"""
    negative_gradient: Any
    """(grad, z, weight, constant, slope, channels_last) -> z's gradient"""
    input_gradient: Any
    """(grad, x, negative, weight, channels_last) -> x's gradient, ``negative`` where x < 0"""


def _parameter_of(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=reference.folding_dtype(x.dtype))


def _fake_reborn_convolve(x: Tensor, weight: Tensor, negative: bool, channels_last: bool) -> Tensor:
    return _empty_as(x, channels_last)


def _fake_reborn_convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool,
                                   channels_last: bool) -> tuple[Tensor, Tensor]:
    return _empty_as(grad, channels_last) if needs_input else grad.new_empty(0), weight.new_empty(weight.shape)


def _fake_reborn_tail(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, channels_last: bool) -> Tensor:
    return _empty_as(x, channels_last)


def _fake_reborn_statistics(z: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    return _parameter_of(z, z.shape[1]), _parameter_of(z, z.shape[1])


def _fake_reborn_weight_gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor,
                                 channels_last: bool) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return _parameter_of(x, channels, 2 * channels), _parameter_of(x, channels)


def _fake_reborn_negative_gradient(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None,
                                   slope: Tensor | None, channels_last: bool) -> Tensor:
    return _empty_as(z, channels_last)


def _fake_reborn_input_gradient(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor,
                                channels_last: bool) -> Tensor:
    return _empty_as(x, channels_last)


_REBORN_FAKES = RebornKernels(
    _fake_reborn_convolve, _fake_reborn_convolve_backward, _fake_reborn_tail, _fake_reborn_statistics,
    _fake_reborn_weight_gradient, _fake_reborn_negative_gradient, _fake_reborn_input_gradient)

MOST_CONVOLVED_CHANNELS = 256
"""Beyond them a thread would keep more than 9 MiB of transformed weights."""


class _Deconvolution:
    """z = D ⋆ᵀ min(x, 0) and its gradients, by the backend's kernels or else the library, in the layout of x."""

    def __init__(self, kernels: RebornKernels, x: Tensor, weight: Tensor, groups: int, channels_last: bool,
                 trains: bool) -> None:
        self.kernels, self.weight, self.groups, self.channels_last = kernels, weight, groups, channels_last
        # The kernels spread a NaN over a tile of pixels: no harm where the batch's statistics spread it to all.
        self.fused = (trains and groups == 1 and weight.shape[-1] == 3 and x.dtype == torch.float32
                      and x.shape[1] <= MOST_CONVOLVED_CHANNELS)

    def _of_library(self, tensor: Tensor) -> Tensor:
        # A copy only where sizes of 1 let the library choose the other of two equal layouts.
        return tensor.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.kernels.convolve(x, reference.flipped(self.weight, 1), True, self.channels_last)
        return self._of_library(reference.reborn_deconvolve(x, self.weight, self.groups))

    def backward(self, grad: Tensor, x: Tensor, needs_x: bool, needs_weight: bool) -> tuple[Tensor, Tensor]:
        """What z's gradient gives min(x, 0) and D, each empty unless needed."""
        nothing = x.new_empty(0)
        if self.fused and needs_weight:
            return self.kernels.convolve_backward(grad, x, self.weight, needs_x, self.channels_last)
        if self.fused:
            return self.kernels.convolve(grad, self.weight, False, self.channels_last), nothing
        return (self._of_library(reference.reborn_deconvolve_backward(grad, self.weight, self.groups))
                if needs_x else nothing,
                reference.reborn_deconv_gradient(grad, x, self.weight, self.groups).contiguous()
                if needs_weight else nothing)


def _define_reborn_training(backend: str, kernels: RebornKernels) -> Any:
    """Define leni_kernels::reborn_training_<backend>: y, z, and the norm's mean, variance and count of values.

    Given a mean and a variance, the running ones, the norm uses those and no gradient goes through them. Only x, z
    and vectors of channels are kept for backward. ``group`` is as in :func:`_define_training`.
    """

    def forward(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, compress_weight: Tensor,
                compress_bias: Tensor, mean: Tensor | None, variance: Tensor | None, eps: float, groups: int,
                channels_last: bool, group: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        norm = NegativeNorm(norm_weight, norm_bias, compress_weight, compress_bias, eps)
        z = _Deconvolution(kernels, x, deconv_weight, groups, channels_last, mean is None).forward(x)
        count = norm_weight.new_full((), _values(x))
        if mean is None or variance is None:
            statistics = Statistics(*kernels.statistics(z, channels_last), count)
            mean, variance, count = merged_over(group, statistics) if group else statistics
        else:
            mean, variance = mean.clone(), variance.clone()  # an operator's outputs are no views of its inputs
        return kernels.tail(x, z, *norm.fold(mean, variance), channels_last), z, mean, variance, count

    def backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, norm_weight: Tensor, norm_bias: Tensor,
                 compress_weight: Tensor, compress_bias: Tensor, z: Tensor, mean: Tensor, variance: Tensor,
                 count: Tensor, eps: float, groups: int, channels_last: bool, group: str, trains: bool,
                 needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        needs_x, needs_deconv, needs_parameters = needs
        norm = NegativeNorm(norm_weight, norm_bias, compress_weight, compress_bias, eps)
        grad_x, grad_deconv, *grad_parameters = (x.new_empty(0) for _ in range(6))
        constant = slope = None
        if trains or needs_parameters:
            of_features = torch.cat([torch.zeros_like(mean), mean])
            *grad_parameters, grad_mean, grad_variance = norm.fold_backward(
                variance, *kernels.weight_gradient(grad, x, z, of_features, channels_last))
            if trains and (needs_x or needs_deconv):
                if group:
                    grad_mean, grad_variance = summed_over(group, grad_mean, grad_variance)
                constant, slope = through_statistics(mean, count, grad_mean, grad_variance)
        if needs_x or needs_deconv:
            weight = norm.fold(mean, variance)[0]
            grad_z = kernels.negative_gradient(grad, z, weight, constant, slope, channels_last)
            deconvolution = _Deconvolution(kernels, x, deconv_weight, groups, channels_last, trains)
            negative, grad_deconv = deconvolution.backward(grad_z, x, needs_x, needs_deconv)
            if needs_x:
                grad_x = kernels.input_gradient(grad, x, negative, weight, channels_last)
        return grad_x, grad_deconv, *grad_parameters

    def fake_forward(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        y, z = (_empty_as(x, rest[-2]) for _ in range(2))
        return y, z, *_fake_reborn_statistics(x, rest[-2]), norm_weight.new_empty(())

    def fake_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        parameters, channels_last, trains, (needs_x, needs_deconv, needs_parameters) = rest[:4], rest[-4], *rest[-2:]
        return (_empty_as(x, channels_last) if needs_x else x.new_empty(0),
                deconv_weight.new_empty(deconv_weight.shape) if needs_deconv else x.new_empty(0),
                *(torch.empty_like(parameter) if trains or needs_parameters else x.new_empty(0)
                  for parameter in parameters))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6], *output[1:])
        ctx.options = *inputs[8:], inputs[6] is None

    def run_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
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
    backward_operator.register_autograd(_no_double_backward, setup_context=lambda *_, **__: None)
    return forward_operator


if extension.why_missing is None:
    _reborn_training_cpp = _define_reborn_training("cpp", RebornKernels(
        *_operators("reborn", "cpp", _REBORN_FAKES, RebornKernels._fields)))


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
        return _deconv_layer(self.deconv_weight, groups=self.groups), self.negative_norm, compress


class RebornCall(NamedTuple):
    """One call of Reborn, as :class:`LeniCall`."""

    x: Tensor
    parameters: RebornParameters | None
    layers: tuple[Layer, Layer, Layer | None]
    obstacle: str | None
    group: str

    @property
    def trains(self) -> bool:
        """Whether the norm takes its statistics from the batch."""
        return self.parameters.negative_norm.uses_batch_statistics


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
        if _values(self.x) < self.x.shape[1]:
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
    if call.parameters is None:
        return call.obstacle
    if call.parameters.compress_weight is None:
        return "the block does not compress, and the kernels fuse what a 1×1 convolution reads"
    size = call.parameters.compress_weight.shape[-1]
    if size != 1:
        return f"the compression is {size}×{size}; kernels exist for 1×1"
    if call.trains and call.x.shape[0] == 0 and not call.group:
        return "an empty batch has no statistics"
    return _why_not_on_cpu(call.x)


def _run_reborn_cpp(call: RebornCall) -> Tensor:
    x = call.x.to(checks.autocast_dtype(call.x))
    deconv_weight, norm, compress_weight, compress_bias, groups = call.parameters
    channels = x.shape[1]
    if call.trains:
        _check_values(x, call.group)
    dtype = reference.folding_dtype(x.dtype)
    vector = partial(_vector, dtype, x.device)
    running = (None, None) if call.trains else (norm.running_mean.to(dtype), norm.running_var.to(dtype))
    y, _, *statistics = _reborn_training_cpp(
        x, deconv_weight.to(x.dtype), vector(norm.weight, channels, 1), vector(norm.bias, channels, 0),
        compress_weight.to(dtype).flatten(1), vector(compress_bias, channels, 0), *running, norm.eps, groups,
        _channels_last(x), call.group)
    if call.trains:
        with torch.no_grad():
            norm.update(*statistics)
    return y


_REBORN = Operation(
    "reborn",
    Backend("cpp", _why_reborn_not_cpp, _run_reborn_cpp),
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
        _check_block("reborn", x, parameters, channels, deconv_channels=(channels, channels // groups))
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

    Returns and raises as :func:`leni_folded`.
    """
    channels = checks.feature_map("reborn_folded", x)
    checks.groups("reborn_folded", groups, channels)
    checks.odd_kernel("reborn_folded", "taps", taps, (channels, channels // groups, "k", "k"))
    _check_folded("reborn_folded", x, taps, weight, bias)
    dtype = reference.folding_dtype(x.dtype)
    return _REBORN_FOLDED(RebornFoldedCall(x, taps.to(dtype), weight.to(dtype), bias.to(dtype), groups))


def _deconv_layer(weight: Tensor, groups: int) -> Layer:
    return partial(F.conv_transpose2d, weight=weight, padding=weight.shape[-1] // 2, groups=groups)


def _check_block(name: str, x: Tensor, parameters: LeniParameters | RebornParameters, channels: int,
                 deconv_channels: tuple[int, int]) -> None:
    """What LENI and Reborn ask of their tensors alike."""
    weight, bias = parameters.compress_weight, parameters.compress_bias
    checks.odd_kernel(name, "deconv_weight", parameters.deconv_weight, (*deconv_channels, "k", "k"))
    checks.norm(name, "negative_norm", parameters.negative_norm, channels)
    tensors = {"x": x, "deconv_weight": parameters.deconv_weight, "compress_weight": weight, "compress_bias": bias}
    if name == "leni":
        checks.shape(name, "compress_weight", weight, (channels, 2 * channels, 1, 1))
    elif weight is not None:
        checks.odd_kernel(name, "compress_weight", weight, (channels, 2 * channels, "m", "m"))
    elif bias is not None:
        raise ValueError(f"{name}: compress_bias needs a compress_weight")
    if bias is not None:
        checks.shape(name, "compress_bias", bias, (channels,))
    given = {what: tensor for what, tensor in tensors.items() if tensor is not None}
    checks.same_device(name, **given)
    checks.same_dtype(name, **given)
