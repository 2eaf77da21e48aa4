"""ConvReLU's forward in Triton: y from x, and from weight and θ laid out by tap.

In bytes of activations, T each: it reads x and writes y, 2T, which is the least, and saves nothing. The taps read x
again through L1 and L2: channels are the outer loop and taps the inner, so that what one tap has read the next finds
there. In NCHW x is first copied to channels innermost (``layout.py``, 2T more), except for one tap or few
channels.

Two kernels: one has its taps unrolled, and takes every layout and list of taps. Of the other, taps and blocks of
channels are one loop, which keeps little in registers. Both read x through L1, which serves the taps; shared memory
bounds them. With many channels and outputs products take longer than loads, and the loop overlaps them: several
iterations load, past L1, while one is multiplied. That is bound by the matrix units and L2, which brings x for each tap
and the weights for each tile of sites: hence tiles as large as the sums fit in registers.

Launches, where parameters have no gaps: 2, one of them to lay out weight and θ by tap; for an x in NCHW 1 more,
the copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import groupby, product
from operator import itemgetter
from typing import Any

from torch import Tensor

from ...common.gpu.support import (
    architecture,
    ceil_div,
    constexpr_function,
    jit,
    launchable,
    on_device_of,
    operand_of,
    tl,
    vector_length,
    wide,
)
from ...common.layout import reads_channels_last
from .configs import Config, choose, swaps
from .layout import laid_out, to_channels_last
from .problem import Problem, constants_of, convolution, empty_activation, steps_of
from .tiles import (
    activated,
    grid_offset,
    in_elements,
    is_inside,
    load_matrix,
    load_tile,
    locate,
    offset_in,
    outside_unless,
    plus,
    store_in_pieces,
    store_tile,
    sum_of,
    tap_offset,
    tile_pointers,
    times,
)


@jit
def _load_operands(x, weight, threshold, position, size, steps, has_channel, has_output, tap, offset,
                   CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """What one tap multiplies: x [sites, channels], θ [channels], and the weight [outputs, channels].

    Depthwise the weight is [outputs]. ``x``, ``weight`` and ``threshold`` point at those of a tap 0 without an offset.
    """
    inside = is_inside(plus(position, offset), size)
    tile = load_tile(x + sum_of(times(offset, steps)), inside, has_channel, CHANNELS_LAST)
    theta = tl.load(threshold + tap * (GROUPS * CHANNELS), has_channel, 0.0)
    weight += tap * (GROUPS * OUTPUTS * CHANNELS)
    if CHANNELS == 1:
        return tile, theta, tl.load(weight, has_output, 0.0)
    else:
        return tile, theta, load_matrix(weight, has_output, has_channel)


@jit
def _from_bias(bias, output, has_output, BLOCK_SITES: tl.constexpr, SWAPPED: tl.constexpr, dtype: tl.constexpr):
    """What the sums [sites, outputs] begin with, or SWAPPED [outputs, sites]: added last, it would take registers."""
    begin = tl.zeros(output.shape, dtype)
    if bias is not None:
        begin = tl.load(bias + output, has_output, 0.0).to(dtype)
    if SWAPPED:
        return tl.broadcast_to(begin[:, None], (output.shape[0], BLOCK_SITES))
    else:
        return tl.broadcast_to(begin[None, :], (BLOCK_SITES, output.shape[0]))


@jit
def _add_product(sums, operands, BELOW: tl.constexpr, CHANNELS: tl.constexpr, SWAPPED: tl.constexpr,
                 PRECISION: tl.constexpr):
    """``sums`` [sites, outputs], or SWAPPED [outputs, sites]."""
    tile, theta, weight = operands
    tile = activated(tile, theta, BELOW)
    if CHANNELS == 1:
        return sums + tile.to(sums.dtype) * weight[None, :].to(sums.dtype)
    elif SWAPPED:
        return tl.dot(weight, tl.trans(tile), sums, PRECISION, out_dtype=sums.dtype)
    else:
        return tl.dot(tile, tl.trans(weight), sums, PRECISION, out_dtype=sums.dtype)


@jit
def conv_relu_forward_kernel(x, weight, threshold, bias, y, sites, out_d, out_h, out_w, in_d, in_h, in_w, step_n,
                             step_d, step_h, step_w, step_c, TAPS: tl.constexpr, GRID: tl.constexpr,
                             STRIDE: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
                             VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, Y_CHANNELS_LAST: tl.constexpr,
                             Y_VECTOR: tl.constexpr, BLOCK_SITES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                             BLOCK_OUTPUTS: tl.constexpr, SWAPPED: tl.constexpr, WIDE: tl.constexpr,
                             PRECISION: tl.constexpr):
    """weight: [T, outputs, channels of a group]; threshold: [T, channels]; x's steps count vectors, step_c elements."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    # Depthwise, a block of outputs runs through all groups, each output with its own channel.
    blocks: tl.constexpr = ceil_div(GROUPS * OUTPUTS if CHANNELS == 1 else OUTPUTS, BLOCK_OUTPUTS)
    groups: tl.constexpr = 1 if CHANNELS == 1 else GROUPS
    output = tl.program_id(0) % blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    has_output = output < (GROUPS * OUTPUTS if CHANNELS == 1 else OUTPUTS)
    group = tl.program_id(0) // blocks % groups
    channel = output // OUTPUTS if CHANNELS == 1 else tl.arange(0, BLOCK_CHANNELS)
    step_c = tl.cast(step_c, index_type)
    steps = in_elements(step_d, step_h, step_w, VECTOR, index_type)
    size = in_d, in_h, in_w
    site = tl.cast(tl.program_id(0) // (blocks * groups), index_type) * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
    has_site = site < sites
    image, position = locate(site, (out_d, out_h, out_w))
    position = times(position, STRIDE)
    first = image * (tl.cast(step_n, index_type) * VECTOR) + sum_of(times(position, steps))
    position = outside_unless(has_site, position)
    x = tile_pointers(x + group * CHANNELS * step_c, first, channel * step_c, CHANNELS_LAST)
    threshold += group * CHANNELS + channel
    if CHANNELS == 1:
        weight += output
    else:
        weight += (group * OUTPUTS + output)[:, None] * CHANNELS + channel[None, :]
    sums = _from_bias(bias, group * OUTPUTS + output, has_output, BLOCK_SITES, SWAPPED, accumulator_type)
    for k in range(0, CHANNELS, BLOCK_CHANNELS):
        has_channel = has_output if CHANNELS == 1 else k + channel < CHANNELS
        if GRID is None:
            for t in tl.static_range(len(TAPS)):
                operands = _load_operands(x, weight, threshold, position, size, steps, has_channel, has_output, t,
                                          tap_offset(t, TAPS), CHANNELS, OUTPUTS, GROUPS, CHANNELS_LAST)
                sums = _add_product(sums, operands, TAPS[t][3], CHANNELS, SWAPPED, PRECISION)
        else:
            for t in range(GRID[2][0] * GRID[2][1] * GRID[2][2]):
                operands = _load_operands(x, weight, threshold, position, size, steps, has_channel, has_output, t,
                                          grid_offset(t, GRID), CHANNELS, OUTPUTS, GROUPS, CHANNELS_LAST)
                sums = _add_product(sums, operands, False, CHANNELS, SWAPPED, PRECISION)
        x += BLOCK_CHANNELS * step_c
        weight += BLOCK_CHANNELS
        threshold += BLOCK_CHANNELS
    output += group * OUTPUTS
    if SWAPPED:
        sums = tl.trans(sums)
    plane = tl.multiple_of(tl.cast(out_d, index_type) * out_h * out_w, Y_VECTOR)
    has_site = site < tl.multiple_of(sites, Y_VECTOR)
    store_tile(y, sums, site, output, has_site, has_output, plane, GROUPS * OUTPUTS, Y_CHANNELS_LAST)


# ---- taps and blocks of channels in one loop --------------------------------------------------------------


@constexpr_function
def _run(run, runs):
    """The run of that number: before Triton 3.8 kernels take no tuple out of a tuple of them."""
    return runs[run]


@constexpr_function
def _taps_before(run, runs):
    """How many taps the runs before one have."""
    return sum(math.prod(count) for _, _, count, _ in runs[:run])


@jit
def _advanced(counter, COUNT: tl.constexpr):
    """A counter's next value, and whether it starts again."""
    again = counter + 1 == COUNT
    return tl.where(again, 0, counter + 1), again


@jit
def _add_run(sums, x, weight, threshold, place, row, position, size, steps, has_output, run: tl.constexpr,
             RUNS: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
             GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, STAGES: tl.constexpr,
             SWAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """``sums`` with the products of a run of taps, of TAPS in all: one loop, so that the next operands always load.

    What carries it on is counted, not divided: to the next tap of a line, line, slab, and block of channels.
    """
    grid: tl.constexpr = _run(run, RUNS)
    first: tl.constexpr = grid[0]
    step: tl.constexpr = grid[1]
    count: tl.constexpr = grid[2]
    before: tl.constexpr = _taps_before(run, RUNS)
    taps: tl.constexpr = count[0] * count[1] * count[2]
    channel = tl.arange(0, BLOCK_CHANNELS)
    has_tap = tl.zeros([place.shape[0]], tl.int32)
    for t in tl.static_range(taps):
        has_tap |= is_inside(plus(position, offset_in(t, first, step, count)), size).to(tl.int32) << t
    deep, down, along = times(steps, step)
    next_line = down - along * count[2]
    next_slab = deep - down * count[1]
    next_block = BLOCK_CHANNELS - deep * count[0]
    if count[0] == 1:  # the only slab ends where the block does
        next_block += next_slab
    x += sum_of(times(steps, first))
    weight += before * (GROUPS * OUTPUTS * BLOCK_CHANNELS)
    threshold += before * (GROUPS * BLOCK_CHANNELS)
    column = 0
    line = 0
    tap = 0
    left = CHANNELS
    for _ in tl.range(0, taps * ceil_div(CHANNELS, BLOCK_CHANNELS), num_stages=STAGES):
        has_place = (((has_tap >> tap) & 1) != 0)[:, None]
        if CHANNELS % BLOCK_CHANNELS > 0:
            has_place &= (channel < left)[None, :]
        tile = tl.load(x + place, has_place, 0.0)
        theta = tl.load(threshold + channel)
        if OUTPUTS % BLOCK_OUTPUTS > 0:
            matrix = tl.load(weight + row, has_output[:, None], 0.0)
        else:
            matrix = tl.load(weight + row)
        sums = _add_product(sums, (tile, theta, matrix), grid[3], CHANNELS, SWAPPED, PRECISION)
        column, line_ends = _advanced(column, count[2])
        tap, block_ends = _advanced(tap, taps)
        x += along + tl.where(line_ends, next_line, 0) + tl.where(block_ends, next_block, 0)
        weight += GROUPS * OUTPUTS * BLOCK_CHANNELS
        threshold += GROUPS * BLOCK_CHANNELS
        if count[0] > 1:
            line, slab_ends = _advanced(line, count[1] * count[2])
            x += tl.where(slab_ends, next_slab, 0)
        if taps < TAPS:
            weight += tl.where(block_ends, (TAPS - taps) * (GROUPS * OUTPUTS * BLOCK_CHANNELS), 0)
            threshold += tl.where(block_ends, (TAPS - taps) * (GROUPS * BLOCK_CHANNELS), 0)
        if CHANNELS % BLOCK_CHANNELS > 0:
            left -= tl.where(block_ends, BLOCK_CHANNELS, 0)
    return sums


@jit
def conv_relu_looped_forward_kernel(x, weight, threshold, bias, y, sites, out_d, out_h, out_w, in_d, in_h, in_w, step_n,
                                    step_d, step_h, step_w, step_c, RUNS: tl.constexpr, TAPS: tl.constexpr,
                                    STRIDE: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
                                    GROUPS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                                    Y_CHANNELS_LAST: tl.constexpr, Y_VECTOR: tl.constexpr, BLOCK_SITES: tl.constexpr,
                                    BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, STAGES: tl.constexpr,
                                    SWAPPED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """x is CHANNELS_LAST, and y if Y_CHANNELS_LAST. weight: [blocks of channels, T, outputs, BLOCK_CHANNELS];
    threshold: [blocks of channels, T, groups, BLOCK_CHANNELS]. x's steps count vectors.

    RUNS of taps are grids (first, step, count, below) of at most 32, TAPS in all.
    """
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    blocks: tl.constexpr = ceil_div(OUTPUTS, BLOCK_OUTPUTS)
    output = tl.program_id(0) % blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    has_output = output < OUTPUTS
    group = tl.program_id(0) // blocks % GROUPS
    output += group * OUTPUTS
    channel = tl.arange(0, BLOCK_CHANNELS)
    steps = in_elements(step_d, step_h, step_w, VECTOR, index_type)
    site = tl.cast(tl.program_id(0) // (blocks * GROUPS), index_type) * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
    has_site = site < sites
    image, position = locate(site, (out_d, out_h, out_w))
    position = times(position, STRIDE)
    place = image * (tl.cast(step_n, index_type) * VECTOR) + sum_of(times(position, steps))
    position = outside_unless(has_site, position)
    place = place[:, None] + (channel * tl.cast(step_c, index_type))[None, :]
    row = output[:, None] * BLOCK_CHANNELS + channel[None, :]
    x += group * CHANNELS
    threshold += group * BLOCK_CHANNELS
    sums = _from_bias(bias, output, has_output, BLOCK_SITES, SWAPPED, accumulator_type)
    size = in_d, in_h, in_w
    for r in tl.static_range(len(RUNS)):
        sums = _add_run(sums, x, weight, threshold, place, row, position, size, steps, has_output, r, RUNS,
                        TAPS, CHANNELS, OUTPUTS, GROUPS, BLOCK_CHANNELS, BLOCK_OUTPUTS, STAGES, SWAPPED,
                        PRECISION)
    if SWAPPED:
        sums = tl.trans(sums)
    plane = tl.multiple_of(tl.cast(out_d, index_type) * out_h * out_w, Y_VECTOR)
    has_site = site < tl.multiple_of(sites, Y_VECTOR)
    if Y_CHANNELS_LAST:
        store_tile(y, sums, site, output, has_site, has_output, plane, GROUPS * OUTPUTS, True)
    else:
        first = tl.program_id(0) % blocks * BLOCK_OUTPUTS
        y += (group * OUTPUTS + first) * plane
        store_in_pieces(y, sums, site, has_site, first, plane, OUTPUTS, GROUPS * OUTPUTS)


# ---- launches ----------------------------------------------------------------------------------------------
# The operators' signatures, those of the CPU's. x has stride 1 along channels or along columns, and y and dx are
# laid out as x.

_MOST_UNROLLED = 50
"""A grid of more taps is a loop of the compiled kernel: its code would not fit the instruction cache."""


def conv_relu(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, stride: Sequence[int],
              pads: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """Launch on x ``[N, C, *spatial]``, weight ``[O, C // groups, *kernel]``, threshold ``[C, *kernel]``; returns y.

    ``pads`` has two numbers per dimension, before and after. Parameters are of x's dtype, float32 or float64.
    """
    problem = convolution(x, weight, stride, pads, dilation, groups, reads_channels_last("conv_relu_triton", x))
    return _launch(problem, weight.flatten(2), threshold.flatten(1), bias, x.dim() - 2)


def conv_relu_taps(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, offsets: Sequence[int],
                   below: Sequence[int]) -> Tensor:
    """Launch a list of taps, such as Reborn folds into, on x ``[N, C, H, W]``; returns y ``[N, O, H, W]``.

    Weight is ``[O, C, T]``, threshold ``[C, T]``, ``offsets`` ``[2 · T]``, each tap's (h, w). A tap that is ``below``
    takes min(x, θ).
    """
    taps = tuple((0, *offset, bool(flag)) for *offset, flag in zip(offsets[::2], offsets[1::2], below, strict=True))
    problem = Problem(x[:, :, None], taps, None, (1, 1, 1), (1, *x.shape[2:]), weight.shape[1], weight.shape[0], 1,
                      reads_channels_last("conv_relu_taps_triton", x))
    return _launch(problem, weight, threshold, bias, 2)


def _launch(problem: Problem, weight: Tensor, threshold: Tensor, bias: Tensor | None, dimensions: int) -> Tensor:
    """Launch with weight [O, C // groups, T] and threshold [C, T]; y has ``dimensions`` spatial dimensions."""
    x = problem.x
    shape = (x.shape[0], weight.shape[0], *problem.out_size[-dimensions:])
    y = empty_activation(shape, x, problem.channels_last)
    if y.numel() == 0:
        return y
    operand = operand_of(x)
    config = choose("forward", problem.channels, problem.outputs, len(problem.taps), operand, architecture(x),
                    problem.channels_last)
    if problem.converts:
        problem = problem.with_copy(to_channels_last(x))
    kernel, constants = forward_kernel_for(problem, config, operand, architecture(x))
    width = config.channels if kernel is conv_relu_looped_forward_kernel else problem.channels
    by_tap = laid_out(problem, weight, threshold, width)
    sites = y.numel() // y.shape[1]
    programs = ceil_div(sites, config.sites) * problem.blocks(problem.outputs, config.outputs)
    with on_device_of(x):
        launchable(kernel)[(programs,)](
            problem.x, *by_tap, None if bias is None else bias.contiguous(), y, sites, *problem.out_size, *x.shape[2:],
            *steps_of(problem.x, constants["VECTOR"]), **constants, WIDE=wide(problem.x, y), num_warps=config.warps,
            num_stages=1)
    return y


def forward_kernel_for(problem: Problem, config: Config, operand: str, architecture: str) -> tuple[Any, dict[str, Any]]:
    """The kernel that runs with this tiling, and its constants."""
    swapped = problem.matrix and swaps(config.outputs, config.stages, operand, architecture, problem.channels_last)
    y_last = problem.users_channels_last
    y_vector = 1 if y_last else vector_length(problem.x.dtype.itemsize, math.prod(problem.out_size))
    constants = constants_of(problem, config, operand) | {
        "Y_VECTOR": y_vector, "Y_CHANNELS_LAST": y_last, "SWAPPED": swapped}
    if problem.channels_last and (config.stages > 1 or (swapped and config.channels < problem.channels)):
        runs = _runs(problem.taps)
        if runs is not None:
            return conv_relu_looped_forward_kernel, constants | {
                "RUNS": runs, "TAPS": len(problem.taps), "STAGES": config.stages}
    looped = problem.grid is not None and len(problem.taps) > _MOST_UNROLLED
    return conv_relu_forward_kernel, constants | {
        "TAPS": None if looped else problem.taps, "GRID": problem.grid if looped else None}


@cache
def _runs(taps: tuple[tuple[int, int, int, bool], ...]) -> tuple[tuple[Any, ...], ...] | None:
    """The taps as grids (first, step, count, below) of at most 32, one after another, or None if they are not that."""
    runs = tuple(_as_run(tuple(run), below) for below, run in groupby(taps, itemgetter(3)))
    return None if None in runs else runs


def _as_run(taps: tuple[tuple[int, int, int, bool], ...], below: bool) -> tuple[Any, ...] | None:
    places = [tuple(dict.fromkeys(tap[axis] for tap in taps)) for axis in range(3)]
    first, count = tuple(place[0] for place in places), tuple(map(len, places))
    step = tuple(place[1] - place[0] if len(place) > 1 else 1 for place in places)
    grid = product(*(range(f, f + s * c, s) for f, s, c in zip(first, step, count, strict=True)))
    return (first, step, count, below) if len(taps) <= 32 and tuple((*at, below) for at in grid) == taps else None
