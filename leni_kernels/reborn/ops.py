"""Reborn as PyTorch operators: schemas, fakes, autograd, autocast and the choice of backend.

No arithmetic here: the definitions and the folding are in ``reference.py``, the kernels in ``csrc/reborn/`` and
``gpu/``. The folded form is ConvReLU's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common import checks, extension, flops
from ..common.backends import Backend, Operation, with_reference
from ..common.gpu import support
from ..common.kept import Kept
from ..common.layout import is_channels_last
from ..common.norm import Norm
from ..common.operators import define, differentiable, inference_only, once_differentiable
from ..conv_relu import ops as conv_relu_ops
from ..two_branch.layout import empty_like
from ..two_branch.ops import (
    GIVEN,
    SYNCHRONISED,
    check_block,
    check_channels,
    check_folded,
    check_values,
    compress_layer,
    deconv_layer,
    fake_parameter_gradients,
    gradient_of,
    gradients_again,
    how_triton,
    norm_fits,
    only_first_differentiable,
    only_needed,
    operators_of,
    read,
    records_gradients,
    steps_of,
    tensors_fit,
    values_of,
    wants_gradient,
    why_no_layout,
    why_not_on_cpu,
)
from ..two_branch.reference import Layer, folding_dtype
from ..two_branch.statistics import FEW_VALUES, merged_over, summed_over
from . import gpu, reference
from .flops import FORMULAS

# ---- the operators -----------------------------------------------------------------------------------------
# A block is one operator, and its backward another: the deconvolution, which makes z = D ⋆ᵀ min(x, 0), the norm, and
# the tail behind it, [max(x, 0); z] and the folded 1×1 convolution. On the CPU a dense 3×3 deconvolution of few enough
# channels, of a float32 or float16 x and with the batch's statistics, has kernels of its own, and so has one of few
# products; any other is the library's, for a float16 x in float32.
# Statistics are one float64 tensor [2C + 1]: mean and biased variance of z, [C] each, and the count of values a channel
# they come from. Parameters are as their layers hold them.


class Steps(NamedTuple):
    """The operators of one backend."""

    eval: Any
    """(x, D, γ, β, P, c, mean, variance, eps, groups) -> y"""
    batch_statistics: Any
    """(x, D, groups) -> z, statistics"""
    training: Any
    """(x, D, γ, β, P, c, z, mean, variance, eps, groups) -> y, z if none was given, statistics; with a
    mean and a variance but no z in eval mode"""
    training_backward: Any
    """(grad, x, D, γ, β, P, z, statistics, their gradient, eps, groups, trains, needs_x, needs_deconv,
    needs_parameters) -> the gradients of x, D, γ, β, P, c and of the statistics [2C], empty unless needed; given the
    latter, those of x and D alone"""
    running_statistics: Any
    """(statistics, mean, variance, batches, momentum): moves the running ones"""


def _fake_eval(x: Tensor, *rest: Any) -> Tensor:
    return empty_like(x)


def _statistics_like(x: Tensor) -> Tensor:
    return x.new_empty(2 * x.shape[1] + 1, dtype=torch.float64)


def _z_like(x: Tensor) -> Tensor:
    """In training in float64 where a channel has few values."""
    y = empty_like(x)
    return y.to(torch.float64) if values_of(x) <= FEW_VALUES else y


def _fake_batch_statistics(x: Tensor, deconv_weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return _z_like(x), _statistics_like(x)


def _fake_training(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    z, mean = rest[5], rest[6]
    y = empty_like(x)
    if z is not None:
        return y, x.new_empty(0), _statistics_like(x)
    return y, _z_like(x) if mean is None else torch.empty_like(y), _statistics_like(x)


def _fake_training_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    parameters, grad_statistics = rest[:3], rest[5]
    trains, needs_x, needs_deconv, needs_parameters = rest[-4:]
    needed = grad_statistics is None and (trains or needs_parameters)
    return (empty_like(x) if needs_x else x.new_empty(0), gradient_of(deconv_weight, x, needs_deconv),
            *fake_parameter_gradients(x, parameters, 2 * x.shape[1], needed))


def _fake_running_statistics(*arguments: Any) -> None:
    return None


_FAKES = Steps(_fake_eval, _fake_batch_statistics, _fake_training, _fake_training_backward, _fake_running_statistics)


def _save(ctx: Any, inputs: tuple[Any, ...], z: Tensor, statistics: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5], z, statistics)


def _needs(ctx: Any) -> tuple[bool, bool, bool]:
    needs = ctx.needs_input_grad
    return needs[0], needs[1], True in needs[2:]


def _gradients_again(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """Of x, D, γ, β, P and c, in a backward with ``create_graph``."""
    *parameters, _, statistics, needs, eps, groups, trains = rest
    running = (None, None) if trains else statistics[:-1].chunk(2)

    def block(x: Tensor, deconv_weight: Tensor, *rest: Tensor | None) -> Tensor:
        gamma, beta, compress_weight, bias = rest
        norm = Norm(*(known if known is None else known.to(x.dtype) for known in running), gamma, beta, trains, eps=eps)
        return reference.reborn(x, *RebornParameters(deconv_weight, norm, compress_weight, bias, groups).layers())

    return gradients_again(block, (x, *parameters, x.new_zeros(x.shape[1])), needs, grad)


def _training(steps: Steps) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A block with autograd, on a process' own batch or with running statistics: ``steps.training`` without a z.

    Only x, z and vectors of channels are kept for backward.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs, *output[1:])
        ctx.options, ctx.given = (*inputs[9:], inputs[7] is None), inputs[6] is not None
        only_first_differentiable(ctx, output)

    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 11
        if ctx.given:
            raise NotImplementedError(GIVEN)
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            gradients = _gradients_again(grad, *ctx.saved_tensors, needs[:6], *ctx.options)
        else:
            gradients = steps.training_backward(grad, *ctx.saved_tensors, None, *ctx.options, *_needs(ctx))[:-1]
        return only_needed(gradients, needs)

    return differentiable(steps.training, save, backward)


def _define_synchronised(backend: str, steps: Steps) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The same in training, with the statistics of all processes of a group, as LENI's."""
    tensors = ("Tensor x, Tensor deconv_weight, Tensor? norm_weight, Tensor? norm_bias, Tensor compress_weight, ")
    options = "float eps, int groups, str group"

    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, eps, groups, group = inputs
        z, own = steps.batch_statistics(*tensors[:2], groups)
        statistics = merged_over(group, own)
        mean, variance = statistics[:-1].chunk(2)
        return steps.training(*tensors, z, mean, variance, eps, groups)[0], z, statistics

    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, eps, groups, group, needs_x, needs_deconv = inputs
        options = (eps, groups, True)
        gradients = steps.training_backward(*tensors, None, *options, False, False, True)
        of_input = gradients[:2]
        if needs_x or needs_deconv:
            of_input = steps.training_backward(*tensors, summed_over(group, gradients[-1]), *options, needs_x,
                                               needs_deconv, False)[:2]
        return *of_input, *gradients[2:6]

    def fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        return empty_like(x), _z_like(x), _statistics_like(x)

    def fake_backward(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, eps, groups, _, needs_x, needs_deconv = inputs
        needs = (needs_x, needs_deconv, True)
        return _fake_training_backward(*tensors, None, eps, groups, True, *needs)[:6]

    forward_operator = define(f"reborn_synchronised_{backend}({tensors}Tensor? compress_bias, {options}) "
                              "-> (Tensor, Tensor, Tensor)", forward, fake_forward)
    backward_operator = define(
        f"reborn_synchronised_backward_{backend}(Tensor grad, {tensors}Tensor z, Tensor statistics, {options}, "
        f"bool needs_x, bool needs_deconv) -> ({', '.join(['Tensor'] * 6)})", backward, fake_backward)
    run_once = once_differentiable(backward_operator)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs, *output[1:])
        ctx.options = inputs[6:]
        only_first_differentiable(ctx, output)

    def run_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        if torch.is_grad_enabled():
            raise NotImplementedError(SYNCHRONISED)
        gradients = run_once(grad, *ctx.saved_tensors, *ctx.options, *_needs(ctx)[:2])
        return only_needed(gradients, ctx.needs_input_grad)

    return differentiable(forward_operator, save, run_backward)


class Training(NamedTuple):
    """How one backend runs a block."""

    steps: Steps
    alone: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """(x, D, γ, β, P, c, None, mean, variance, eps, groups) -> y, z, statistics"""
    synchronised: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """(x, D, γ, β, P, c, eps, groups, group) -> y, z, statistics"""


def _define_training(backend: str, steps: Steps) -> Training:
    steps = steps._replace(eval=inference_only(steps.eval))
    return Training(steps, _training(steps), _define_synchronised(backend, steps))


# ---- the passes, for whoever wants one alone -----------------------------------------------------------------


class Passes(NamedTuple):
    """What a block is made of, one by one, for z = D ⋆ᵀ min(x, 0); all activations but grad in x's layout, or z's."""

    tail: Any
    """(x, z, weight, bias, mean=None) -> y, for z less its mean"""
    statistics: Any
    """(z) -> mean, variance"""
    weight_gradient: Any
    """(grad, x, z, mean) -> weight's gradient, for [max(x, 0); z] less ``mean``, and bias's"""
    negative_gradient: Any
    """(grad, z, weight, constant, slope) -> z's gradient"""
    input_gradient: Any
    """(grad, x, negative, weight) -> x's gradient, ``negative`` where x < 0"""
    deconvolve: Any
    """(x, D) -> z, mean, variance, for a dense 3×3 D"""
    deconv_gradient: Any
    """(grad, z's gradient, x, D, weight, needs_input, needs_deconv) -> x's and D's gradients"""


def _parameter_of(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=folding_dtype(x.dtype))


def _fake_deconvolve(x: Tensor, deconv_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like(x), *_fake_statistics(x)


def _fake_deconv_gradient(grad: Tensor, grad_z: Tensor, x: Tensor, deconv_weight: Tensor, weight: Tensor,
                          needs_input: bool, needs_deconv: bool) -> tuple[Tensor, Tensor]:
    return (empty_like(x) if needs_input else x.new_empty(0),
            deconv_weight.new_empty(deconv_weight.shape if needs_deconv else 0))


def _fake_tail(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None = None) -> Tensor:
    return empty_like(x)


def _fake_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    return _parameter_of(z, z.shape[1]), _parameter_of(z, z.shape[1])


def _fake_weight_gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return _parameter_of(x, channels, 2 * channels), _parameter_of(x, channels)


def _fake_negative_gradient(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None,
                            slope: Tensor | None) -> Tensor:
    return empty_like(z)


def _fake_input_gradient(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    return empty_like(x)


_PASS_FAKES = Passes(
    _fake_tail, _fake_statistics, _fake_weight_gradient, _fake_negative_gradient,
    _fake_input_gradient, _fake_deconvolve, _fake_deconv_gradient)
if extension.why_missing is None:
    _CPP = _define_training("cpp", steps_of("reborn", "cpp", _FAKES))
    operators_of("reborn", "cpp", _PASS_FAKES, Passes._fields)
    flops.register("cpp", FORMULAS)


@support.operators_when_needed
def _define_triton() -> None:
    global _TRITON
    passes = {  # the library deconvolves
        "tail": gpu.forward.reborn_tail, "statistics": gpu.statistics.reborn_statistics,
        "weight_gradient": gpu.weight_gradient.reborn_weight_gradient,
        "negative_gradient": gpu.input_gradient.reborn_negative_gradient,
        "input_gradient": gpu.input_gradient.reborn_input_gradient}
    for name, launch in passes.items():
        support.define_operator(f"reborn_{name}_triton", launch)
    operators_of("reborn", "triton", _PASS_FAKES, tuple(passes))
    launches = Steps(gpu.forward.reborn_eval, gpu.forward.reborn_batch_statistics, gpu.forward.reborn_training,
                     gpu.backward.reborn_training_backward, gpu.forward.reborn_running_statistics)
    for name, launch in launches._asdict().items():
        support.define_operator(f"reborn_{name}_triton", launch,
                                ("mean", "variance", "batches") if name == "running_statistics" else ())
    steps = steps_of("reborn", "triton", _FAKES)
    _TRITON = _define_training("triton", steps._replace(
        training_backward=with_reference("reborn_training_backward", "triton", steps.training_backward,
                                         reference.reborn_training_backward)))
    flops.register("triton", FORMULAS)


# ---- Reborn ------------------------------------------------------------------------------------------------


class RebornParameters(NamedTuple):
    """The tensors of one Reborn block; without a ``compress_weight`` it returns 2C channels."""

    deconv_weight: Tensor
    negative_norm: Norm
    compress_weight: Tensor | None
    compress_bias: Tensor | None
    groups: int

    def layers(self) -> tuple[Layer, Layer, Layer | None]:
        """The block as the layers of the definition, on feature maps or, of weights for these, on signals."""
        compress = None if self.compress_weight is None else compress_layer(self.compress_weight, self.compress_bias)
        return deconv_layer(self.deconv_weight, groups=self.groups), self.negative_norm, compress


class RebornCall(NamedTuple):
    """One call of Reborn: tensors for the kernels (None if there is an obstacle), and what makes the layers."""

    x: Tensor
    dtype: torch.dtype
    channels_last: bool | None
    parameters: RebornParameters | None
    layers: Callable[[], tuple[Layer, Layer, Layer | None]]
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
            return "the block does not compress, and the kernels fuse what a 1x1 convolution reads"
        size = self.parameters.compress_weight.shape[-1]
        if size != 1:
            return f"the compression is {size}x{size}; kernels exist for 1x1"
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
    kept: Kept | None

    def why_not_dense(self) -> str | None:
        """Why the folded form should not become one convolution of C × C weights a tap."""
        if wants_gradient(*self[:4]):
            return "a gradient is asked for, and its kernels compute none"
        if self.taps.shape[1] < self.x.shape[1]:
            return "the deconvolution has groups, and one dense convolution would multiply more than the layers do"
        if values_of(self.x) < self.x.shape[1]:
            return "x has fewer sites than channels, and making one weight of both would take longer than the layers"
        return None


def _run_reborn_folded(backend: str, call: RebornFoldedCall) -> Tensor:
    x, taps, weight, bias, groups, kept = call

    def make() -> tuple[Tensor, Tensor, list[int], list[int]]:
        dense, offsets, below = reference.reborn_taps(taps, weight, groups)
        return dense, dense.new_zeros(dense.shape[1:]), offsets, below

    dense, threshold, offsets, below = make() if kept is None else kept.get(groups, (taps, weight), make)
    return conv_relu_ops.run_taps(backend, x, dense, threshold, bias, offsets, below)


_REBORN_FOLDED = Operation(
    "reborn_folded",
    Backend("cpp", lambda call: conv_relu_ops.why_not_cpp(call.x) or call.why_not_dense(),
            partial(_run_reborn_folded, "cpp")),
    Backend("triton", lambda call: conv_relu_ops.why_not_triton(call.x) or call.why_not_dense(),
            partial(_run_reborn_folded, "triton"),
            # Of all its taps, which are one more than the deconvolution's.
            lambda call: conv_relu_ops.how_triton(call.x, call.x.shape[1], call.taps[0, 0].numel() + 1)),
    Backend("reference", lambda call: None, lambda call: reference.reborn_folded(*call[:5])),
)


def _why_reborn_not_cpp(call: RebornCall) -> str | None:
    return call.why_not_fused() or why_not_on_cpu(call)


def _why_reborn_not_triton(call: RebornCall) -> str | None:
    return call.why_not_fused() or support.why_not_here(call.x) or why_no_layout(call)


def _run(call: RebornCall, training: Training) -> Tensor:
    x, group = read(call), call.group
    deconv_weight, norm, compress_weight, compress_bias, groups = call.parameters
    tensors = (x, deconv_weight, norm.weight, norm.bias, compress_weight, compress_bias)
    options = (norm.eps, groups)
    if not norm.uses_batch_statistics:
        if not records_gradients():
            return training.steps.eval(*tensors, norm.running_mean, norm.running_var, *options)
        return training.alone(*tensors, None, norm.running_mean, norm.running_var, *options)[0]
    check_values(x, group)
    if group:
        y, _, statistics = training.synchronised(*tensors, *options, group)
    else:
        y, _, statistics = training.alone(*tensors, None, None, None, *options)
    if norm.training:
        training.steps.running_statistics(statistics, *norm.tracked())
    return y


_REBORN = Operation(
    "reborn",
    Backend("cpp", _why_reborn_not_cpp, lambda call: _run(call, _CPP)),
    Backend("triton", _why_reborn_not_triton, lambda call: _run(call, _TRITON), how_triton),
    Backend("reference", lambda call: None, lambda call: reference.reborn(call.x, *call.layers())),
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
               layers: Callable[[], tuple[Layer, Layer, Layer | None]] | None = None, obstacle: str | None = None,
               group: str = "") -> Tensor:
    """:func:`reborn`, with what makes the layers that the definition is to call, or without parameters and why."""
    channels = checks.feature_map("reborn", x)
    if parameters is not None and not (
            type(parameters.groups) is int and parameters.groups > 0 and channels % parameters.groups == 0
            and tensors_fit(x, parameters, channels, channels // parameters.groups)
            and norm_fits(parameters.negative_norm, channels)):
        groups = checks.integer("reborn", "groups", parameters.groups)
        parameters = parameters._replace(groups=groups)
        check_channels("reborn", x, parameters)
        checks.groups("reborn", groups, channels)
        check_block("reborn", x, parameters, channels, deconv_channels=(channels, channels // groups))
        if parameters.compress_weight is not None:
            checks.odd_kernel("reborn", "compress_weight", parameters.compress_weight,
                              (channels, 2 * channels, "m", "m"))
        elif parameters.compress_bias is not None:
            raise ValueError("reborn: compress_bias needs a compress_weight")
    return _REBORN(RebornCall(x, checks.autocast_dtype(x), is_channels_last(x), parameters,
                              parameters.layers if layers is None else layers, obstacle, group))


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
    channels, groups = checks.feature_map(name, x), checks.integer(name, "groups", groups)
    checks.channels_of_weights(name, x, taps, shift)
    checks.groups(name, groups, channels)
    checks.odd_kernel(name, "taps", taps, (channels, channels // groups, "k", "k"))
    checks.shape(name, "shift", shift, (channels,))
    checks.same_device(name, x=x, taps=taps, shift=shift)
    operand = checks.autocast_dtype(x)
    checks.dtype_in(name, (operand, folding_dtype(operand)), taps=taps, shift=shift)
    return _REBORN_FEATURES_FOLDED((x, taps, shift, groups))


def reborn_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
    """Reborn with its norm folded, for inference: ``weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype; contiguous, channels-last, or a slice of either.
        taps: ``[C, C // groups, k, k]``, k odd.
        weight: ``[C, 2C]``; the first C columns act on the positive branch.
        bias: ``[C]``.
        groups: the groups of the transposed convolution.

    Returns and raises as :func:`leni_kernels.functional.leni_folded`.
    """
    return run_reborn_folded(x, taps, weight, bias, groups)


def run_reborn_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, groups: int,
                      kept: Kept | None = None) -> Tensor:
    """:func:`reborn_folded` for a module that keeps the dense weight from one call to the next."""
    channels, groups = checks.feature_map("reborn_folded", x), checks.integer("reborn_folded", "groups", groups)
    checks.channels_of_weights("reborn_folded", x, taps, weight, bias)
    checks.groups("reborn_folded", groups, channels)
    checks.odd_kernel("reborn_folded", "taps", taps, (channels, channels // groups, "k", "k"))
    check_folded("reborn_folded", x, taps, weight, bias)
    dtype = folding_dtype(x.dtype)
    return _REBORN_FOLDED(RebornFoldedCall(x, taps.to(dtype), weight.to(dtype), bias.to(dtype), groups, kept))
