"""What Reborn's Triton kernels share: tiles of x and z, and the library's deconvolution that makes z.

A tile is pixels by channels in either layout, and max(x, 0) is taken on the way to the matrix units. Where rows follow
each other without a gap, a plane is one row, so that narrow images have long vectors too. The tilings are those that
compile without spilling in the cases of ``tests/test_codegen.py``; the rest are not all compiled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.gpu.support import jit, tl
from ...two_branch.gpu.tiles import dense_offsets
from ...two_branch.layout import laid_out
from .. import reference
from .configs import TailConfig

# In the kernels ``width`` and the strides count vectors of VECTOR elements in NCHW, and the strides alone do in
# channels-last; stride_o is as in LENI's ``features.py``, and x is any activation that has stride 1 there. z, what is
# joined to it, and all that is written have no gaps.


@jit
def load_dense(base, image, row, column, inside, channel, height, columns, C: tl.constexpr,
               CHANNELS_LAST: tl.constexpr):
    """A [pixels, channels] tile of an activation without gaps."""
    offset = dense_offsets(image, row, column, channel, height, columns, C, CHANNELS_LAST)
    return tl.load(base + offset, inside[:, None] & (channel < C)[None, :], 0.0)


def joined_rows(channels_last: bool, x: Tensor, *grad: Tensor) -> tuple[Tensor, ...]:
    """The activations with each plane as one row, if in all of them a row begins where the one before it ends."""
    step = x.stride(3) if channels_last else 1
    steps = zip((x, *grad), (step, *(tensor.stride(3) for tensor in grad)), strict=True)
    if all(tensor.shape[2] == 1 or tensor.stride(2) == tensor.shape[3] * step for tensor, step in steps):
        return tuple(tensor.flatten(2)[:, :, None] for tensor in (x, *grad))
    return x, *grad


def extent_of(x: Tensor, vector: int, channels_last: bool) -> tuple[int, int, int]:
    """The rows of the image, the positions in a row, and the positions in all; in NCHW they are vectors."""
    columns = x.shape[3] if channels_last else x.shape[3] // vector
    return x.shape[2], columns, x.shape[0] * x.shape[2] * columns


def tail_constants(channels: int, vector: int, operand: str, config: TailConfig, channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "VECTOR": vector, "BLOCK_PIXELS": config.pixels, "BLOCK_CHANNELS": config.channels,
        "BLOCK_OUTPUTS": config.outputs, "CHANNELS_LAST": channels_last,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


# ---- the library's deconvolution ---------------------------------------------------------------------------
# D is ``[C, C // groups, k, k]``; z = D ⋆ᵀ min(x, 0) is laid out as x.


def deconvolve(x: Tensor, deconv_weight: Tensor, groups: int, channels_last: bool) -> Tensor:
    # A copy only where sizes of 1 let the library choose the other of two equal layouts.
    return laid_out(reference.reborn_deconvolve(x, deconv_weight.to(x.dtype), groups), channels_last)
