"""ConvReLU in one, two and three dimensions, in plain PyTorch; every backend is tested against this file.

Gao, Cai, Ji 2020, eq. 7-8.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pointwise.reference import ada_relu

Pads = tuple[tuple[int, int], ...]
"""The sites added before and after x, per spatial dimension."""

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def extent(kernel: int, dilation: int) -> int:
    """The sites that a dilated kernel spans."""
    return dilation * (kernel - 1) + 1


def conv_relu(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, stride: tuple[int, ...],
              pads: Pads, dilation: tuple[int, ...], groups: int) -> Tensor:
    """``y[n,o,q] = bias[o] + Σ_c Σ_k weight[o,c,k] · max(x̂[n,c, q·stride + k·dilation], threshold[c,k])``.

    x̂ is x ``[N, C, *spatial]`` with zeros added before the threshold; weight ``[O, C // groups, *kernel]``,
    threshold ``[C, *kernel]``, bias ``[O]``. At ties the gradient goes to the threshold. Keeps channels-last.
    """
    kernel = weight.shape[2:]
    padded = F.pad(x, [count for pair in reversed(pads) for count in pair])
    spans = [size - extent(k, d) + 1 for size, k, d in zip(padded.shape[2:], kernel, dilation, strict=True)]
    taps = []
    for tap in product(*map(range, kernel)):
        steps = zip(tap, dilation, spans, stride, strict=True)
        window = [slice(k * d, k * d + span, s) for k, d, span, s in steps]
        taps.append(ada_relu(padded[(..., *window)], threshold[(slice(None), *tap)]))
    columns = torch.cat(taps, dim=1)
    # With one group the order is right, and Inductor fails on a view saved for backward with symbolic sizes.
    if groups > 1:
        columns = columns.unflatten(1, (len(taps), groups, -1)).transpose(1, 2).flatten(1, 3)
    matrix = weight.flatten(2).transpose(1, 2).flatten(1)
    pointwise = matrix.reshape(*matrix.shape, *[1] * len(kernel))
    y = _CONVOLUTIONS[len(kernel)](columns, pointwise, bias, groups=groups)
    return y.contiguous(memory_format=_memory_format(x))


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_innermost = x.dim() > 3 and x.stride(1) == 1 and x.stride(-1) > 1
    channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return channels_last if channels_innermost else torch.contiguous_format
