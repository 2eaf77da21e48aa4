"""ConvReLU as operations: checks, padding, and the choice of backend; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .. import checks
from ..backends import Backend, Operation
from . import reference
from .reference import Pads


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


def _operation(dimensions: int) -> Operation:
    return Operation(f"conv_relu{dimensions}d",
                     Backend("reference", lambda call: None, lambda call: reference.conv_relu(*call)))


_OPERATIONS = {dimensions: _operation(dimensions) for dimensions in (1, 2, 3)}


def conv_relu1d(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None = None,
                stride: int | Sequence[int] = 1, padding: int | Sequence[int] | str = 0,
                dilation: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """ConvReLU (Gao, Cai, Ji 2020, eq. 7-8) in one dimension.

    As :func:`conv_relu2d`, for x ``[N, C, L]`` or ``[C, L]``, weight ``[O, C // groups, k]``, threshold
    ``[C, k]``.
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
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``.

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

    As :func:`conv_relu2d`, for x ``[N, C, D, H, W]`` or ``[C, D, H, W]``, weight
    ``[O, C // groups, kd, kh, kw]``, threshold ``[C, kd, kh, kw]``.
    """
    return _conv_relu(3, x, weight, threshold, bias, stride, padding, dilation, groups)


def _conv_relu(dimensions: int, x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None,
               stride: int | Sequence[int], padding: int | Sequence[int] | str, dilation: int | Sequence[int],
               groups: int) -> Tensor:
    name = f"conv_relu{dimensions}d"
    batched = checks.convolution_input(name, x, dimensions)
    _check_tensors(name, x, weight, threshold, bias, groups, dimensions)
    stride = checks.per_dimension(name, "stride", stride, dimensions, least=1)
    dilation = checks.per_dimension(name, "dilation", dilation, dimensions, least=1)
    extents = [reference.extent(k, d) for k, d in zip(weight.shape[2:], dilation, strict=True)]
    pads = _pads(name, padding, extents, stride)
    checks.kernel_fits(name, x, pads, extents)
    call = ConvReluCall(x if batched else x[None], weight, threshold, bias, stride, pads, dilation, groups)
    y = _OPERATIONS[dimensions](call)
    return y if batched else y[0]


def _pads(name: str, padding: int | Sequence[int] | str, extents: Sequence[int],
          stride: tuple[int, ...]) -> Pads:
    """The sites to add before and after x; of an odd "same" total the larger half goes after."""
    if padding == "valid":
        padding = 0
    elif padding == "same":
        if max(stride) > 1:
            raise ValueError(f"{name}: padding 'same' must have stride 1, got {stride}")
        return tuple(((extent - 1) // 2, extent // 2) for extent in extents)
    elif isinstance(padding, str):
        raise ValueError(f"{name}: padding must be 'same', 'valid' or numbers, got {padding!r}")
    counts = checks.per_dimension(name, "padding", padding, len(extents), least=0)
    return tuple((count, count) for count in counts)


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
    checks.same_device(name, **tensors)
    checks.same_dtype(name, **tensors)
