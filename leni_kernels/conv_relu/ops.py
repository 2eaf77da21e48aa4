"""ConvReLU as PyTorch operators: schemas, fakes, autograd, autocast and the choice of backend; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common import checks, extension, flops
from ..common.backends import Backend, Operation, gradients_of, with_reference
from ..common.gpu import support
from ..common.layout import is_channels_last, reads_channels_last
from ..common.operators import differentiable, inference_only, needed, once_differentiable
from . import gpu, reference
from .flops import FORMULAS
from .gpu.configs import converts
from .reference import Pads

# ---- the operators -----------------------------------------------------------------------------------------
# Of each backend: conv_relu with autograd, its backward, and its general form, without. Options are a convolution's,
# one number per spatial dimension, and two of ``pads``: before and after. Which stride of x is 1, channels' or
# columns', x itself says at each call, and y and dx are laid out as x is. What is kept for backward is x and the
# parameters.


class Kernels(NamedTuple):
    """The operators of one backend."""

    forward: Any
    """(x, weight, threshold, bias, *options) -> y; options are stride, pads, dilation, groups"""
    backward: Any
    """(grad, x, weight, threshold, *options, needs_x, needs_weight, needs_threshold, needs_bias) -> the gradients of
    all four, empty if not needed"""
    taps: Any
    """(x, weight, threshold, bias, offsets, below) -> y: what Reborn folds into"""


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An activation in x's dtype and layout."""
    if not reads_channels_last("conv_relu", x):
        return x.new_empty(shape)
    return x.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)


def _fake_forward(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, stride: Sequence[int],
                  pads: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    padded = [size + before + after for size, before, after in zip(x.shape[2:], pads[::2], pads[1::2], strict=True)]
    extents = [reference.extent(k, d) for k, d in zip(weight.shape[2:], dilation, strict=True)]
    sites = [(size - extent) // step + 1 for size, extent, step in zip(padded, extents, stride, strict=True)]
    return _empty(x, (x.shape[0], weight.shape[0], *sites))


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, threshold: Tensor, stride: Sequence[int],
                   pads: Sequence[int], dilation: Sequence[int], groups: int, needs_x: bool, needs_weight: bool,
                   needs_threshold: bool, needs_bias: bool) -> tuple[Tensor, ...]:
    return (_empty(x, x.shape) if needs_x else x.new_empty(0),
            weight.new_empty(weight.shape if needs_weight else 0),
            threshold.new_empty(threshold.shape if needs_threshold else 0),
            weight.new_empty(weight.shape[0] if needs_bias else 0))


def _fake_taps(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, offsets: Sequence[int],
               below: Sequence[int]) -> Tensor:
    return _empty(x, (x.shape[0], weight.shape[0], *x.shape[2:]))


def _backward_by_reference(grad: Tensor, x: Tensor, weight: Tensor, threshold: Tensor,
                           *rest: Any) -> tuple[Tensor | None, ...]:
    """What the operator of backward returns, from the definition; None where it is not needed."""
    stride, pads, dilation, groups, *needs = rest

    def definition(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor) -> Tensor:
        pairs = tuple(zip(pads[::2], pads[1::2], strict=True))
        return reference.conv_relu(x, weight.to(x.dtype), threshold.to(x.dtype), bias.to(x.dtype), stride, pairs,
                                   dilation, groups)

    return gradients_of(definition, (x, weight, threshold, weight.new_zeros(weight.shape[0])), tuple(needs), grad)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[4:]


def _backward(operator: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:4]
    # With create_graph only the reference can be differentiated again.
    run = _backward_by_reference if torch.is_grad_enabled() else operator
    gradients = run(grad, *ctx.saved_tensors, *ctx.options, *needs)
    return *(gradients if all(needs) else needed(gradients, needs)), None, None, None, None


def _operators(backend: str) -> Kernels:
    """The operators leni_kernels::conv_relu*_<backend>, with their fakes and autograd registered."""
    names = [f"conv_relu{part}_{backend}" for part in ("", "_backward", "_taps")]
    for name, fake in zip(names, (_fake_forward, _fake_backward, _fake_taps), strict=True):
        torch.library.register_fake(f"leni_kernels::{name}", fake)
    forward, backward, taps = (getattr(torch.ops.leni_kernels, name).default for name in names)
    backward = once_differentiable(backward)
    if backend == "triton":
        backward = with_reference("conv_relu_backward", backend, backward, _backward_by_reference)
    return Kernels(differentiable(forward, _save, partial(_backward, backward)), backward, inference_only(taps))


if extension.why_missing is None:
    _CPP = _operators("cpp")
    flops.register("cpp", FORMULAS)


@support.operators_when_needed
def _define_triton() -> None:
    global _TRITON
    for launch in (gpu.forward.conv_relu, gpu.backward.conv_relu_backward, gpu.forward.conv_relu_taps):
        support.define_operator(f"{launch.__name__}_triton", launch)
    _TRITON = _operators("triton")
    flops.register("triton", FORMULAS)


# ---- which backend, and why --------------------------------------------------------------------------------


class ConvReluCall(NamedTuple):
    """One call of ConvReLU on a batch, in the order of :func:`reference.conv_relu`."""

    x: Tensor
    weight: Tensor
    threshold: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    pads: Pads
    dilation: tuple[int, ...]
    groups: int


def _why_no_kernel(x: Tensor) -> str | None:
    if 0 in x.shape[1:]:
        return "x has no channels or no sites"
    if is_channels_last(x) is None:
        return "x has stride 1 neither along channels nor along columns, and the kernels do not copy"
    return None


def why_not_cpp(x: Tensor) -> str | None:
    """Why the C++ kernels cannot read x, or None if they can."""
    return extension.why_not(x, checks.autocast_dtype(x)) or _why_no_kernel(x)


def why_not_triton(x: Tensor) -> str | None:
    """Why the Triton kernels cannot read x, or None if they can."""
    return support.why_not_here(x) or _why_no_kernel(x)


def _run(kernels: Kernels, call: ConvReluCall) -> Tensor:
    x, weight, threshold, bias, stride, pads, dilation, groups = call
    x = checks.in_autocast_dtype(x, is_channels_last(x))
    flat_pads = [count for pair in pads for count in pair]
    return kernels.forward(x, weight, threshold, bias, stride, flat_pads, dilation, groups)


def how_triton(x: Tensor, channels: int, taps: int) -> tuple[str, ...]:
    """What is worth knowing of a call with so many channels in a group on Triton's kernels."""
    how = support.how_multiplied(x, checks.autocast_dtype(x))
    if not is_channels_last(x) and converts(channels, taps):
        how += ("x, and in backward y's gradient, is copied to channels innermost first, which takes less time than "
                "reading single elements; a network in channels-last needs no copies",)
    return how


def run_taps(backend: str, x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor, offsets: Sequence[int],
             below: Sequence[int]) -> Tensor:
    """The general form on a backend, at stride 1 and without a gradient.

    Tap t of site q reads x ``[N, C, H, W]`` at q + offset. Of what it reads it takes the maximum with
    ``threshold[c, t]``, or the minimum where it is ``below``. Weight is ``[O, C, T]``, threshold ``[C, T]``,
    ``offsets`` ``[2 · T]``: rows and columns.
    """
    x = checks.in_autocast_dtype(x, is_channels_last(x))
    kernels = _CPP if backend == "cpp" else _TRITON
    return kernels.taps(x, weight, threshold, bias, offsets, below)


def _operation(dimensions: int) -> Operation:
    return Operation(f"conv_relu{dimensions}d",
                     Backend("cpp", lambda call: why_not_cpp(call.x), lambda call: _run(_CPP, call)),
                     Backend("triton", lambda call: why_not_triton(call.x), lambda call: _run(_TRITON, call),
                             lambda call: how_triton(call.x, call.weight.shape[1], call.weight[0, 0].numel())),
                     Backend("reference", lambda call: None, lambda call: reference.conv_relu(*call)))


_OPERATIONS = {dimensions: _operation(dimensions) for dimensions in (1, 2, 3)}


# ---- ConvReLU ----------------------------------------------------------------------------------------------


def conv_relu1d(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None = None,
                stride: int | Sequence[int] = 1, padding: int | Sequence[int] | str = 0,
                dilation: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """ConvReLU (Gao, Cai, Ji 2020, eq. 7-8) in one dimension.

    Args:
        x: ``[N, C, L]`` or ``[C, L]``, any floating dtype.
        weight: ``[O, C // groups, k]``.
        threshold: ``[C, k]``, shared by all output channels.
        bias: ``[O]``, or None.
        stride: as in ``torch.nn.functional.conv1d``.
        padding: as there.
        dilation: as there.
        groups: as there.

    Returns:
        ``[N, O, L']`` or ``[O, L']``; otherwise, and in what it raises, as :func:`conv_relu2d`.
    """
    return _conv_relu(1, x, weight, threshold, bias, stride, padding, dilation, groups)


def conv_relu2d(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None = None,
                stride: int | Sequence[int] = 1, padding: int | Sequence[int] | str = 0,
                dilation: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """ConvReLU (Gao, Cai, Ji 2020, eq. 7-8): a convolution that thresholds what each tap reads.

    ``y[n,o,q] = bias[o] + Σ_c Σ_k weight[o,c,k] · max(x̂[n,c, q·stride + k·dilation], threshold[c,k])``, where
    x̂ is x padded with zeros: padding precedes the threshold, so that an added site contributes
    ``weight · max(0, threshold)``. Where x̂ equals the threshold, the gradient goes to the threshold and none
    to x. A threshold of 0 gives the convolution of ``relu(x)``, of -∞ the convolution of x.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, any floating dtype.
        weight: ``[O, C // groups, kh, kw]``.
        threshold: ``[C, kh, kw]``, shared by all output channels.
        bias: ``[O]``, or None.
        stride: as in ``torch.nn.functional.conv2d``.
        padding: as there: numbers, "same" or "valid".
        dilation: as there.
        groups: as there; the threshold has all input channels whatever they are.

    Returns:
        ``[N, O, H', W']`` or ``[O, H', W']`` in x's dtype (autocast's under autocast) and memory format.

    Raises:
        ValueError: for shapes or options that do not fit, a kernel larger than the padded x, or tensors on
            several devices.
        TypeError: for dtypes that do not fit x's.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    return _conv_relu(2, x, weight, threshold, bias, stride, padding, dilation, groups)


def conv_relu3d(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None = None,
                stride: int | Sequence[int] = 1, padding: int | Sequence[int] | str = 0,
                dilation: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """ConvReLU (Gao, Cai, Ji 2020, eq. 7-8) in three dimensions.

    Args:
        x: ``[N, C, D, H, W]`` or ``[C, D, H, W]``, any floating dtype.
        weight: ``[O, C // groups, kd, kh, kw]``.
        threshold: ``[C, kd, kh, kw]``, shared by all output channels.
        bias: ``[O]``, or None.
        stride: as in ``torch.nn.functional.conv3d``.
        padding: as there.
        dilation: as there.
        groups: as there.

    Returns:
        ``[N, O, D', H', W']`` or ``[O, D', H', W']``; otherwise, and in what it raises, as :func:`conv_relu2d`.
    """
    return _conv_relu(3, x, weight, threshold, bias, stride, padding, dilation, groups)


def _conv_relu(dimensions: int, x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None,
               stride: int | Sequence[int], padding: int | Sequence[int] | str, dilation: int | Sequence[int],
               groups: int) -> Tensor:
    name = f"conv_relu{dimensions}d"
    groups = checks.integer(name, "groups", groups)
    if not _usual(x, weight, threshold, bias, groups, dimensions):
        checks.convolution_input(name, x, dimensions)
        _check_tensors(name, x, weight, threshold, bias, groups, dimensions)
    stride = checks.per_dimension(name, "stride", stride, dimensions, least=1)
    dilation = checks.per_dimension(name, "dilation", dilation, dimensions, least=1)
    extents = list(map(reference.extent, weight.shape[2:], dilation))
    pads = _pads(name, padding, extents, stride)
    checks.kernel_fits(name, x, pads, extents)
    batched = x.dim() == dimensions + 2
    call = ConvReluCall(x if batched else x[None], weight, threshold, bias, stride, pads, dilation, groups)
    y = _OPERATIONS[dimensions](call)
    return y if batched else y[0]


def _pads(name: str, padding: int | Sequence[int] | str, extents: Sequence[int],
          stride: tuple[int, ...]) -> Pads:
    """The sites to add before and after x; of an odd "same" total the larger half goes after."""
    if padding == "same":
        if max(stride) > 1:
            raise ValueError(f"{name}: padding 'same' must have stride 1, got {stride}")
        return tuple(((extent - 1) // 2, extent // 2) for extent in extents)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"{name}: padding must be 'same', 'valid' or numbers, got {padding!r}")
    counts = checks.per_dimension(name, "padding", 0 if padding == "valid" else padding, len(extents), least=0)
    return tuple(zip(counts, counts, strict=True))


def _usual(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, groups: int, dimensions: int) -> bool:
    """Whether the tensors fit, as nearly always: :func:`_check_tensors` has nothing to say of a batch x then."""
    if not x.dim() == weight.dim() == dimensions + 2 or groups < 1:
        return False
    outputs, inputs, *kernel = weight.shape
    channels, dtype, device = inputs * groups, x.dtype, x.device
    return (x.is_floating_point() and x.shape[1] == channels and threshold.shape == (channels, *kernel)
            and outputs % groups == 0 and min(kernel) > 0
            and weight.dtype == dtype == threshold.dtype and weight.device == device == threshold.device
            and (bias is None
                 or (bias.shape == (outputs,) and bias.dtype == dtype and bias.device == device)))


def _check_tensors(name: str, x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, groups: int,
                   dimensions: int) -> None:
    spatial = checks.SPATIAL[-dimensions:]
    checks.shape(name, "weight", weight, ("O", "C // groups", *(f"k{axis}".lower() for axis in spatial)))
    checks.per_dimension(name, "kernel size", weight.shape[2:], dimensions, least=1)
    checks.groups(name, groups, weight.shape[0])
    channels = weight.shape[1] * groups
    batch = ("N",) if x.dim() == dimensions + 2 else ()
    checks.shape(name, "x", x, (*batch, channels, *spatial))
    checks.shape(name, "threshold", threshold, (channels, *weight.shape[2:]))
    tensors = {"x": x, "weight": weight, "threshold": threshold}
    if bias is not None:
        checks.shape(name, "bias", bias, (weight.shape[0],))
        tensors["bias"] = bias
    checks.alike(name, **tensors)
