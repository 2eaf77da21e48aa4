"""Activations [N, C, H, W] laid out as NCHW or as channels-last."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.layout import reads_channels_last


def empty_as(x: Tensor, channels_last: bool) -> Tensor:
    """An activation without gaps, of x's shape and dtype."""
    return torch.empty_like(x, memory_format=_memory_format(channels_last))


def empty_like(x: Tensor) -> Tensor:
    """An activation as operators return it: without gaps, of x's shape, dtype and layout."""
    return empty_as(x, reads_channels_last("leni_kernels", x))


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """x, or a copy where its strides are not those of :func:`empty_as`."""
    return x.contiguous(memory_format=_memory_format(channels_last))


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
