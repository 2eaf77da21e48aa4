"""The covariance of z in Triton, which the norms of a separable deconvolution need, from passes that there are.

T is the bytes of one activation. z less its mean is written once, by the folded kernel with a weight that picks it
(2T), and the pass to the weight's gradient multiplies it with itself, made again of x (2T); the map is freed then. One
pass that forms both operands on the chip would read x alone, 1T. So a separable block's forward pass moves 7T, not 3T.

The distances are rounded to x's dtype, as they are where the block multiplies them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forward import leni_folded
from .weight_gradient import leni_weight_gradient


def leni_covariance(x: Tensor, taps: Tensor, centre: Tensor) -> Tensor:
    """The mean ``[C, C]`` of ``(z − centre)·(z − centre)ᵀ``, for ``z = taps ⋆ᵀ min(x, 0)``, in taps' dtype.

    ``x`` ``[N, C, H, W]`` and taps ``[C, k, k]`` are as :func:`forward.leni_folded` takes them; 0 of an empty x.
    """
    channels = x.shape[1]
    if x.numel() == 0:
        return taps.new_zeros(channels, channels)
    distances = multiplied_distances(x, taps, torch.eye(channels, dtype=taps.dtype, device=x.device), centre)
    sums, _ = leni_weight_gradient(distances, x, taps, F.pad(centre, (channels, 0)))
    return sums[:, channels:] / (x.numel() // channels)


def multiplied_distances(x: Tensor, taps: Tensor, matrix: Tensor, centre: Tensor) -> Tensor:
    """``matrix · (z − centre)`` in x's dtype, laid out as x, for matrix ``[C, C]`` and centre ``[C]``."""
    channels = x.shape[1]
    weight = F.pad(matrix, (channels, 0))  # nothing of max(x, 0)
    return leni_folded(x, taps, weight, torch.zeros_like(centre), F.pad(centre, (channels, 0)))
