"""Checks of what a caller hands over; each error names the shape, dtype or device got and the one wanted."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from .norm import Norm
from .operators import intercepted


def feature_map(name: str, x: Tensor) -> int:
    """Require a floating ``[N, C, H, W]`` with a non-empty plane; returns C."""
    shape = x.shape
    if len(shape) != 4:
        raise ValueError(f"{name}: x must be [N, C, H, W], got shape {tuple(shape)}")
    if not x.is_floating_point():
        floating(name, x)
    _, channels, height, width = shape
    if channels == 0 or height == 0 or width == 0:
        raise ValueError(f"{name}: x must have at least one channel, row and column, got shape {tuple(shape)}")
    return channels


def floating(name: str, x: Tensor, what: str = "x") -> None:
    """Require a floating-point tensor."""
    if not x.is_floating_point():
        raise TypeError(f"{name}: {what} must be floating-point, got {x.dtype}")


def shape(name: str, what: str, tensor: Tensor, wanted: tuple[int | str, ...]) -> None:
    """Require a shape; a string in ``wanted`` stands for any size and names it in the message."""
    if tensor.shape == wanted:  # nearly always, where no string is wanted
        return
    fits = tensor.dim() == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(tensor.shape, wanted, strict=True))
    if not fits:
        expected = "[" + ", ".join(map(str, wanted)) + "]"
        raise ValueError(f"{name}: {what} must have shape {expected}, got {tuple(tensor.shape)}")


def channels_of_weights(name: str, x: Tensor, *weights: Tensor | None) -> None:
    """Require of a feature map as many channels as the weights have, which say it in their first dimension.

    Where these do not agree it is not x that is wrong.
    """
    first, *others = (weight.shape[0] for weight in weights if weight is not None and weight.dim() > 0)
    if all(other == first for other in others):
        shape(name, "x", x, ("N", first, "H", "W"))


def channels(name: str, x: Tensor) -> int:
    """Require a floating ``[N, C, *spatial]`` with at least one channel; returns C."""
    floating(name, x)
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"{name}: x must be [N, C, *spatial] with C at least 1, got shape {tuple(x.shape)}")
    return x.shape[1]


SPATIAL = ("D", "H", "W")
"""The spatial axes in messages; a map of d of them has the last d."""


def convolution_input(name: str, x: Tensor, dimensions: int) -> bool:
    """Require a floating ``[N, C, *spatial]`` or ``[C, *spatial]``; returns whether it is a batch."""
    floating(name, x)
    if x.dim() not in (dimensions + 1, dimensions + 2):
        sample = ", ".join(("C", *SPATIAL[-dimensions:]))
        raise ValueError(f"{name}: x must be [N, {sample}] or [{sample}], got shape {tuple(x.shape)}")
    return x.dim() == dimensions + 2


def integer(name: str, what: str, value: SupportsIndex) -> int:
    """Require an integer, NumPy's among them, but no bool, as PyTorch's operators do; returns it as Python's."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: {what} must be an integer, got {value!r}")
    return operator.index(value)


def per_dimension(name: str, what: str, value: SupportsIndex | Sequence[SupportsIndex], dimensions: int,
                  least: int) -> tuple[int, ...]:
    """Require an integer, or one per spatial dimension, each at least ``least``; returns one per dimension."""
    values = value if type(value) is tuple else tuple(value) if isinstance(value, Sequence) else (value,)
    for one in values:
        if type(one) is not int:
            values = tuple(integer(name, what, one) for one in values)
            break
    spread = values * dimensions if len(values) == 1 else values
    if len(spread) != dimensions or min(spread) < least:
        raise ValueError(f"{name}: {what} must be 1 or {dimensions} numbers, each >= {least}, got {values}")
    return spread


def kernel_fits(name: str, x: Tensor, pads: Sequence[tuple[int, int]], extents: Sequence[int]) -> None:
    """Require an output of at least one site per dimension."""
    sizes = x.shape[-len(pads):]
    for size, (before, after), extent in zip(sizes, pads, extents, strict=True):
        if size + before + after < extent:
            padded = [size + before + after for size, (before, after) in zip(sizes, pads, strict=True)]
            raise ValueError(f"{name}: the dilated kernel {list(extents)} must fit into the padded x {padded}; "
                             f"got x of shape {tuple(x.shape)}")


def odd_kernel(name: str, what: str, tensor: Tensor, wanted: tuple[int | str, ...]) -> None:
    """Require a shape that ends in an odd square kernel."""
    shape(name, what, tensor, wanted)
    height, width = tensor.shape[-2:]
    if height != width or height % 2 == 0:
        raise ValueError(f"{name}: {what} must have an odd square kernel, got {height}x{width}")


def groups(name: str, count: int, channels: int) -> None:
    """Require a number of groups that divides the channels."""
    if count < 1 or channels % count != 0:
        raise ValueError(f"{name}: groups must divide the {channels} channels, got {count}")


def norm(name: str, what: str, state: Norm, channels: int) -> None:
    """Require a batch norm whose tensors all have one entry per channel."""
    for field in ("running_mean", "running_var", "weight", "bias"):
        tensor = getattr(state, field)
        if tensor is not None:
            shape(name, f"{what}.{field}", tensor, (channels,))


def alike(name: str, **tensors: Tensor) -> None:
    """Require one device and, after autocast, one dtype; nearly always the tensors just have them."""
    first, *others = tensors.values()
    for other in others:
        if other.dtype != first.dtype or other.device != first.device:
            same_device(name, **tensors)
            same_dtype(name, **tensors)
            return


def same_device(name: str, **tensors: Tensor) -> None:
    """Require all tensors on the device of the first."""
    first, *others = tensors.values()
    if any(other.device != first.device for other in others):  # rarely, so that words are seldom made
        _alike(name, ValueError, "device", {what: tensor.device for what, tensor in tensors.items()})


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that autocast gives x for a convolution: x's own where autocast is off, and for float64."""
    kind = "cpu" if x.is_cpu else x.device.type  # the latter takes longer to say
    # torch.amp.is_autocast_available would say the same of meta, but Dynamo of torch 2.11 cannot trace it.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x.dtype
    casts = x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else x.dtype


def in_dtype(x: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """x ``[N, C, *spatial]`` itself, or in another dtype with channels, or else columns, at stride 1."""
    if dtype == x.dtype:
        return x
    innermost = x.movedim(1, -1) if channels_last else x
    cast = innermost.to(dtype, memory_format=torch.contiguous_format)
    return cast.movedim(-1, 1) if channels_last else cast


def cast(x: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """x as :func:`in_dtype`, and in a traced program in whichever layout it has at each call."""
    if dtype != x.dtype and intercepted(x):
        return x.to(dtype)
    return in_dtype(x, dtype, channels_last)


def in_autocast_dtype(x: Tensor, channels_last: bool) -> Tensor:
    """x as :func:`cast` gives it, in autocast's dtype."""
    return cast(x, autocast_dtype(x), channels_last)


def same_dtype(name: str, **tensors: Tensor) -> None:
    """Require one dtype, after autocast."""
    if len({autocast_dtype(tensor) for tensor in tensors.values()}) > 1:
        _alike(name, TypeError, "dtype", {what: tensor.dtype for what, tensor in tensors.items()})


def dtype_in(name: str, allowed: tuple[torch.dtype, ...], **tensors: Tensor) -> None:
    """Require of each tensor one of the ``allowed`` dtypes."""
    for what, tensor in tensors.items():
        if tensor.dtype not in allowed:
            wanted = " or ".join(dict.fromkeys(map(str, allowed)))
            raise TypeError(f"{name}: {what} must have dtype {wanted} to fit x, got {tensor.dtype}")


def _alike(name: str, error: type[Exception], property_name: str, values: dict[str, object]) -> None:
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{what} {value}" for what, value in values.items())
        raise error(f"{name}: all tensors must have the same {property_name}, got {listed}")
