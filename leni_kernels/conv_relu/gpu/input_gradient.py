"""The gradient of x in ConvReLU, in Triton.

In bytes of activations, T each: it moves 3T, x and y's gradient read and dx written; every tap has a product of its
own, because x against its threshold decides who takes that. With few channels adding it up bounds it, and L1, which
serves the taps; with many L2, of a pipeline.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ...common.gpu.packed import add_where_above
from ...common.gpu.support import (
    architecture,
    ceil_div,
    constexpr_function,
    jit,
    launchable,
    on_device_of,
    operand_of,
    tl,
    wide,
)
from .configs import Config, choose, swaps
from .layout import laid_out
from .problem import Problem, gradient_constants, steps_of
from .tiles import (
    in_elements,
    is_below,
    is_inside,
    load_matrix,
    load_tile,
    locate,
    outside_unless,
    plus,
    store_in_pieces,
    store_tile,
    sum_of,
    tile_pointers,
    times,
)

# ---- the gradient of x -------------------------------------------------------------------------------------
# The loop over blocks of outputs, or over taps where there is one block, is a pipeline of as many stages as the tiling
# has, which loads past L1; with one stage the loads go through it. Taps are not unrolled: the compiler would mix them,
# with the products of several in registers. Which of a site's taps reach y is kept in the bits of a number.


@constexpr_function
def _period(step: int, stride: int) -> int:
    """Of taps at every ``step``, every how many-th brings sites of one residue modulo ``stride`` to output sites."""
    from math import gcd  # torch.compile takes the function into a file without this one's imports

    return stride // gcd(step, stride)


@constexpr_function
def _inverse(number: int, modulus: int) -> int:
    return pow(number, -1, modulus)


@jit
def _taps_reaching(residue, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr, STRIDE: tl.constexpr):
    """Of COUNT taps along a dimension, at FIRST and every STEP, those that bring x's sites of a residue modulo STRIDE
    to output sites: the first one's number, how far after the site in x its output site is, and how many there are."""
    if STRIDE == 1:
        return 0, -FIRST, COUNT
    else:
        period: tl.constexpr = _period(STEP, STRIDE)
        common: tl.constexpr = STRIDE // period
        lag = residue - FIRST
        first = lag // common * _inverse(STEP // common, period) % period
        count = tl.where((lag % common == 0) & (first < COUNT), tl.cdiv(COUNT - first, period), 0)
        return first, (lag - first * STEP) // STRIDE, count


@constexpr_function
def _most(step: int, count: int, stride: int) -> int:
    """How many taps along a dimension reach output sites at most."""
    return ceil_div(count, _period(step, stride))


@jit
def _bits_inside(position, size, shift, FIELD: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr,
                 STRIDE: tl.constexpr):
    """For each tap along a dimension that reaches output sites a bit from FIELD on: whether that site is in y."""
    bits = tl.zeros_like(position).to(tl.int32)
    for i in tl.static_range(_most(STEP, COUNT, STRIDE)):
        place = position + (shift - i * (STEP * _period(STEP, STRIDE) // STRIDE))
        bits |= is_below(place, size).to(tl.int32) << (FIELD + i)
    return bits


@jit
def _next(place, count):
    """The place after one in a grid of so many."""
    w = place[2] + 1
    wraps = w == count[2]
    w = tl.where(wraps, 0, w)
    h = place[1] + wraps.to(tl.int32)
    wraps = h == count[1]
    return place[0] + wraps.to(tl.int32), tl.where(wraps, 0, h), w


@jit
def _add_product(gradient, grad, weight, inside, has_channel, has_output, CHANNELS: tl.constexpr,
                 CHANNELS_LAST: tl.constexpr, SWAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """``gradient`` plus that of a block of outputs; depthwise, of one output of each channel.

    It is [sites, channels], or SWAPPED [channels, sites].
    """
    if CHANNELS == 1:
        scale = tl.load(weight, has_channel, 0.0)[None, :].to(gradient.dtype)
        return gradient + load_tile(grad, inside, has_channel, CHANNELS_LAST).to(gradient.dtype) * scale
    else:
        tile = load_tile(grad, inside, has_output, CHANNELS_LAST)
        matrix = load_matrix(weight, has_channel, has_output)
        if SWAPPED:
            return tl.dot(matrix, tl.trans(tile), gradient, PRECISION, out_dtype=gradient.dtype)
        else:
            return tl.dot(tile, tl.trans(matrix), gradient, PRECISION, out_dtype=gradient.dtype)


@jit
def conv_relu_input_gradient_kernel(x, weight, threshold, grad, dx, sites, span_d, span_h, span_w, in_d, in_h, in_w,
                                    out_d, out_h, out_w, step_n, step_d, step_h, step_w, step_c, grad_step_n,
                                    grad_step_d, grad_step_h, grad_step_w, grad_step_c, GRID: tl.constexpr,
                                    STRIDE: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
                                    GROUPS: tl.constexpr, VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
                                    CHANNELS_LAST: tl.constexpr, DX_CHANNELS_LAST: tl.constexpr,
                                    BLOCK_SITES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                                    BLOCK_OUTPUTS: tl.constexpr, STAGES: tl.constexpr, SWAPPED: tl.constexpr,
                                    PAIRS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """weight: [T, channels, outputs of a group]; threshold: [T, channels].

    x's sites are dealt out by their residues modulo STRIDE: all sites of a program then meet the same taps. ``span`` is
    how many each residue has in each dimension. Depthwise an iteration has one output of each channel.
    """
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    every: tl.constexpr = GROUPS if CHANNELS == 1 else CHANNELS
    blocks: tl.constexpr = ceil_div(every, BLOCK_CHANNELS)
    groups: tl.constexpr = 1 if CHANNELS == 1 else GROUPS
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    has_channel = channel < every
    group = tl.program_id(0) // blocks % groups
    place = tl.program_id(0) // (blocks * groups)
    residues: tl.constexpr = STRIDE[0] * STRIDE[1] * STRIDE[2]
    residue = place % residues
    residue = residue // (STRIDE[1] * STRIDE[2]), residue // STRIDE[2] % STRIDE[1], residue % STRIDE[2]
    size = in_d, in_h, in_w
    out_size = out_d, out_h, out_w
    number = tl.cast(place // residues, index_type) * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
    image, position = locate(number, (span_d, span_h, span_w))
    site = plus(times(position, STRIDE), residue)
    inside = (number < sites) & is_inside(site, size)
    step_c = tl.cast(step_c, index_type)
    steps = in_elements(step_d, step_h, step_w, VECTOR, index_type)
    first = image * (tl.cast(step_n, index_type) * VECTOR) + sum_of(times(site, steps))
    x = tile_pointers(x + group * CHANNELS * step_c, first, channel * step_c, CHANNELS_LAST)
    values = load_tile(x, inside, has_channel, CHANNELS_LAST)
    output = channel * OUTPUTS if CHANNELS == 1 else tl.arange(0, BLOCK_OUTPUTS)
    step_c = tl.cast(grad_step_c, index_type)
    steps = in_elements(grad_step_d, grad_step_h, grad_step_w, GRAD_VECTOR, index_type)
    first = image * (tl.cast(grad_step_n, index_type) * GRAD_VECTOR) + sum_of(times(position, steps))
    grad = tile_pointers(grad + group * OUTPUTS * step_c, first, output * step_c, CHANNELS_LAST)
    threshold += group * CHANNELS + channel
    if CHANNELS == 1:
        weight += output
    else:
        weight += (group * CHANNELS + channel)[:, None] * OUTPUTS + output[None, :]

    tap_d, shift_d, count_d = _taps_reaching(residue[0], GRID[0][0], GRID[1][0], GRID[2][0], STRIDE[0])
    tap_h, shift_h, count_h = _taps_reaching(residue[1], GRID[0][1], GRID[1][1], GRID[2][1], STRIDE[1])
    tap_w, shift_w, count_w = _taps_reaching(residue[2], GRID[0][2], GRID[1][2], GRID[2][2], STRIDE[2])
    period_d: tl.constexpr = _period(GRID[1][0], STRIDE[0])
    period_h: tl.constexpr = _period(GRID[1][1], STRIDE[1])
    period_w: tl.constexpr = _period(GRID[1][2], STRIDE[2])
    field_h: tl.constexpr = _most(GRID[1][0], GRID[2][0], STRIDE[0])
    field_w: tl.constexpr = field_h + _most(GRID[1][1], GRID[2][1], STRIDE[1])
    # Else a tap's sites are compared with the sizes: along a line of many taps there are not bits enough.
    in_bits: tl.constexpr = field_w + _most(GRID[1][2], GRID[2][2], STRIDE[2]) <= 31
    has_site = number < sites
    if in_bits:
        bits = _bits_inside(position[0], out_d, shift_d, 0, GRID[1][0], GRID[2][0], STRIDE[0])
        bits |= _bits_inside(position[1], out_h, shift_h, field_h, GRID[1][1], GRID[2][1], STRIDE[1])
        bits |= _bits_inside(position[2], out_w, shift_w, field_w, GRID[1][2], GRID[2][2], STRIDE[2])
        bits = tl.where(has_site, bits, 0)
    else:
        position = outside_unless(has_site, position)
    width: tl.constexpr = 1 if CHANNELS == 1 else BLOCK_OUTPUTS
    output_blocks: tl.constexpr = ceil_div(OUTPUTS, width)
    if SWAPPED:
        values = tl.trans(values)
    sums = tl.zeros(values.shape, accumulator_type)
    none = tl.program_id(0) * 0
    place = none, none, none
    for _ in tl.range(0, count_d * count_h * count_w, num_stages=STAGES if output_blocks == 1 else 1):
        line = (tap_d + place[0] * period_d) * GRID[2][1] + (tap_h + place[1] * period_h)
        tap = line * GRID[2][2] + (tap_w + place[2] * period_w)
        shift = (shift_d - place[0] * (GRID[1][0] * period_d // STRIDE[0]),
                 shift_h - place[1] * (GRID[1][1] * period_h // STRIDE[1]),
                 shift_w - place[2] * (GRID[1][2] * period_w // STRIDE[2]))
        if in_bits:
            wanted = (1 << place[0]) | (1 << (field_h + place[1])) | (1 << (field_w + place[2]))
            inside = (bits & wanted) == wanted
        else:
            inside = is_inside(plus(shift, position), out_size)
        of_grad, of_weight = grad + sum_of(times(shift, steps)), weight + tap * (GROUPS * CHANNELS * OUTPUTS)
        gradient = tl.zeros_like(sums)
        if output_blocks == 1:
            gradient = _add_product(gradient, of_grad, of_weight, inside, has_channel, output < OUTPUTS, CHANNELS,
                                    CHANNELS_LAST, SWAPPED, PRECISION)
        else:
            for first_output in tl.range(0, OUTPUTS, width, num_stages=STAGES):
                gradient = _add_product(gradient, of_grad, of_weight, inside, has_channel,
                                        first_output + output < OUTPUTS, CHANNELS, CHANNELS_LAST, SWAPPED,
                                        PRECISION)
                of_grad += width * step_c
                of_weight += width
        theta = tl.load(threshold + tap * (GROUPS * CHANNELS), has_channel, 0.0)
        theta = theta[:, None] if SWAPPED else theta[None, :]
        sums = add_where_above(sums, gradient, values, tl.broadcast_to(theta, values.shape), PAIRS)
        place = _next(place, (count_d, count_h, count_w))
    if SWAPPED:
        sums = tl.trans(sums)
    if residues > 1:
        has_site &= is_inside(site, size)
        number = ((image * in_d + site[0]) * in_h + site[1]) * in_w + site[2]
    plane = tl.cast(in_d, index_type) * in_h * in_w
    if DX_CHANNELS_LAST:
        store_tile(dx, sums, number, group * CHANNELS + channel, has_site, has_channel, plane, GROUPS * CHANNELS, True)
    else:
        begin = tl.program_id(0) % blocks * BLOCK_CHANNELS
        dx += (group * CHANNELS + begin) * plane
        store_in_pieces(dx, sums, number, has_site, begin, plane, every, GROUPS * CHANNELS)


def input_gradient(problem: Problem, grad: Tensor, weight: Tensor, threshold: Tensor, dx: Tensor) -> None:
    """Write dx, dense, in the user's layout."""
    x, operand, target = problem.x, operand_of(problem.x), architecture(problem.x)
    config = choose("input", problem.channels, problem.outputs, len(problem.taps), operand, target,
                    problem.users_channels_last)
    span = tuple(ceil_div(size, stride) for size, stride in zip(x.shape[2:], problem.stride, strict=True))
    sites = x.shape[0] * math.prod(span)
    programs = (ceil_div(sites, config.sites) * math.prod(problem.stride)
                * problem.blocks(problem.channels, config.channels))
    constants = input_constants(problem, config, operand, target, grad)
    with on_device_of(x):
        launchable(conv_relu_input_gradient_kernel)[(programs,)](
            x, *laid_out(problem, weight, threshold, None), grad, dx, sites, *span, *x.shape[2:],
            *problem.out_size, *steps_of(x, constants["VECTOR"]),
            *steps_of(grad, constants["GRAD_VECTOR"]), **constants, WIDE=wide(x, dx, grad), num_warps=config.warps,
            num_stages=1)


def input_constants(problem: Problem, config: Config, operand: str, target: str, grad: Tensor) -> dict[str, Any]:
    swapped = problem.matrix and swaps(config.channels, config.stages, operand, target, problem.channels_last)
    return gradient_constants(problem, config, operand, target, grad) | {
        "DX_CHANNELS_LAST": problem.users_channels_last, "STAGES": config.stages, "SWAPPED": swapped}
