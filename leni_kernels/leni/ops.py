"""LENI as PyTorch operators: schemas, fakes, autograd, autocast and the choice of backend.

No arithmetic here: the definitions and the folding are in ``reference.py``, the kernels in ``csrc/leni/`` and ``gpu/``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common import checks, extension, flops
from ..common.backends import Backend, Operation, with_reference
from ..common.gpu import support
from ..common.kept import Kept
from ..common.layout import is_channels_last, reads_channels_last
from ..common.norm import Norm
from ..common.operators import define, differentiable, once_differentiable, without_gradients
from ..two_branch.layout import empty_like, laid_out
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
    folded_fits,
    gradient_of,
    gradients_again,
    how_triton,
    norm_fits,
    on_one_device,
    only_first_differentiable,
    only_needed,
    operators_of,
    read,
    steps_of,
    tensors_fit,
    wants_gradient,
    why_no_layout,
    why_not_on_cpu,
)
from ..two_branch.reference import Layer, centred_bias, folding_dtype
from ..two_branch.statistics import merged_over, summed_over
from . import gpu, reference, separable
from .flops import FORMULAS
from .reference import Folded

KERNEL_SIZES = (3, 5, 7)
"""The deconvolution sizes that the fused kernels have; the reference takes any odd one."""

LEAST_SEPARABLE, LEAST_SITES = 2 ** 15, 8
"""The values of x from which, and those of a channel for each channel, the CPU's kernels train a separable block."""


# ---- the operators -----------------------------------------------------------------------------------------
# Of each backend: leni_folded, which is inference; the passes of training, which have no autograd; and leni_training,
# which is made of them. Parameters are float32 (float64 for a float64 x). Which stride of x is 1, channels' or
# columns', x itself says at each call, and y and dx are laid out as x is.


class Kernels(NamedTuple):
    """The operators of one backend."""

    folded: Any
    """(x, taps, weight, bias, mean=None) -> y, for features less their mean"""
    statistics: Any
    """(x, taps) -> mean, variance"""
    weight_gradient: Any
    """(grad, x, taps, mean=None) -> weight's gradient, for features less their mean, and bias's"""
    input_gradient: Any
    """(grad, x, taps, weight, constant, slope, matrix=None, centre=None) -> x's gradient, taps' gradient; with a
    matrix, matrix·(z − centre) stands in z's place beside the slope"""
    covariance: Any
    """(x, taps, centre) -> the mean of (z − centre)·(z − centre)ᵀ"""


def _fake_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None = None) -> Tensor:
    return empty_like(x)


def _fake_laid_out(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None) -> Tensor:
    return empty_like(x)


def _fake_statistics(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    features = 2 * x.shape[1]
    return taps.new_empty(features), taps.new_empty(features)


def _fake_weight_gradient(
    grad: Tensor, x: Tensor, taps: Tensor, mean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return taps.new_empty(channels, 2 * channels), taps.new_empty(channels)


def _fake_input_gradient(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None,
                         slope: Tensor | None, matrix: Tensor | None = None,
                         centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return empty_like(x), taps.new_empty(taps.shape)


def _fake_covariance(x: Tensor, taps: Tensor, centre: Tensor) -> Tensor:
    channels = x.shape[1]
    return taps.new_empty(channels, channels)


_FAKES = Kernels(_fake_folded, _fake_statistics, _fake_weight_gradient, _fake_input_gradient, _fake_covariance)


_NOTHING_ADDED = (None,) * 4
"""To a's gradient, by what goes through statistics."""


def _save_folded(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, taps, weight, _, mean = inputs
    ctx.save_for_backward(x, taps, weight, mean)


def _backward_by_reference(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *reference.leni_folded_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[:4]), None


def _backward_by_kernels(kernels: Kernels, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # with create_graph: only the reference can be differentiated again
        return _backward_by_reference(ctx, grad)
    x, taps, weight, mean = ctx.saved_tensors
    gradients: list[Tensor | None] = [None] * 4
    if any(ctx.needs_input_grad[:2]):
        gradients[:2] = kernels.input_gradient(grad, x, taps, weight, *_NOTHING_ADDED)
    if any(ctx.needs_input_grad[2:4]):
        gradients[2:] = kernels.weight_gradient(grad, x, taps, mean)
    return *gradients, None


def _with_autograd(kernels: Kernels) -> Kernels:
    return kernels._replace(folded=differentiable(kernels.folded, _save_folded, partial(_backward_by_kernels, kernels)))


def _weight_gradient_by_reference(grad: Tensor, x: Tensor, taps: Tensor,
                                  mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return reference.leni_weight_gradient(grad, x, taps, mean)


def _input_gradient_by_reference(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None,
                                 slope: Tensor | None, matrix: Tensor | None = None,
                                 centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    grad_x, grad_taps = reference.leni_input_gradient(grad, x, taps, weight, constant, slope, matrix, centre)
    return laid_out(grad_x, reads_channels_last("leni_input_gradient", x)), grad_taps


# ---- training: a block is one operator, and its backward another --------------------------------------------
# Statistics are one float64 tensor [4C + 1]: mean and biased variance, [2C] each, of a = [max(x, 0); D ⋆ᵀ min(x, 0)],
# and the count of values a channel they come from. Parameters are as their layers hold them.


class Steps(NamedTuple):
    """The operators of one backend for whole blocks."""

    eval: Any
    """(x, D, BN1's mean, variance, γ1, β1, BN2's mean, variance, γ2, β2, P, c, both eps) -> y"""
    batch_statistics: Any
    """(x, D) -> statistics"""
    training: Any
    """(x, D, γ1, β1, γ2, β2, P, c, statistics, both eps) -> y, the statistics if none were given"""
    training_backward: Any
    """(grad, x, D, γ1, β1, γ2, β2, P, statistics, their gradient, both eps, needs_input) -> the
    gradients of x and D, empty unless needed, of γ1, β1, γ2, β2, P, c, and of the statistics [4C]; given the latter,
    only those of x and D"""
    running_statistics: Any
    """(statistics, γ1, β1, BN1's mean, variance, batches, momentum, BN2's, BN1's eps): moves the running ones"""


def _fake_eval(x: Tensor, *rest: Any) -> Tensor:
    return empty_like(x)


def _fake_batch_statistics(x: Tensor, deconv_weight: Tensor) -> Tensor:
    return x.new_empty(4 * x.shape[1] + 1, dtype=torch.float64)


def _fake_training(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    statistics = rest[-3]
    size = 4 * x.shape[1] + 1 if statistics is None else 0
    return empty_like(x), x.new_empty(size, dtype=torch.float64)


def _fake_training_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, _, grad_statistics, _, _, needs_input = rest
    needs_parameters = grad_statistics is None
    return (empty_like(x) if needs_input else x.new_empty(0), gradient_of(deconv_weight, x, needs_input),
            *fake_parameter_gradients(x, parameters, 4 * x.shape[1], needs_parameters))


def _fake_running_statistics(*arguments: Any) -> None:
    return None


RUNNING = ("negative_mean", "negative_variance", "negative_batches", "fusion_mean", "fusion_variance",
           "fusion_batches")
"""What ``running_statistics`` changes."""
_STEP_FAKES = Steps(_fake_eval, _fake_batch_statistics, _fake_training, _fake_training_backward,
                    _fake_running_statistics)


def _save_training(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    only_first_differentiable(ctx, output)


def _with_running_statistics(tensors: Sequence[Tensor | None], eps: tuple[float, float]) -> LeniParameters:
    """Of an operator's arguments behind x: D, BN1's mean, variance, γ1, β1, BN2's, P, c, and W if there is one."""
    return LeniParameters(tensors[0], Norm(*tensors[1:5], eps=eps[0]), Norm(*tensors[5:9], eps=eps[1]), *tensors[9:])


def _evaluation(operator: Any, kernels: Kernels) -> Callable[..., Tensor]:
    """A block with running statistics, with autograd, which keeps what it is given and folds it again."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:-2])
        ctx.eps = inputs[-2:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        needs, eps = ctx.needs_input_grad[:-2], ctx.eps
        if torch.is_grad_enabled():
            def block(x: Tensor, *tensors: Tensor | None) -> Tensor:
                return reference.leni(x, *_with_running_statistics(tensors, eps).layers())

            return *gradients_again(block, (x, *tensors), needs, grad), None, None
        with torch.enable_grad():
            leaves = [tensor if tensor is None else tensor.detach().requires_grad_(need)
                      for tensor, need in zip(tensors, needs[1:], strict=True)]
            folded = reference.fold_leni(*_with_running_statistics(leaves, eps), centred=rounds_products(x))
            taps, weight, bias, mean = _centred(x, folded)
        grad_x, grad_taps = kernels.input_gradient(grad, x, taps.detach(), weight.detach(), *_NOTHING_ADDED)
        if True not in needs[1:]:
            return grad_x, *[None] * (len(needs) + 1)
        of_folded = zip((taps, weight, bias), (grad_taps, *kernels.weight_gradient(grad, x, taps.detach(), mean)),
                        strict=True)
        folded, of_folded = zip(*((tensor, gradient) for tensor, gradient in of_folded if tensor.requires_grad),
                                strict=True)
        found = iter(torch.autograd.grad(folded, [leaf for leaf, need in zip(leaves, needs[1:], strict=True) if need],
                                         of_folded))
        return grad_x, *(next(found) if need else None for need in needs[1:]), None, None

    return differentiable(operator, save, backward)


def _gradients_again(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """Of x, D, W if there is one, γ1, β1, γ2, β2, P and c, in a backward with ``create_graph``."""
    *parameters, needs, negative_eps, fusion_eps = rest

    def block(x: Tensor, deconv_weight: Tensor, *rest: Tensor | None) -> Tensor:
        *pointwise, gamma1, beta1, gamma2, beta2, compress_weight, bias = rest
        norms = (Norm(None, None, gamma1, beta1, True, eps=negative_eps),
                 Norm(None, None, gamma2, beta2, True, eps=fusion_eps))
        return reference.leni(x, *LeniParameters(deconv_weight, *norms, compress_weight, bias, *pointwise).layers())

    return gradients_again(block, (x, *parameters, x.new_zeros(x.shape[1])), needs, grad)


def _training(steps: Steps) -> Callable[..., tuple[Tensor, Tensor]]:
    """What trains a process' own batch, with autograd: ``steps.training`` without statistics."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save_training(ctx, inputs, output)
        ctx.options, ctx.given = inputs[9:], inputs[8] is not None

    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 11
        if ctx.given:
            raise NotImplementedError(GIVEN)
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            gradients = _gradients_again(grad, *ctx.saved_tensors[:-1], needs[:8], *ctx.options[:2])
        else:
            gradients = steps.training_backward(grad, *ctx.saved_tensors, None, *ctx.options, needs[0] or needs[1])[:-1]
        return only_needed(gradients, needs)

    return differentiable(steps.training, save, backward)


def _define_synchronised(backend: str, steps: Steps) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same with the statistics, and in backward their gradients, of all processes of a group, by its name.

    It is what SyncBatchNorm computes. Only x and vectors of channels are kept for backward.
    """
    tensors = ("Tensor x, Tensor deconv_weight, Tensor? negative_weight, Tensor? negative_bias, Tensor? fusion_weight, "
               "Tensor? fusion_bias, Tensor compress_weight, ")
    options = "float negative_eps, float fusion_eps, str group"

    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, negative_eps, fusion_eps, group = inputs
        statistics = merged_over(group, steps.batch_statistics(*tensors[:2]))
        return steps.training(*tensors, statistics, negative_eps, fusion_eps)[0], statistics

    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, negative_eps, fusion_eps, group, needs_input = inputs
        options = (negative_eps, fusion_eps)
        gradients = steps.training_backward(*tensors, None, *options, False)
        of_input = gradients[:2]
        if needs_input:
            of_input = steps.training_backward(*tensors, summed_over(group, gradients[-1]), *options, True)[:2]
        return *of_input, *gradients[2:8]

    def fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return _fake_training(x, None, *rest[-3:-1])

    def fake_backward(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, negative_eps, fusion_eps, _, needs_input = inputs
        return _fake_training_backward(*tensors, None, negative_eps, fusion_eps, needs_input)[:8]

    forward_operator = define(f"leni_synchronised_{backend}({tensors}Tensor? compress_bias, {options}) "
                              "-> (Tensor, Tensor)", forward, fake_forward)
    backward_operator = define(f"leni_synchronised_backward_{backend}(Tensor grad, {tensors}Tensor statistics, "
                               f"{options}, bool needs_input) -> ({', '.join(['Tensor'] * 8)})", backward,
                               fake_backward)
    run_once = once_differentiable(backward_operator)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save_training(ctx, inputs, output)
        ctx.options = inputs[8:]

    def run_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 11
        if torch.is_grad_enabled():
            raise NotImplementedError(SYNCHRONISED)
        needs = ctx.needs_input_grad
        gradients = run_once(grad, *ctx.saved_tensors, *ctx.options, needs[0] or needs[1])
        return only_needed(gradients, needs)

    return differentiable(forward_operator, save, run_backward)


# ---- a block whose deconvolution is separable: W stands behind D, and before BN1 -----------------------------


def _define_separable_evaluation(backend: str, kernels: Kernels) -> Callable[..., Tensor]:
    """The folded form, which is the same, of parameters that it folds at each call."""

    def evaluate(x: Tensor, *rest: Any) -> Tensor:
        *tensors, negative_eps, fusion_eps = rest
        parameters = _with_running_statistics(tensors, (negative_eps, fusion_eps))
        folded = reference.fold_leni(*parameters, centred=rounds_products(x))
        return kernels.folded(x, *_centred(x, folded))

    name = f"leni_separable_eval_{backend}"
    operator = define(
        f"{name}(Tensor x, Tensor deconv_weight, Tensor negative_mean, Tensor negative_variance, "
        "Tensor? negative_weight, Tensor? negative_bias, Tensor fusion_mean, Tensor fusion_variance, "
        "Tensor? fusion_weight, Tensor? fusion_bias, Tensor compress_weight, Tensor? compress_bias, "
        "Tensor pointwise_weight, float negative_eps, float fusion_eps) -> Tensor", evaluate,
        on_one_device(name, _fake_eval))
    return _evaluation(operator, kernels)


def _define_separable_training(backend: str, kernels: Kernels) -> Callable[..., tuple[Tensor, ...]]:
    """What trains a process' own batch, or with a group's name the part of one over all its processes."""
    tensors = ("Tensor x, Tensor deconv_weight, Tensor pointwise_weight, Tensor? negative_weight, "
               "Tensor? negative_bias, Tensor? fusion_weight, Tensor? fusion_bias, Tensor compress_weight, ")
    options = "float negative_eps, float fusion_eps, str group"
    name = f"leni_separable_training_{backend}"
    backward_name = f"leni_separable_training_backward_{backend}"
    rounds = backend == "triton"  # the CPU's kernels have gradients' products in float32

    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        like = inputs[1]
        gradients = separable.training_backward(kernels, rounds, *inputs)
        return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)

    def fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        channels = x.shape[1]
        shapes = (4 * channels + 1,), (2 * channels,), (channels, 2 * channels), (channels, channels)
        return empty_like(x), *(x.new_empty(shape, dtype=torch.float64) for shape in shapes)

    def fake_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        parameters, needs_input = rest[:6], rest[-1]
        return (empty_like(x) if needs_input else x.new_empty(0), gradient_of(deconv_weight, x, needs_input),
                *fake_parameter_gradients(x, parameters, 0, True)[:-1])

    operator = define(f"{name}({tensors}Tensor? compress_bias, {options}) -> ({', '.join(['Tensor'] * 5)})",
                      partial(separable.training, kernels), on_one_device(name, fake_forward))
    run_backward = once_differentiable(define(
        f"{backward_name}(Tensor grad, {tensors}Tensor statistics, Tensor mean, Tensor weight, Tensor spread, "
        f"{options}, bool needs_input) -> ({', '.join(['Tensor'] * 9)})", backward,
        on_one_device(backward_name, fake_backward)))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:8], *output[1:])
        ctx.options = inputs[9:]
        only_first_differentiable(ctx, output)

    def of_inputs(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 12
        needs, (*eps, group) = ctx.needs_input_grad, ctx.options
        if not torch.is_grad_enabled():
            gradients = run_backward(grad, *ctx.saved_tensors, *ctx.options, needs[0] or needs[1])
        elif group:
            raise NotImplementedError(SYNCHRONISED)
        else:
            gradients = _gradients_again(grad, *ctx.saved_tensors[:8], needs[:9], *eps)
        return only_needed(gradients, needs)

    return differentiable(operator, save, of_inputs)


class Training(NamedTuple):
    """How one backend trains a block."""

    steps: Steps
    evaluation: Callable[..., Tensor]
    """(x, D, BN1's mean, variance, γ1, β1, BN2's mean, variance, γ2, β2, P, c, both eps) -> y"""
    alone: Callable[..., tuple[Tensor, Tensor]]
    """(x, D, γ1, β1, γ2, β2, P, c, None, both eps) -> y, statistics"""
    synchronised: Callable[..., tuple[Tensor, Tensor]]
    """(x, D, γ1, β1, γ2, β2, P, c, both eps, group) -> y, statistics"""
    separable_evaluation: Callable[..., Tensor]
    """(x, D, BN1's mean, variance, γ1, β1, BN2's mean, variance, γ2, β2, P, c, W, both eps) -> y"""
    separable: Callable[..., tuple[Tensor, ...]]
    """(x, D, W, γ1, β1, γ2, β2, P, c, both eps, group or "") -> y, statistics of [p; W z], and what backward needs"""


def _define_training(backend: str, steps: Steps, kernels: Kernels) -> Training:
    return Training(steps, _evaluation(steps.eval, kernels), _training(steps), _define_synchronised(backend, steps),
                    _define_separable_evaluation(backend, kernels), _define_separable_training(backend, kernels))


if extension.why_missing is None:
    _CPP = _with_autograd(Kernels(*operators_of("leni", "cpp", _FAKES, Kernels._fields)))
    _TRAINING_CPP = _define_training("cpp", steps_of("leni", "cpp", _STEP_FAKES), _CPP)
    flops.register("cpp", FORMULAS)


@support.operators_when_needed
def _define_triton() -> None:
    global _TRITON, _TRAINING_TRITON, _LAID_OUT_TRITON
    for name, launch in zip(Kernels._fields, (
            gpu.forward.leni_folded, gpu.statistics.leni_statistics, gpu.weight_gradient.leni_weight_gradient,
            gpu.input_gradient.leni_input_gradient, gpu.covariance.leni_covariance), strict=True):
        support.define_operator(f"leni_{name}_triton", launch)
    kernels = Kernels(*operators_of("leni", "triton", _FAKES, Kernels._fields))
    kernels = kernels._replace(
        weight_gradient=with_reference("leni_weight_gradient", "triton", kernels.weight_gradient,
                                       _weight_gradient_by_reference),
        input_gradient=with_reference("leni_input_gradient", "triton", kernels.input_gradient,
                                      _input_gradient_by_reference))
    _TRITON = _with_autograd(kernels)
    support.define_operator("leni_laid_out_triton", gpu.forward.leni_laid_out)
    torch.library.register_fake("leni_kernels::leni_laid_out_triton", _fake_laid_out)
    _LAID_OUT_TRITON = without_gradients(torch.ops.leni_kernels.leni_laid_out_triton.default)
    launches = Steps(gpu.forward.leni_eval, gpu.forward.leni_batch_statistics, gpu.forward.leni_training,
                     gpu.backward.leni_training_backward, gpu.forward.leni_running_statistics)
    for name, launch in launches._asdict().items():
        support.define_operator(f"leni_{name}_triton", launch, RUNNING if name == "running_statistics" else ())
    steps = steps_of("leni", "triton", _STEP_FAKES)
    _TRAINING_TRITON = _define_training("triton", steps._replace(
        training_backward=with_reference("leni_training_backward", "triton", steps.training_backward,
                                         reference.leni_training_backward)), _TRITON)
    flops.register("triton", FORMULAS)


def _why_no_size(kernel_size: int) -> str | None:
    if kernel_size not in KERNEL_SIZES:
        return f"the deconvolution is {kernel_size}x{kernel_size}; kernels exist for sizes {KERNEL_SIZES}"
    return None


def _why_not_cpp(call: FoldedCall | LeniCall) -> str | None:
    return why_not_on_cpu(call) or _why_no_size(call.kernel_size)


def _why_not_triton(call: FoldedCall | LeniCall) -> str | None:
    return support.why_not_here(call.x) or _why_no_size(call.kernel_size) or why_no_layout(call)


def rounds_products(x: Tensor) -> bool:
    """Whether a matrix product with x rounds what it multiplies: half precision does, and TF32."""
    return x.dtype in (torch.float16, torch.bfloat16) or (x.is_cuda and x.dtype == torch.float32)


def _run(kernels: Kernels, call: FoldedCall | LeniCall, folded: Folded) -> Tensor:
    x = read(call)
    taps, weight, bias, mean = _centred(x, folded)
    return kernels.folded(x, taps, weight, bias, mean)


def _centred(x: Tensor, folded: Folded) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What the kernels take: a mean, and the bias that goes with it, only where products round."""
    taps, weight, bias, mean = folded
    if mean is None or not rounds_products(x):
        return taps, weight, bias, None
    return taps, weight, centred_bias(weight, bias, mean), mean


# ---- LENI in its folded form -------------------------------------------------------------------------------


class FoldedCall(NamedTuple):
    """One call of folded LENI."""

    x: Tensor
    dtype: torch.dtype
    channels_last: bool | None
    folded: Folded
    kept: Kept | None

    @property
    def kernel_size(self) -> int:
        return self.folded.taps.shape[-1]


def _run_folded_triton(call: FoldedCall) -> Tensor:
    folded, kept = call.folded, call.kept
    if kept is None or torch.compiler.is_compiling() or wants_gradient(call.x, *folded):
        return _run(_TRITON, call, folded)
    x = read(call)
    laid_out = kept.get(x.dtype, folded, lambda: gpu.forward.lay_out_folded(x.dtype, *_centred(x, folded)))
    return _LAID_OUT_TRITON(x, *laid_out)


_LENI_FOLDED = Operation(
    "leni_folded",
    Backend("cpp", _why_not_cpp, lambda call: _run(_CPP, call, call.folded)),
    Backend("triton", _why_not_triton, _run_folded_triton, how_triton),
    Backend("reference", lambda call: None, lambda call: reference.leni_folded(call.x, *call.folded)),
)


def leni_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None = None) -> Tensor:
    """LENI with its norms folded, for inference: ``weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype; contiguous, channels-last, or a slice of either, which the
            kernels read in place.
        taps: ``[C, k, k]``, k odd.
        weight: ``[C, 2C]``; the first C columns act on the positive branch.
        bias: ``[C]``.
        mean: ``[2C]``, about the mean of what the weight multiplies, or None. The result is the same but for the
            rounding: products that round (half precision, TF32) are of values less the mean, so that they lose little
            where it is large against the deviations from it. It gets no gradient.

    Returns:
        ``[N, C, H, W]`` in x's dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, an even k, or tensors on several devices.
        TypeError: for dtypes that do not fit x's.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    return run_leni_folded(x, taps, weight, bias, mean)


def run_leni_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                    kept: Kept | None = None) -> Tensor:
    """:func:`leni_folded` for a module that keeps what the kernel reads from one call to the next."""
    channels, dtype = checks.feature_map("leni_folded", x), folding_dtype(x.dtype)
    size = taps.shape[-1] if taps.dim() == 3 else 0
    if not (size % 2 == 1 and taps.shape == (channels, size, size)
            and folded_fits(x, channels, dtype, taps, weight, bias)):
        checks.channels_of_weights("leni_folded", x, taps, weight, bias)
        checks.odd_kernel("leni_folded", "taps", taps, (channels, "k", "k"))
        check_folded("leni_folded", x, taps, weight, bias)
        taps, weight, bias = taps.to(dtype), weight.to(dtype), bias.to(dtype)
    if mean is not None:
        if mean.shape != (2 * channels,) or mean.device != x.device or mean.dtype != dtype:
            checks.shape("leni_folded", "mean", mean, (2 * channels,))
            checks.same_device("leni_folded", x=x, mean=mean)
            checks.floating("leni_folded", mean, "mean")
            mean = mean.to(dtype)
        if mean.requires_grad:
            mean = mean.detach()
    return _LENI_FOLDED(FoldedCall(x, checks.autocast_dtype(x), is_channels_last(x), Folded(taps, weight, bias, mean),
                                   kept))


# ---- LENI --------------------------------------------------------------------------------------------------


class LeniParameters(NamedTuple):
    """The tensors of one LENI block, in the order of :func:`reference.fold_leni`."""

    deconv_weight: Tensor
    negative_norm: Norm
    fusion_norm: Norm
    compress_weight: Tensor
    compress_bias: Tensor | None
    pointwise_weight: Tensor | None = None
    """Of a separable deconvolution."""

    def layers(self) -> tuple[Layer | None, ...]:
        """The block as the layers of the definition, on feature maps or, of weights for these, on signals."""
        pointwise = None if self.pointwise_weight is None else compress_layer(self.pointwise_weight, None)
        return (deconv_layer(self.deconv_weight, groups=self.deconv_weight.shape[0]), self.negative_norm,
                self.fusion_norm, compress_layer(self.compress_weight, self.compress_bias), pointwise)


class LeniCall(NamedTuple):
    """One call of LENI: tensors for the kernels (None if there is an obstacle), and what makes the layers."""

    x: Tensor
    dtype: torch.dtype
    """Of x as the kernels read it: autocast's."""
    channels_last: bool | None
    """As :func:`is_channels_last` says of x."""
    parameters: LeniParameters | None
    layers: Callable[[], tuple[Layer | None, ...]]
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

    def why_slow_on_cpu(self) -> str | None:
        """Why the layers of the definition train a separable block faster: it has products of channels with channels,
        however few the values are. One of several processes runs what the others run."""
        if self.parameters.pointwise_weight is None or not self.trains or self.group:
            return None
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # what is traced serves other sizes, too
            return None
        if self.dtype not in (torch.float32, torch.float64):  # its layers may be slower still
            return None
        values, channels = self.x.numel(), self.x.shape[1]
        if values < LEAST_SEPARABLE or values < LEAST_SITES * channels ** 2:
            return f"composed layers train {values // channels} values in each of {channels} channels faster"
        return None

    def why_not_fused(self) -> str | None:
        if self.parameters is None:
            return self.obstacle
        if self.trains != self.parameters.fusion_norm.uses_batch_statistics:
            return "one batch norm uses batch statistics and the other running ones"
        if self.trains and self.x.shape[0] == 0 and not self.group:
            return "an empty batch has no statistics"
        return None


def _why_leni_not_cpp(call: LeniCall) -> str | None:
    return call.why_not_fused() or _why_not_cpp(call)


def _why_leni_not_triton(call: LeniCall) -> str | None:
    return call.why_not_fused() or _why_not_triton(call)


def _run_leni_cpp(call: LeniCall) -> Tensor:
    if call.trains:
        return _run_training(call, _TRAINING_CPP)
    return _run_eval(call, _TRAINING_CPP)


def _run_leni_triton(call: LeniCall) -> Tensor:
    if call.trains:
        return _run_training(call, _TRAINING_TRITON)
    return _run_eval(call, _TRAINING_TRITON)


def _run_eval(call: LeniCall, training: Training) -> Tensor:
    deconv_weight, negative, fusion, compress_weight, compress_bias, pointwise_weight = call.parameters
    tensors = (read(call), deconv_weight, *negative[:4], *fusion[:4], compress_weight, compress_bias)
    if pointwise_weight is None:
        return training.evaluation(*tensors, negative.eps, fusion.eps)
    return training.separable_evaluation(*tensors, pointwise_weight, negative.eps, fusion.eps)


def _run_training(call: LeniCall, training: Training) -> Tensor:
    x = read(call)
    deconv_weight, negative, fusion, compress_weight, compress_bias, pointwise_weight = call.parameters
    check_values(x, call.group)
    tensors = (negative.weight, negative.bias, fusion.weight, fusion.bias, compress_weight, compress_bias)
    options = (negative.eps, fusion.eps)
    if pointwise_weight is not None:
        y, statistics, *_ = training.separable(x, deconv_weight, pointwise_weight, *tensors, *options, call.group)
    elif call.group:
        y, statistics = training.synchronised(x, deconv_weight, *tensors, *options, call.group)
    else:
        y, statistics = training.alone(x, deconv_weight, *tensors, None, *options)
    if negative.training or fusion.training:
        training.steps.running_statistics(statistics, negative.weight, negative.bias, *negative.tracked(),
                                          *fusion.tracked(), negative.eps)
    return y


_LENI = Operation(
    "leni",
    Backend("cpp", _why_leni_not_cpp, _run_leni_cpp, why_slow=LeniCall.why_slow_on_cpu),
    Backend("triton", _why_leni_not_triton, _run_leni_triton, how_triton),
    Backend("reference", lambda call: None, lambda call: reference.leni(call.x, *call.layers())),
)


def leni(x: Tensor, deconv_weight: Tensor, negative_norm: Norm, fusion_norm: Norm, compress_weight: Tensor,
         compress_bias: Tensor | None = None, pointwise_weight: Tensor | None = None) -> Tensor:
    """LENI (Cai, Peng, Shen 2023, §3.1): ``P · BN2([max(x, 0); BN1(D ⋆ᵀ min(x, 0))]) + c``.

    Args:
        x: ``[N, C, H, W]``, any floating dtype; contiguous, channels-last, or a slice of either.
        deconv_weight: D, ``[C, 1, k, k]``, k odd: a depthwise transposed convolution, stride 1, padding k//2.
        negative_norm: BN1, a :class:`Norm` over C channels.
        fusion_norm: BN2, a :class:`Norm` over 2C channels.
        compress_weight: P, ``[C, 2C, 1, 1]``.
        compress_bias: c, ``[C]``, or None.
        pointwise_weight: W, ``[C, C, 1, 1]``, of a depthwise separable deconvolution: BN1 then reads ``W · (D ⋆ᵀ
            min(x, 0))``. None where D is all of it.

    Returns:
        ``[N, C, H, W]`` in x's dtype (autocast's under autocast) and memory format.

    Raises:
        ValueError: for shapes that do not fit, an even k, an empty plane, or tensors on several devices.
        TypeError: for dtypes that do not fit x's.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    return run_leni(x, LeniParameters(deconv_weight, negative_norm, fusion_norm, compress_weight, compress_bias,
                                      pointwise_weight))


def run_leni(x: Tensor, parameters: LeniParameters | None,
             layers: Callable[[], tuple[Layer | None, ...]] | None = None, obstacle: str | None = None,
             group: str = "") -> Tensor:
    """:func:`leni`, with what makes the layers that the definition is to call, or without parameters and why."""
    channels = checks.feature_map("leni", x)
    if parameters is not None and not (
            tensors_fit(x, parameters, channels, 1) and norm_fits(parameters.negative_norm, channels)
            and norm_fits(parameters.fusion_norm, 2 * channels)):
        check_channels("leni", x, parameters)
        check_block("leni", x, parameters, channels, deconv_channels=(channels, 1))
        checks.shape("leni", "compress_weight", parameters.compress_weight, (channels, 2 * channels, 1, 1))
        checks.norm("leni", "fusion_norm", parameters.fusion_norm, 2 * channels)
    if parameters is not None and parameters.pointwise_weight is not None:
        checks.shape("leni", "pointwise_weight", parameters.pointwise_weight, (channels, channels, 1, 1))
        checks.alike("leni", x=x, pointwise_weight=parameters.pointwise_weight)
    return _LENI(LeniCall(x, checks.autocast_dtype(x), is_channels_last(x), parameters,
                          parameters.layers if layers is None else layers, obstacle, group))
