"""What ConvReLU's Triton kernels have laid out for them: weight and θ by tap, and x with channels innermost.

Parameters are laid out at each call, in one launch. An activation read with columns innermost is copied to channels
innermost, for kernels that read channels in vectors: in bytes of activations, T each, that reads x and writes the copy,
2T, which is all that it does and what bounds it. Along columns a tap begins anywhere, so that a kernel reads single
elements, of every tap again.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ...common.gpu.support import ceil_div, jit, launchable, on_device_of, tl, vector_length, wide
from .problem import Problem
from .tiles import in_elements, locate, sum_of, times, without_nan

SITES, CHANNELS, WARPS = 64, 64, 4
"""Of a tile."""


@jit
def conv_relu_to_channels_last_kernel(x, copy, size_d, size_h, size_w, step_n, step_c, step_d, step_h, step_w,
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
    programs = x.shape[0] * ceil_div(math.prod(x.shape[2:]), SITES) * ceil_div(x.shape[1], CHANNELS)
    arguments, constants = copy_arguments(x)
    with on_device_of(x):
        launchable(conv_relu_to_channels_last_kernel)[(programs,)](x, copy, *arguments, **constants, WIDE=wide(x, copy),
                                                                   num_warps=WARPS)
    return copy


def copy_arguments(x: Tensor) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Sizes and steps as the kernel takes them, and its constants."""
    missing = 5 - x.dim()
    sizes, strides = (*[1] * missing, *x.shape[2:]), (*[0] * missing, *x.stride()[2:])
    plane = math.prod(sizes)
    steps = [x.stride(dimension) for dimension in (0, 1) if x.shape[dimension] > 1]
    vector = vector_length(x.dtype.itemsize, plane, *steps) if _follow(sizes, strides) else 1
    if vector > 1:
        sizes = (1, 1, plane // vector)
    return (*sizes, x.stride(0) // vector, x.stride(1) // vector, *strides), {
        "CHANNELS": x.shape[1], "VECTOR": vector, "BLOCK_SITES": SITES, "BLOCK_CHANNELS": CHANNELS}


def _follow(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether sites follow one another in memory."""
    return all(size == 1 or stride == math.prod(sizes[dimension + 1:])
               for dimension, (size, stride) in enumerate(zip(sizes, strides, strict=True)))


# ---- parameters ------------------------------------------------------------------------------------------


@jit
def conv_relu_lay_out_kernel(weight, threshold, weight_by_tap, threshold_by_tap, TAPS: tl.constexpr,
                             BELOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
                             WIDTH: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr):
    """Weight [outputs, channels of a group, T] and threshold [channels, T] by tap, and cast.

    In blocks of WIDTH channels of a group, the last one filled up with zeros: [blocks, T, outputs, WIDTH] and [blocks,
    T, groups, WIDTH]; a threshold has no NaN then, and BELOW says of each tap how, if any is. If TRANSPOSED, [T,
    channels, outputs of a group] and [T, channels].
    """
    width: tl.constexpr = OUTPUTS if TRANSPOSED else WIDTH
    rows: tl.constexpr = GROUPS * (CHANNELS if TRANSPOSED else OUTPUTS)
    numbers: tl.constexpr = TAPS * rows * (OUTPUTS if TRANSPOSED else ceil_div(CHANNELS, WIDTH) * WIDTH)
    programs: tl.constexpr = ceil_div(numbers, BLOCK)
    program = tl.program_id(0)
    if program < programs:
        number = program * BLOCK + tl.arange(0, BLOCK)
        row = number // width % rows
        tap = number // (width * rows) % TAPS
        if TRANSPOSED:
            output = row // CHANNELS * OUTPUTS + number % width
            channel = row % CHANNELS
        else:
            output = row
            channel = number // (width * rows * TAPS) * width + number % width
        mask = (number < numbers) & (channel < CHANNELS)
        values = tl.load(weight + (output * CHANNELS + channel) * TAPS + tap, mask, 0.0)
        tl.store(weight_by_tap + number, values.to(weight_by_tap.dtype.element_ty), number < numbers)
    else:
        number = (program - programs) * BLOCK + tl.arange(0, BLOCK)
        every: tl.constexpr = TAPS * GROUPS * (CHANNELS if TRANSPOSED else ceil_div(CHANNELS, WIDTH) * WIDTH)
        channels: tl.constexpr = CHANNELS if TRANSPOSED else WIDTH
        group = number // channels % GROUPS
        tap = number // (channels * GROUPS) % TAPS
        channel = number // (channels * GROUPS * TAPS) * channels + number % channels
        mask = (number < every) & (channel < CHANNELS)
        values = tl.load(threshold + (group * CHANNELS + channel) * TAPS + tap, mask, 0.0)
        if not TRANSPOSED:
            below = tap < 0
            for t in tl.static_range(len(BELOW)):
                below |= (tap == t) & BELOW[t]
            values = without_nan(values, below)
        tl.store(threshold_by_tap + number, values.to(threshold_by_tap.dtype.element_ty), number < every)


LAID_OUT = 1024
"""Of numbers, where a program lays out parameters."""


def laid_out(problem: Problem, weight: Tensor, threshold: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
    """What :func:`conv_relu_lay_out_kernel` makes of weight and threshold, in x's dtype; transposed without a width."""
    x, taps, channels = problem.x, len(problem.taps), problem.channels
    whole = channels if width is None else ceil_div(channels, width) * width
    by_tap = x.new_empty(weight.shape[0] * whole * taps), x.new_empty(problem.groups * whole * taps)
    below = tuple(tap[3] for tap in problem.taps) if problem.grid is None else ()
    with on_device_of(x):
        launchable(conv_relu_lay_out_kernel)[(sum(ceil_div(tensor.numel(), LAID_OUT) for tensor in by_tap),)](
            weight.contiguous(), threshold.contiguous(), *by_tap, TAPS=taps, BELOW=below, CHANNELS=channels,
            OUTPUTS=problem.outputs, GROUPS=problem.groups, WIDTH=width or channels, TRANSPOSED=width is None,
            BLOCK=LAID_OUT, num_warps=4)
    return by_tap
