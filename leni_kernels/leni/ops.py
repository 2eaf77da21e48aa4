"""LENI as PyTorch operators: schemas, fakes, autograd, autocast and the choice of backend.

No arithmetic here: the definitions and the folding are in ``reference.py``, the kernels in ``csrc/``,
``triton_kernels.py``, ``triton_training.py`` and ``triton_input_gradient.py``, whole steps on a GPU in
``triton_steps.py``. Reborn's operators, in ``reborn_ops.py``, take what both share from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, extension, triton_support
from ..backends import Backend, Operation, with_reference
from ..kept import Kept
from ..operators import define, differentiable, eager, needed, once_differentiable, without_gradients
from . import reference, triton_input_gradient, triton_kernels, triton_steps, triton_training
from .batch_norms import merged_over, summed_over
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
    """(x, taps, weight, bias, channels_last, mean=None) -> y, for features less their mean"""
    statistics: Any
    """(x, taps, channels_last) -> mean, variance"""
    weight_gradient: Any
    """(grad, x, taps, channels_last, mean=None) -> weight's gradient, for features less their mean, and bias's"""
    input_gradient: Any
    """(grad, x, taps, weight, constant, slope, channels_last) -> x's gradient, taps' gradient"""


def empty_as(x: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _fake_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, channels_last: bool,
                 mean: Tensor | None = None) -> Tensor:
    return empty_as(x, channels_last)


def _fake_laid_out(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                   channels_last: bool) -> Tensor:
    return empty_as(x, channels_last)


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
    return empty_as(x, channels_last), taps.new_empty(taps.shape)


_FAKES = Kernels(_fake_folded, _fake_statistics, _fake_weight_gradient, _fake_input_gradient)


def no_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("leni_kernels: double backward through the training kernels is not supported; "
                              "use_backend('reference') supports it")


def operators_of(mechanism: str, backend: str, fakes: Any, names: tuple[str, ...]) -> list[Any]:
    """The operators leni_kernels::<mechanism>_<name>_<backend>, with their fakes registered."""
    operators = []
    for name in names:
        qualified = f"leni_kernels::{mechanism}_{name}_{backend}"
        torch.library.register_fake(qualified, getattr(fakes, name))
        if name != "folded":
            torch.library.register_autograd(qualified, no_double_backward, setup_context=lambda *_, **__: None)
        operators.append(getattr(torch.ops.leni_kernels, f"{mechanism}_{name}_{backend}").default)
    return operators


def _save_folded(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, taps, weight, _, ctx.channels_last, mean = inputs
    ctx.save_for_backward(x, taps, weight, mean)


def _backward_by_reference(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *reference.leni_folded_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[:4]), None, None


def _backward_by_kernels(kernels: Kernels, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # with create_graph: only the reference can be differentiated again
        return _backward_by_reference(ctx, grad)
    x, taps, weight, mean = ctx.saved_tensors
    gradients: list[Tensor | None] = [None] * 4
    if any(ctx.needs_input_grad[:2]):
        gradients[:2] = kernels.input_gradient(grad, x, taps, weight, None, None, ctx.channels_last)
    if any(ctx.needs_input_grad[2:4]):
        gradients[2:] = kernels.weight_gradient(grad, x, taps, ctx.channels_last, mean)
    return *gradients, None, None


def _with_autograd(kernels: Kernels) -> Kernels:
    return kernels._replace(folded=differentiable(kernels.folded, _save_folded, partial(_backward_by_kernels, kernels)))


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _weight_gradient_by_reference(grad: Tensor, x: Tensor, taps: Tensor, channels_last: bool,
                                  mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return reference.leni_weight_gradient(grad, x, taps, mean)


def _input_gradient_by_reference(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None,
                                 slope: Tensor | None, channels_last: bool) -> tuple[Tensor, Tensor]:
    grad_x, grad_taps = reference.leni_input_gradient(grad, x, taps, weight, constant, slope)
    return laid_out(grad_x, channels_last), grad_taps


# ---- training: a block is one operator, and its backward another --------------------------------------------
# Statistics are one float64 tensor [4C + 1]: mean and biased variance, [2C] each, of a = [max(x, 0); D ⋆ᵀ min(x, 0)],
# and the count of values a channel they come from. Parameters are as their layers hold them.


class Steps(NamedTuple):
    """The operators of one backend for whole blocks."""

    eval: Any
    """(x, D, BN1's mean, variance, γ1, β1, BN2's mean, variance, γ2, β2, P, c, both eps, channels_last) -> y"""
    batch_statistics: Any
    """(x, D, channels_last) -> statistics"""
    training: Any
    """(x, D, γ1, β1, γ2, β2, P, c, statistics, both eps, channels_last) -> y, the statistics if none were given"""
    training_backward: Any
    """(grad, x, D, γ1, β1, γ2, β2, P, statistics, their gradient, both eps, channels_last, needs_input) -> the
    gradients of x and D, empty unless needed, of γ1, β1, γ2, β2, P, c, and of the statistics [4C]; given the latter,
    only those of x and D"""
    running_statistics: Any
    """(statistics, γ1, β1, BN1's mean, variance, batches, momentum, BN2's, BN1's eps): moves the running ones"""


def _fake_eval(x: Tensor, *rest: Any) -> Tensor:
    return empty_as(x, rest[-1])


def _fake_batch_statistics(x: Tensor, deconv_weight: Tensor, channels_last: bool) -> Tensor:
    return x.new_empty(4 * x.shape[1] + 1, dtype=torch.float64)


def _fake_training(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    statistics, channels_last = rest[-4], rest[-1]
    size = 4 * x.shape[1] + 1 if statistics is None else 0
    return empty_as(x, channels_last), x.new_empty(size, dtype=torch.float64)


def _fake_training_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, _, grad_statistics, _, _, channels_last, needs_input = rest
    needs_parameters = grad_statistics is None
    return (empty_as(x, channels_last) if needs_input else x.new_empty(0), gradient_of(deconv_weight, x, needs_input),
            *fake_parameter_gradients(x, parameters, 4 * x.shape[1], needs_parameters))


def gradient_of(parameter: Tensor | None, x: Tensor, needed: bool) -> Tensor:
    """What a parameter's gradient is written to; empty if there is none."""
    return parameter.new_empty(parameter.shape) if needed and parameter is not None else x.new_empty(0)


def fake_parameter_gradients(x: Tensor, parameters: Sequence[Tensor | None], statistics: int,
                             needed: bool) -> tuple[Tensor, ...]:
    """Those of the parameters, of which P is the last, of c, and of the statistics."""
    of_bias = parameters[-1].new_empty(x.shape[1]) if needed else x.new_empty(0)
    of_statistics = x.new_empty(statistics, dtype=torch.float64) if needed else x.new_empty(0)
    return *(gradient_of(parameter, x, needed) for parameter in parameters), of_bias, of_statistics


def _fake_running_statistics(*arguments: Any) -> None:
    return None


RUNNING = ("negative_mean", "negative_variance", "negative_batches", "fusion_mean", "fusion_variance",
           "fusion_batches")
"""What ``running_statistics`` changes."""

_STEP_FAKES = Steps(_fake_eval, _fake_batch_statistics, _fake_training, _fake_training_backward,
                    _fake_running_statistics)

DOUBLE_BACKWARD = ("leni_kernels: double backward through the training kernels is not supported; "
                   "use_backend('reference') supports it")
GIVEN = ("leni_kernels: a step with statistics that are given is a part of one over several processes, and has no "
         "gradient by itself")


def steps_of(mechanism: str, backend: str, fakes: Any) -> Any:
    """The operators leni_kernels::<mechanism>_<name>_<backend> of whole blocks, with their fakes registered."""
    steps = []
    for name, fake in fakes._asdict().items():
        torch.library.register_fake(f"leni_kernels::{mechanism}_{name}_{backend}", fake)
        steps.append(getattr(torch.ops.leni_kernels, f"{mechanism}_{name}_{backend}").default)
    steps = type(fakes)(*steps)
    return steps._replace(
        eval=eager(steps.eval), batch_statistics=eager(steps.batch_statistics),
        training_backward=once_differentiable(steps.training_backward, DOUBLE_BACKWARD),
        running_statistics=without_gradients(steps.running_statistics))


def only_first_differentiable(ctx: Any, output: tuple[Tensor, ...]) -> None:
    """Say that what comes with y, and is no use of the caller's, has no gradient, and let none be made of zeros."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def only_needed(gradients: tuple[Tensor, ...], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Of an operator's gradients, for the first of its inputs, those that are needed; None for all other inputs."""
    asked = needs[:len(gradients)]
    others = (None,) * (len(needs) - len(gradients))
    if False not in asked:  # as nearly always
        return *gradients, *others
    return *needed(gradients, asked), *others


def _save_training(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    only_first_differentiable(ctx, output)


def _training(steps: Steps) -> Callable[..., tuple[Tensor, Tensor]]:
    """What trains a process' own batch, with autograd: ``steps.training`` without statistics."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save_training(ctx, inputs, output)
        ctx.options, ctx.given = inputs[9:], inputs[8] is not None

    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 12
        if ctx.given:
            raise NotImplementedError(GIVEN)
        needs = ctx.needs_input_grad
        gradients = steps.training_backward(grad, *ctx.saved_tensors, None, *ctx.options, needs[0] or needs[1])
        return only_needed(gradients[:-1], needs)

    return differentiable(steps.training, save, backward)


def _define_synchronised(backend: str, steps: Steps) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same with the statistics, and in backward their gradients, of all processes of a group, by its name.

    It is what SyncBatchNorm computes. Only x and vectors of channels are kept for backward.
    """
    tensors = ("Tensor x, Tensor deconv_weight, Tensor? negative_weight, Tensor? negative_bias, Tensor? fusion_weight, "
               "Tensor? fusion_bias, Tensor compress_weight, ")
    options = "float negative_eps, float fusion_eps, bool channels_last, str group"

    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, negative_eps, fusion_eps, channels_last, group = inputs
        statistics = merged_over(group, steps.batch_statistics(*tensors[:2], channels_last))
        return steps.training(*tensors, statistics, negative_eps, fusion_eps, channels_last)[0], statistics

    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, negative_eps, fusion_eps, channels_last, group, needs_input = inputs
        options = (negative_eps, fusion_eps, channels_last)
        gradients = steps.training_backward(*tensors, None, *options, False)
        of_input = gradients[:2]
        if needs_input:
            of_input = steps.training_backward(*tensors, summed_over(group, gradients[-1]), *options, True)[:2]
        return *of_input, *gradients[2:8]

    def fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return _fake_training(x, None, *rest[-4:-1])

    def fake_backward(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, negative_eps, fusion_eps, channels_last, _, needs_input = inputs
        return _fake_training_backward(*tensors, None, negative_eps, fusion_eps, channels_last, needs_input)[:8]

    forward_operator = define(f"leni_synchronised_{backend}({tensors}Tensor? compress_bias, {options}) "
                              "-> (Tensor, Tensor)", forward, fake_forward)
    backward_operator = define(f"leni_synchronised_backward_{backend}(Tensor grad, {tensors}Tensor statistics, "
                               f"{options}, bool needs_input) -> ({', '.join(['Tensor'] * 8)})", backward,
                               fake_backward)
    run_once = once_differentiable(backward_operator, DOUBLE_BACKWARD)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save_training(ctx, inputs, output)
        ctx.options = inputs[8:]

    def run_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 12
        needs = ctx.needs_input_grad
        gradients = run_once(grad, *ctx.saved_tensors, *ctx.options, needs[0] or needs[1])
        return only_needed(gradients, needs)

    return differentiable(forward_operator, save, run_backward)


class Training(NamedTuple):
    """How one backend trains a block."""

    steps: Steps
    alone: Callable[..., tuple[Tensor, Tensor]]
    """(x, D, γ1, β1, γ2, β2, P, c, None, both eps, channels_last) -> y, statistics"""
    synchronised: Callable[..., tuple[Tensor, Tensor]]
    """(x, D, γ1, β1, γ2, β2, P, c, both eps, channels_last, group) -> y, statistics"""


def _define_training(backend: str, steps: Steps) -> Training:
    return Training(steps, _training(steps), _define_synchronised(backend, steps))


if extension.why_missing is None:
    _CPP = _with_autograd(Kernels(*operators_of("leni", "cpp", _FAKES, Kernels._fields)))
    _TRAINING_CPP = _define_training("cpp", steps_of("leni", "cpp", _STEP_FAKES))


@triton_support.operators_when_needed
def _define_triton() -> None:
    global _TRITON, _TRAINING_TRITON, _LAID_OUT_TRITON
    for name, launch in zip(Kernels._fields, (
            triton_kernels.leni_folded, triton_training.leni_statistics, triton_training.leni_weight_gradient,
            triton_input_gradient.leni_input_gradient), strict=True):
        triton_support.define_operator(f"leni_{name}_triton", launch)
    kernels = Kernels(*operators_of("leni", "triton", _FAKES, Kernels._fields))
    kernels = kernels._replace(
        weight_gradient=with_reference("leni_weight_gradient", "triton", kernels.weight_gradient,
                                       _weight_gradient_by_reference),
        input_gradient=with_reference("leni_input_gradient", "triton", kernels.input_gradient,
                                      _input_gradient_by_reference))
    _TRITON = _with_autograd(kernels)
    triton_support.define_operator("leni_laid_out_triton", triton_kernels.leni_laid_out)
    torch.library.register_fake("leni_kernels::leni_laid_out_triton", _fake_laid_out)
    _LAID_OUT_TRITON = without_gradients(torch.ops.leni_kernels.leni_laid_out_triton.default)
    for name in Steps._fields:
        triton_support.define_operator(f"leni_{name}_triton", getattr(triton_steps, f"leni_{name}"),
                                       RUNNING if name == "running_statistics" else ())
    steps = steps_of("leni", "triton", _STEP_FAKES)
    _TRAINING_TRITON = _define_training("triton", steps._replace(
        training_backward=with_reference("leni_training_backward", "triton", steps.training_backward,
                                         reference.leni_training_backward)))


# ---- which backend, and why --------------------------------------------------------------------------------


def values_of(x: Tensor) -> int:
    """How many values of x a channel has."""
    return x.numel() // x.shape[1]


def is_channels_last(x: Tensor) -> bool | None:
    """Whether the kernels read x with channels (True) or columns (False) at stride 1; None if neither is."""
    _, channel, _, column = x.stride()
    if column == 1 or channel == 1:
        return column != 1
    # The stride of a dimension of size 1 says nothing.
    return False if x.shape[3] == 1 else True if x.shape[1] == 1 else None


def _why_no_size(kernel_size: int) -> str | None:
    if kernel_size not in KERNEL_SIZES:
        return f"the deconvolution is {kernel_size}×{kernel_size}; kernels exist for sizes {KERNEL_SIZES}"
    return None


def why_no_layout(call: Any) -> str | None:
    if call.channels_last is None:
        return "x has stride 1 neither along channels nor along columns, and the kernels do not copy"
    return None


_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def why_not_on_cpu(call: Any) -> str | None:
    if extension.why_missing is not None:
        return extension.why_missing
    if not call.x.is_cpu:
        return f"x is on {call.x.device.type}"
    if call.dtype not in _CPU_DTYPES:
        return f"the CPU kernels take float32, bfloat16 and float64, not {call.dtype}"
    return why_no_layout(call)


def _why_not_cpp(call: FoldedCall | LeniCall) -> str | None:
    return why_not_on_cpu(call) or _why_no_size(call.kernel_size)


def _why_not_triton(call: FoldedCall | LeniCall) -> str | None:
    return triton_support.why_not_here(call.x) or _why_no_size(call.kernel_size) or why_no_layout(call)


def read(call: Any) -> Tensor:
    """A call's x as the kernels read it."""
    return checks.in_dtype(call.x, call.dtype, call.channels_last)


def rounds_products(x: Tensor) -> bool:
    """Whether a matrix product with x rounds what it multiplies: half precision does, and TF32."""
    return x.dtype in (torch.float16, torch.bfloat16) or (x.is_cuda and x.dtype == torch.float32)


def _run(kernels: Kernels, call: FoldedCall | LeniCall, folded: Folded) -> Tensor:
    x = read(call)
    taps, weight, bias, mean = _centred(x, folded)
    return kernels.folded(x, taps, weight, bias, call.channels_last, mean)


def _centred(x: Tensor, folded: Folded) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What the kernels take: a mean, and the bias that goes with it, only where products round."""
    taps, weight, bias, mean = folded
    if mean is None or not rounds_products(x):
        return taps, weight, bias, None
    return taps, weight, reference.centred_bias(weight, bias, mean), mean


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
    laid_out = kept.get(x.dtype, folded, lambda: triton_kernels.laid_out(x.dtype, *_centred(x, folded)))
    return _LAID_OUT_TRITON(x, *laid_out, call.channels_last)


def how_triton(call: Any) -> tuple[str, ...]:
    """What is worth knowing of a call on Triton's kernels."""
    return triton_support.how_multiplied(call.x, call.dtype)


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


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
    channels, dtype = checks.feature_map("leni_folded", x), reference.folding_dtype(x.dtype)
    size = taps.shape[-1] if taps.dim() == 3 else 0
    if not (size % 2 == 1 and taps.shape == (channels, size, size)
            and folded_fits(x, channels, dtype, taps, weight, bias)):
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


def folded_fits(x: Tensor, channels: int, dtype: torch.dtype, taps: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether folded tensors are of the dtype that kernels take and on x's device, and fit x, as they nearly always
    do; where they do not, :func:`check_folded` finds the words."""
    device = x.device
    return (taps.dtype == weight.dtype == bias.dtype == dtype
            and taps.device == weight.device == bias.device == device
            and weight.shape == (channels, 2 * channels) and bias.shape == (channels,))


def check_folded(name: str, x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor) -> None:
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
        return (deconv_layer(self.deconv_weight, groups=self.deconv_weight.shape[0]), self.negative_norm,
                self.fusion_norm, partial(F.conv2d, weight=self.compress_weight, bias=self.compress_bias))


class LeniCall(NamedTuple):
    """One call of LENI: tensors for the kernels (None if there is an obstacle), layers for the definition."""

    x: Tensor
    dtype: torch.dtype
    """Of x as the kernels read it: autocast's."""
    channels_last: bool | None
    """As :func:`is_channels_last` says of x."""
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
    return call.why_not_fused() or _why_not_cpp(call)


def _why_leni_not_triton(call: LeniCall) -> str | None:
    return call.why_not_fused() or _why_not_triton(call)


def _run_leni_cpp(call: LeniCall) -> Tensor:
    if call.trains:
        return _run_training(call, _TRAINING_CPP)
    return _run_eval(call, _TRAINING_CPP.steps, _CPP)


def _run_leni_triton(call: LeniCall) -> Tensor:
    if call.trains:
        return _run_training(call, _TRAINING_TRITON)
    return _run_eval(call, _TRAINING_TRITON.steps, _TRITON)


def check_values(x: Tensor, group: str) -> None:
    """What batch norm asks of a batch in training."""
    if x.numel() == x.shape[1] and not group:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")


def _run_eval(call: LeniCall, steps: Steps, kernels: Kernels) -> Tensor:
    if torch.is_grad_enabled():  # the folding has gradients of its own
        return _run(kernels, call, reference.fold_leni(*call.parameters))
    x = read(call)
    deconv_weight, negative, fusion, compress_weight, compress_bias = call.parameters
    return steps.eval(x, deconv_weight, *negative[:4], *fusion[:4], compress_weight, compress_bias, negative.eps,
                      fusion.eps, call.channels_last)


def _run_training(call: LeniCall, training: Training) -> Tensor:
    x = read(call)
    deconv_weight, negative, fusion, compress_weight, compress_bias = call.parameters
    check_values(x, call.group)
    tensors = (x, deconv_weight, negative.weight, negative.bias, fusion.weight, fusion.bias, compress_weight,
               compress_bias)
    options = (negative.eps, fusion.eps, call.channels_last)
    if call.group:
        y, statistics = training.synchronised(*tensors, *options, call.group)
    else:
        y, statistics = training.alone(*tensors, None, *options)
    if negative.training or fusion.training:
        training.steps.running_statistics(statistics, negative.weight, negative.bias, *negative.tracked(),
                                          *fusion.tracked(), negative.eps)
    return y


_LENI = Operation(
    "leni",
    Backend("cpp", _why_leni_not_cpp, _run_leni_cpp),
    Backend("triton", _why_leni_not_triton, _run_leni_triton, how_triton),
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
    if parameters is not None and not (
            tensors_fit(x, parameters, channels, 1) and norm_fits(parameters.negative_norm, channels)
            and norm_fits(parameters.fusion_norm, 2 * channels)):
        check_block("leni", x, parameters, channels, deconv_channels=(channels, 1))
        checks.shape("leni", "compress_weight", parameters.compress_weight, (channels, 2 * channels, 1, 1))
        checks.norm("leni", "fusion_norm", parameters.fusion_norm, 2 * channels)
    return _LENI(LeniCall(x, checks.autocast_dtype(x), is_channels_last(x), parameters,
                          layers or parameters.layers(), obstacle, group))


def deconv_layer(weight: Tensor, groups: int) -> Layer:
    return partial(F.conv_transpose2d, weight=weight, padding=weight.shape[-1] // 2, groups=groups)


def tensors_fit(x: Tensor, parameters: Any, channels: int, of_group: int) -> bool:
    """Whether D, P of 1×1 and c have one dtype and device with x, and their shapes, as they nearly always do.

    Where they do not, :func:`check_block` says why, unless autocast makes them alike.
    """
    deconv, compress, bias = parameters.deconv_weight, parameters.compress_weight, parameters.compress_bias
    shape, dtype, on_cpu = deconv.shape, x.dtype, x.is_cpu  # which takes less time to say than a device
    size = shape[-1] if shape else 0
    return (size % 2 == 1 and shape == (channels, of_group, size, size)
            and compress is not None and compress.shape == (channels, 2 * channels, 1, 1)
            and deconv.dtype is dtype and compress.dtype is dtype
            and ((on_cpu and deconv.is_cpu and compress.is_cpu) or deconv.device == compress.device == x.device)
            and (bias is None or (bias.shape == (channels,) and bias.dtype is dtype
                                  and ((on_cpu and bias.is_cpu) or bias.device == x.device))))


def norm_fits(norm: Norm, channels: int) -> bool:
    """Whether a norm's tensors have one entry per channel."""
    size, (mean, variance, weight, bias) = (channels,), norm[:4]
    return ((mean is None or mean.shape == size) and (variance is None or variance.shape == size)
            and (weight is None or weight.shape == size) and (bias is None or bias.shape == size))


def check_block(name: str, x: Tensor, parameters: Any, channels: int, deconv_channels: tuple[int, int]) -> None:
    """What LENI and Reborn ask of their tensors alike."""
    weight, bias = parameters.compress_weight, parameters.compress_bias
    checks.odd_kernel(name, "deconv_weight", parameters.deconv_weight, (*deconv_channels, "k", "k"))
    checks.norm(name, "negative_norm", parameters.negative_norm, channels)
    tensors = {"x": x, "deconv_weight": parameters.deconv_weight, "compress_weight": weight, "compress_bias": bias}
    if bias is not None:
        checks.shape(name, "compress_bias", bias, (channels,))
    given = {what: tensor for what, tensor in tensors.items() if tensor is not None}
    checks.same_device(name, **given)
    checks.same_dtype(name, **given)
