"""Checks of what a caller hands over; each error names the shape, dtype or device got and the one wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .leni.reference import Norm


def feature_map(name: str, x: Tensor) -> int:
    """Require a floating ``[N, C, H, W]`` with a non-empty plane; returns C."""
    if x.dim() != 4:
        raise ValueError(f"{name}: x must be [N, C, H, W], got shape {tuple(x.shape)}")
    floating(name, x)
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{name}: x must have at least one channel, row and column, got shape {tuple(x.shape)}")
    return x.shape[1]


def floating(name: str, x: Tensor) -> None:
    """Require a floating-point x."""
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating-point, got {x.dtype}")


def shape(name: str, what: str, tensor: Tensor, wanted: tuple[int | str, ...]) -> None:
    """Require a shape; a string in ``wanted`` stands for any size and names it in the message."""
    fits = tensor.dim() == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(tensor.shape, wanted, strict=True))
    if not fits:
        expected = "[" + ", ".join(map(str, wanted)) + "]"
        raise ValueError(f"{name}: {what} must have shape {expected}, got {tuple(tensor.shape)}")


def odd_kernel(name: str, what: str, tensor: Tensor, wanted: tuple[int | str, ...]) -> None:
    """Require a shape that ends in an odd square kernel."""
    shape(name, what, tensor, wanted)
    height, width = tensor.shape[-2:]
    if height != width or height % 2 == 0:
        raise ValueError(f"{name}: {what} must have an odd square kernel, got {height}×{width}")


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


def same_device(name: str, **tensors: Tensor) -> None:
    """Require all tensors on the device of the first."""
    _alike(name, ValueError, "device", {what: tensor.device for what, tensor in tensors.items()})


def same_dtype(name: str, **tensors: Tensor) -> None:
    """Require one dtype: of all tensors, or under autocast of all but the first, which autocast may have cast."""
    first, *_ = tensors.values()
    dtypes = {what: tensor.dtype for what, tensor in tensors.items()}
    if torch.is_autocast_enabled(first.device.type):
        dtypes.pop(next(iter(dtypes)))
    _alike(name, TypeError, "dtype", dtypes)


def _alike(name: str, error: type[Exception], property_name: str, values: dict[str, object]) -> None:
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{what} {value}" for what, value in values.items())
        raise error(f"{name}: all tensors must have the same {property_name}, got {listed}")
