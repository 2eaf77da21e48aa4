"""The two layouts of an activation [N, C, H, W]: NCHW, and channels-last."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool | None:
    """Whether the kernels read x with channels (True) or columns (False) at stride 1; None if neither is."""
    _, channel, _, column = x.stride()
    if column == 1 or channel == 1:
        return column != 1
    # The stride of a dimension of size 1 says nothing.
    return False if x.shape[3] == 1 else True if x.shape[1] == 1 else None


def empty_as(x: Tensor, channels_last: bool) -> Tensor:
    """An activation without gaps, of x's shape and dtype."""
    return torch.empty_like(x, memory_format=_memory_format(channels_last))


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """x, or a copy where its strides are not those of :func:`empty_as`."""
    return x.contiguous(memory_format=_memory_format(channels_last))


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
