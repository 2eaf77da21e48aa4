"""An activation read with columns innermost, copied to channels innermost, for kernels that read channels in vectors.

In bytes of activations, T each: it reads x and writes the copy, 2T, which is all that it does and what bounds it. Along
columns a tap begins anywhere, so that a kernel reads single elements, of every tap again; channels are read in vectors.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..triton_support import CompileCase, ceil_div, itemsize, jit, launchable, on_device_of, tl, vector_length, wide
from .triton_tiles import in_elements, locate, sum_of, times

_SITES, _CHANNELS, _WARPS = 64, 64, 4
"""Of a tile."""


@jit
def _to_channels_last_kernel(x, copy, size_d, size_h, size_w, step_n, step_c, step_d, step_h, step_w,
                             CHANNELS: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
                             BLOCK_SITES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """copy: [images, sites, channels]; a program has a tile of one image.

    With a VECTOR the sites follow one another, a vector goes on in the next row, and size_w, the only size, step_n and
    step_c count vectors.
    """
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    plane = size_d * size_h * size_w * VECTOR
    channel_blocks: tl.constexpr = ceil_div(CHANNELS, BLOCK_CHANNELS)
    site_blocks = tl.cdiv(plane, BLOCK_SITES)
    channel = tl.program_id(0) % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    site = tl.program_id(0) // channel_blocks % site_blocks * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
    image = tl.cast(tl.program_id(0) // channel_blocks // site_blocks, index_type)
    has_channel, has_site = channel < CHANNELS, site < plane
    x += image * (tl.cast(step_n, index_type) * VECTOR)
    place = site
    if VECTOR == 1:
        _, position = locate(site, (size_d, size_h, size_w))
        place = sum_of(times(position, in_elements(step_d, step_h, step_w, 1, index_type)))
    row = channel * (tl.cast(step_c, index_type) * VECTOR)
    tile = tl.load(x + row[:, None] + place[None, :], has_channel[:, None] & has_site[None, :], 0.0)
    copy += image * plane * CHANNELS
    site = tl.cast(site, index_type) * CHANNELS
    tl.store(copy + site[:, None] + channel[None, :], tl.trans(tile), has_site[:, None] & has_channel[None, :])


def to_channels_last(x: Tensor) -> Tensor:
    """A copy of x ``[N, C, *spatial]``, of any strides, dense with channels innermost; 1 launch."""
    copy = x.new_empty(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
    if x.numel() == 0:
        return copy
    programs = x.shape[0] * ceil_div(math.prod(x.shape[2:]), _SITES) * ceil_div(x.shape[1], _CHANNELS)
    arguments, constants = _arguments(x)
    with on_device_of(x):
        launchable(_to_channels_last_kernel)[(programs,)](x, copy, *arguments, **constants, WIDE=wide(x, copy),
                                                          num_warps=_WARPS)
    return copy


def _arguments(x: Tensor) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Sizes and steps as the kernel takes them, and its constants."""
    missing = 5 - x.dim()
    sizes, strides = (*[1] * missing, *x.shape[2:]), (*[0] * missing, *x.stride()[2:])
    plane = math.prod(sizes)
    steps = [x.stride(dimension) for dimension in (0, 1) if x.shape[dimension] > 1]
    vector = vector_length(x.dtype.itemsize, plane, *steps) if _follow(sizes, strides) else 1
    if vector > 1:
        sizes = (1, 1, plane // vector)
    return (*sizes, x.stride(0) // vector, x.stride(1) // vector, *strides), {
        "CHANNELS": x.shape[1], "VECTOR": vector, "BLOCK_SITES": _SITES, "BLOCK_CHANNELS": _CHANNELS}


def _follow(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether sites follow one another in memory."""
    return all(size == 1 or stride == math.prod(sizes[dimension + 1:])
               for dimension, (size, stride) in enumerate(zip(sizes, strides, strict=True)))


def compile_case(operand: str) -> CompileCase:
    """Of a plane of whole vectors."""
    element = "fp32" if operand == "tf32" else operand
    constants = {"size_d": 1, "size_h": 1, "step_w": 1, "CHANNELS": 256, "VECTOR": 16 // itemsize(operand),
                 "WIDE": False, "BLOCK_SITES": _SITES, "BLOCK_CHANNELS": _CHANNELS}
    signature = {name: f"*{element}" if name in ("x", "copy") else "i32"
                 for name in _to_channels_last_kernel.arg_names if name not in constants}
    loads = _SITES * _CHANNELS // (_WARPS * 32) * itemsize(operand) // 16
    return CompileCase("conv_relu to channels-last NCHW", _to_channels_last_kernel, signature, constants, _WARPS,
                       operand, 0, 128, loads)
