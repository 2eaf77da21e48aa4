"""The gradients of weight, θ and bias in ConvReLU, in Triton, and the sums that end them.

In bytes of activations, T each: the gradients of weight and of θ read x and y's gradient, 2T, and through L2 again both
for each line of taps, x half as often once more at the edges of its windows, or x for each tap and y's gradient for
every few; the matrix units bound them, which multiply every tile of x twice. That of the bias reads y's gradient. No
sum depends on timing: a program writes its share, and one launch adds up the shares of all parameters.

Of a tap, dw[o, c] = Σ_q dy[q, o] · max(x̂[q, c], θ[c]) and dθ[c] = Σ_q [x̂[q, c] ≤ θ[c]] · Σ_o w[o, c] · dy[q, o]. That
is Σ_o w[o, c] · M[o, c], where M[o, c] = Σ_q dy[q, o] · [x̂[q, c] ≤ θ[c]]: the same product, of zeros and ones. So both
come of one pass over the same tiles, and sites outside x count for θ without being sought. The pass of dx has the terms
of dθ at hand, but adding them up over a tile's sites takes four times the instructions of the second product, and the
sites outside x would need a pass of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...common.gpu.packed import at_most, maximum
from ...common.gpu.support import (
    LONGEST_RUN,
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
from .configs import Config, choose
from .problem import Problem, accumulator, gradient_constants, steps_of, vector_of
from .tiles import (
    grid_offset,
    in_elements,
    is_inside,
    load_tile,
    locate,
    plus,
    sum_of,
    tile_pointers,
    times,
    without_nan,
)

# ---- the gradients of weight and θ -------------------------------------------------------------------------
# Output sites are dealt out in WINDOWS (images, d, h, w) of BLOCK_SITES sites: a window's place is a few scalars, a
# site's place in it never changes, and so strides, padding and dilation cost a tile no divisions. The channels of all
# taps, one tap after another, are the rows of one matrix, in blocks that need not end with a tap. x is loaded as [rows,
# sites], for the matrix units to take from registers what the threshold has been applied to there; y's gradient goes
# from global memory to shared and from there to them, once for all blocks of a program. Where the blocks are a line of
# neighbouring taps, windows are several columns wide: a column of x then serves all taps, each for another column of
# y's gradient.


@jit
def _below_zero(first, place, size):
    """A number that is negative where ``first`` + ``place`` lies outside ``size``: one comparison for all of them."""
    d, h, w = plus(first, place)
    return d | (size[0] - 1 - d) | h | (size[1] - 1 - h) | w | (size[2] - 1 - w)


@jit
def _first_window(number, out_size, WINDOW: tl.constexpr):
    """The first image and the position of a window that is counted through the batch."""
    columns, rows = tl.cdiv(out_size[2], WINDOW[3]), tl.cdiv(out_size[1], WINDOW[2])
    slabs = tl.cdiv(out_size[0], WINDOW[1])
    row = number // columns
    slab = row // rows
    return (slab // slabs * WINDOW[0],
            (slab % slabs * WINDOW[1], row % rows * WINDOW[2], number % columns * WINDOW[3]))


@jit
def _in_window(number, WINDOW: tl.constexpr, COLUMNS: tl.constexpr):
    """The image and the position of a site in its window, or in its first column if it is dealt out in columns."""
    width: tl.constexpr = WINDOW[3] // COLUMNS
    return (number // (WINDOW[1] * WINDOW[2] * width),
            (number // (WINDOW[2] * width) % WINDOW[1], number // width % WINDOW[2], number % width))


@jit
def _next_window(image, position, out_size, WINDOW: tl.constexpr):
    w = position[2] + WINDOW[3]
    wraps = w >= out_size[2]
    w = tl.where(wraps, 0, w)
    h = position[1] + tl.where(wraps, WINDOW[2], 0)
    wraps = h >= out_size[1]
    h = tl.where(wraps, 0, h)
    d = position[0] + tl.where(wraps, WINDOW[1], 0)
    wraps = d >= out_size[0]
    return image + tl.where(wraps, WINDOW[0], 0), (tl.where(wraps, 0, d), h, w)


@jit
def _block_of_rows(block, count: tl.constexpr, CHANNELS: tl.constexpr):
    """A block of ``count`` rows, and the tap and the channel of each, as columns."""
    row = block * count + tl.arange(0, count)[:, None]
    return row, row // CHANNELS, row % CHANNELS


@constexpr_function
def _column_of(tile: int, block: int, columns: int) -> int:
    """The column of y's gradient by which a block of rows multiplies a tile of x, or -1: each block has its own tile,
    or they are neighbouring taps, of so many columns."""
    if columns == 1:
        return 0 if tile == block else -1
    return tile - block if tile - block < columns else -1


@jit
def conv_relu_weight_gradient_kernel(x, threshold, grad, weight, weight_shares, threshold_shares, images, tiles, out_d,
                                     out_h, out_w, in_d, in_h, in_w, step_n, step_d, step_h, step_w, step_c,
                                     grad_step_n, grad_step_d, grad_step_h, grad_step_w, grad_step_c,
                                     GRID: tl.constexpr, STRIDE: tl.constexpr, CHANNELS: tl.constexpr,
                                     OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr,
                                     GRAD_VECTOR: tl.constexpr, WINDOW: tl.constexpr, BLOCK_SITES: tl.constexpr,
                                     BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, PRODUCTS: tl.constexpr,
                                     COLUMNS: tl.constexpr, STAGES: tl.constexpr, PAIRS: tl.constexpr,
                                     WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """A program has PRODUCTS blocks of rows and ``tiles`` windows, at least one.

    A window is BLOCK_SITES sites, or if COLUMNS > 1 as many in each of its columns. The blocks are then of PRODUCTS
    neighbouring taps along w, and of the same channels of each.

    threshold: [channels, T], weight: [outputs, channels of a group, T]; weight_shares: [programs over windows, T,
    channels, outputs of a group], threshold_shares: [programs over windows and outputs, T, channels]; either is None
    where it is not wanted.
    """
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    output_blocks: tl.constexpr = ceil_div(OUTPUTS, BLOCK_OUTPUTS)
    taps: tl.constexpr = GRID[2][0] * GRID[2][1] * GRID[2][2]
    rows: tl.constexpr = taps * CHANNELS
    row_blocks: tl.constexpr = ceil_div(rows, BLOCK_ROWS * PRODUCTS)
    # Beside the sums of a line of taps there are few registers: steps stay in vectors, as the arguments are, and y's
    # gradient has offsets, not pointers.
    of_line: tl.constexpr = COLUMNS > 1
    unit: tl.constexpr = VECTOR if of_line else 1
    grad_unit: tl.constexpr = GRAD_VECTOR if of_line else 1
    between: tl.constexpr = CHANNELS // BLOCK_ROWS if of_line else 1
    output = tl.program_id(0) % output_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)[None, :]
    has_output = output < OUTPUTS
    rest = tl.program_id(0) // output_blocks
    first_block = rest % row_blocks // between * (PRODUCTS * between) + rest % between
    rest //= row_blocks
    group = rest % GROUPS
    part = rest // GROUPS

    out_size, size = (out_d, out_h, out_w), (in_d, in_h, in_w)
    image_of, of_window = _in_window(tl.arange(0, BLOCK_SITES)[None, :], WINDOW, COLUMNS)
    image, first = _first_window(part * tiles, out_size, WINDOW)
    steps = in_elements(step_d, step_h, step_w, VECTOR // unit, index_type)
    step_n = tl.cast(step_n, index_type) * (VECTOR // unit)
    in_x = times(of_window, STRIDE)
    x += group * CHANNELS * tl.cast(step_c, index_type)
    x += unit * (image_of * step_n + sum_of(times(in_x, steps)))
    threshold += group * (CHANNELS * taps)
    xs, offsets, has_rows, thetas, sums, masked = (), (), (), (), (), ()
    for block in tl.static_range(PRODUCTS):
        row, tap, channel = _block_of_rows(first_block + block * between, BLOCK_ROWS, CHANNELS)
        offset = grid_offset(tap, GRID)
        has_row = (row < rows) | (rows % (BLOCK_ROWS * PRODUCTS) == 0)
        theta = tl.load(threshold + channel * taps + tap, has_row, 0.0)
        xs += (x + (channel * tl.cast(step_c, index_type) + unit * sum_of(times(offset, steps))),)
        offsets += (offset,)
        has_rows += (has_row,)
        theta = without_nan(theta.to(x.dtype.element_ty), False)
        thetas += (tl.broadcast_to(theta, (BLOCK_ROWS, BLOCK_SITES)),)
        sums += (tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), accumulator_type),)
        masked += (tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), accumulator_type),)

    # Else the sums of no tile are kept too, in copies for which the products wait.
    tl.assume(tiles > 0)
    grad_image_of, grad_of_window = _in_window(tl.arange(0, BLOCK_SITES)[:, None], WINDOW, COLUMNS)
    grad_steps = in_elements(grad_step_d, grad_step_h, grad_step_w, GRAD_VECTOR // grad_unit, index_type)
    grad_step_n = tl.cast(grad_step_n, index_type) * (GRAD_VECTOR // grad_unit)
    grads = (group * OUTPUTS + output) * tl.cast(grad_step_c, index_type) + grad_unit * (
        grad_image_of * grad_step_n + sum_of(times(grad_of_window, grad_steps)))
    if not of_line:
        grads = grad + grads
    for _ in tl.range(0, tiles, num_stages=STAGES):
        gradients = ()
        for column in tl.static_range(COLUMNS):
            here = plus(first, (0, 0, column))
            has_site = (images - 1 - image - grad_image_of | _below_zero(here, grad_of_window, out_size)) >= 0
            move = grad_unit * (image * grad_step_n + sum_of(times(here, grad_steps)))
            pointers = grad + (grads + move) if of_line else grads + move
            gradients += (tl.load(pointers, has_site & has_output, 0.0),)
        no_image = images - 1 - image - image_of
        for tile in tl.static_range(COLUMNS + PRODUCTS - 1):
            # Of columns the tiles are the first block's, one after another.
            place = plus(times(first, STRIDE), (0, 0, tile if of_line else 0))
            move = unit * (image * step_n + sum_of(times(place, steps)))
            inside = (no_image | _below_zero(plus(place, offsets[0 if of_line else tile]), in_x, size)) >= 0
            has_value = has_rows[0 if of_line else tile] & inside
            values = tl.load(xs[0 if of_line else tile] + move, has_value, 0.0)
            of_weight, of_mask = (), ()
            for block in tl.static_range(PRODUCTS):
                weight_sum, mask_sum = sums[block], masked[block]
                if _column_of(tile, block, COLUMNS) >= 0:
                    gradient = gradients[_column_of(tile, block, COLUMNS)]
                    if weight_shares is not None:
                        weight_sum = tl.dot(maximum(values, thetas[block]), gradient, weight_sum, PRECISION,
                                            out_dtype=accumulator_type)
                    if threshold_shares is not None:
                        mask_sum = tl.dot(at_most(values, thetas[block], PAIRS), gradient, mask_sum, PRECISION,
                                          out_dtype=accumulator_type)
                of_weight += (weight_sum,)
                of_mask += (mask_sum,)
            sums, masked = of_weight, of_mask
        image, first = _next_window(image, first, out_size, WINDOW)
    part = tl.cast(part, tl.int64)
    # All sums of the weight leave their registers before θ's need some.
    if weight_shares is not None:
        for block in tl.static_range(PRODUCTS):
            _, tap, channel = _block_of_rows(first_block + block * between, BLOCK_ROWS, CHANNELS)
            place = (((part * taps + tap) * GROUPS + group) * CHANNELS + channel) * OUTPUTS
            tl.store(weight_shares + (place + output), sums[block], has_rows[block] & has_output)
    if threshold_shares is not None:
        share = part * output_blocks + tl.program_id(0) % output_blocks
        for block in tl.static_range(PRODUCTS):
            _, tap, channel = _block_of_rows(first_block + block * between, BLOCK_ROWS, CHANNELS)
            # No x is at most a NaN, for which -∞ stood.
            theta = tl.load(threshold + channel * taps + tap, has_rows[block], 0.0)
            place = ((group * OUTPUTS + output) * CHANNELS + channel) * taps + tap
            has_factor = has_rows[block] & has_output & (theta == theta)
            factors = tl.load(weight + place, has_factor, 0.0).to(accumulator_type)
            place = ((share * taps + tap) * GROUPS + group) * CHANNELS + channel
            tl.store(threshold_shares + place, tl.sum(masked[block] * factors, 1, keep_dims=True), has_rows[block])


@jit
def conv_relu_depthwise_weight_gradient_kernel(x, threshold, grad, weight, weight_shares, threshold_shares, sites,
                                               tiles, out_d, out_h, out_w, in_d, in_h, in_w, step_n, step_d, step_h,
                                               step_w, step_c, grad_step_n, grad_step_d, grad_step_h, grad_step_w,
                                               grad_step_c, GRID: tl.constexpr, STRIDE: tl.constexpr,
                                               OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, VECTOR: tl.constexpr,
                                               GRAD_VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                                               BLOCK_SITES: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
                                               WIDE: tl.constexpr):
    """Groups of one channel: a program has one tap, a block of all outputs, and ``tiles`` tiles of sites.

    Both shares are [programs over sites, T, outputs].
    """
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    every: tl.constexpr = GROUPS * OUTPUTS
    blocks: tl.constexpr = ceil_div(every, BLOCK_OUTPUTS)
    taps: tl.constexpr = GRID[2][0] * GRID[2][1] * GRID[2][2]
    output = tl.program_id(0) % blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    has_output = output < every
    channel = output // OUTPUTS
    tap = tl.program_id(0) // blocks % taps
    part = tl.program_id(0) // (blocks * taps)
    offset = grid_offset(tap, GRID)
    step_c = tl.cast(step_c, index_type)
    steps = in_elements(step_d, step_h, step_w, VECTOR, index_type)
    grad_step_c = tl.cast(grad_step_c, index_type)
    grad_steps = in_elements(grad_step_d, grad_step_h, grad_step_w, GRAD_VECTOR, index_type)
    theta = tl.load(threshold + channel * taps + tap, has_output, 0.0).to(x.dtype.element_ty)[None, :]
    least = without_nan(theta, False)
    sums = tl.zeros((BLOCK_SITES, BLOCK_OUTPUTS), accumulator_type)
    masked = tl.zeros((BLOCK_SITES, BLOCK_OUTPUTS), accumulator_type)
    for tile in range(tiles):
        number = tl.cast(part * tiles + tile, index_type) * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
        has_site = number < sites
        image, position = locate(number, (out_d, out_h, out_w))
        first = image * (tl.cast(grad_step_n, index_type) * GRAD_VECTOR) + sum_of(times(position, grad_steps))
        pointers = tile_pointers(grad, first, output * grad_step_c, CHANNELS_LAST)
        gradient = load_tile(pointers, has_site, has_output, CHANNELS_LAST).to(accumulator_type)
        site = plus(times(position, STRIDE), offset)
        inside = has_site & is_inside(site, (in_d, in_h, in_w))
        first = image * (tl.cast(step_n, index_type) * VECTOR) + sum_of(times(site, steps))
        values = load_tile(tile_pointers(x, first, channel * step_c, CHANNELS_LAST), inside, has_output, CHANNELS_LAST)
        if weight_shares is not None:
            bounded = tl.maximum(values, least, propagate_nan=tl.PropagateNan.ALL)
            sums += gradient * bounded.to(accumulator_type)
        if threshold_shares is not None:
            masked += tl.where(values <= theta, gradient, 0.0)
    place = (tl.cast(part, tl.int64) * taps + tap) * every + output
    if weight_shares is not None:
        tl.store(weight_shares + place, tl.sum(sums, 0), has_output)
    if threshold_shares is not None:
        factor = tl.load(weight + output * taps + tap, has_output, 0.0).to(accumulator_type)
        tl.store(threshold_shares + place, tl.sum(masked, 0) * factor, has_output)


# ---- the gradient of the bias, and sums --------------------------------------------------------------------


@jit
def conv_relu_bias_gradient_kernel(grad, bias_shares, sites, tiles, out_d, out_h, out_w, grad_step_n, grad_step_d,
                                   grad_step_h, grad_step_w, grad_step_c, OUTPUTS: tl.constexpr,
                                   GRAD_VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_SITES: tl.constexpr,
                                   BLOCK_OUTPUTS: tl.constexpr, WIDE: tl.constexpr):
    """bias_shares: [programs over sites, outputs]; OUTPUTS of all groups."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = bias_shares.dtype.element_ty
    blocks: tl.constexpr = ceil_div(OUTPUTS, BLOCK_OUTPUTS)
    output = tl.program_id(0) % blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    has_output = output < OUTPUTS
    part = tl.cast(tl.program_id(0) // blocks, index_type)
    steps = in_elements(grad_step_d, grad_step_h, grad_step_w, GRAD_VECTOR, index_type)
    step_n = tl.cast(grad_step_n, index_type) * GRAD_VECTOR
    sums = tl.zeros((BLOCK_SITES, BLOCK_OUTPUTS), accumulator_type)
    for tile in range(tiles):
        number = (part * tiles + tile) * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
        image, position = locate(number, (out_d, out_h, out_w))
        pointers = tile_pointers(grad, image * step_n + sum_of(times(position, steps)),
                                 output * tl.cast(grad_step_c, index_type), CHANNELS_LAST)
        sums += load_tile(pointers, number < sites, has_output, CHANNELS_LAST).to(accumulator_type)
    tl.store(bias_shares + part * OUTPUTS + output, tl.sum(sums, 0), has_output)


@jit
def conv_relu_sum_kernel(weight_shares, threshold_shares, bias_shares, dweight, dthreshold, dbias, weight_rows,
                         threshold_rows, bias_rows, TAPS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
                         GROUPS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr):
    """The gradients of all parameters, each from its shares; one that is None is not wanted.

    dweight: [outputs, channels of a group, T], dthreshold: [channels, T], dbias: [outputs].
    """
    of_weight: tl.constexpr = 0 if dweight is None else ceil_div(GROUPS * CHANNELS * OUTPUTS * TAPS, BLOCK)
    of_threshold: tl.constexpr = 0 if dthreshold is None else ceil_div(GROUPS * CHANNELS * TAPS, BLOCK)
    # Depthwise every output has its share in its channel's.
    each: tl.constexpr = OUTPUTS if CHANNELS == 1 else 1
    block = tl.program_id(0)
    if block < of_weight:
        _add_shares(weight_shares, dweight, weight_rows, block, TAPS, GROUPS, CHANNELS, OUTPUTS, 1, BLOCK, LANES)
    elif block < of_weight + of_threshold:
        _add_shares(threshold_shares, dthreshold, threshold_rows, block - of_weight, TAPS, GROUPS, CHANNELS, 1, each,
                    BLOCK, LANES)
    else:
        _add_shares(bias_shares, dbias, bias_rows, block - (of_weight + of_threshold), 1, GROUPS, 1, OUTPUTS, 1, BLOCK,
                    LANES)


@jit
def _add_shares(shares, out, rows, block, TAPS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
                OUTPUTS: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr):
    """A block of out [GROUPS, OUTPUTS, CHANNELS, TAPS]: the shares [rows, TAPS, GROUPS, CHANNELS, OUTPUTS, EACH] summed
    over rows and EACH, in float64; nothing where there are none."""
    if shares is not None:
        numbers: tl.constexpr = TAPS * GROUPS * CHANNELS * OUTPUTS
        number = block * BLOCK + tl.arange(0, BLOCK)
        sums = tl.zeros((LANES, BLOCK), tl.float64)
        for first in range(0, rows, LANES):
            row = (first + tl.arange(0, LANES))[:, None]
            mask = (row < rows) & (number < numbers)[None, :]
            for each in range(EACH):
                place = (row.to(tl.int64) * numbers + number[None, :]) * EACH + each
                sums += tl.load(shares + place, mask, 0.0).to(tl.float64)
        output, channel = number % OUTPUTS, number // OUTPUTS % CHANNELS
        group, tap = number // (OUTPUTS * CHANNELS) % GROUPS, number // (OUTPUTS * CHANNELS * GROUPS)
        place = ((group * OUTPUTS + output) * CHANNELS + channel) * TAPS + tap
        tl.store(out + place, tl.sum(sums, 0).to(out.dtype.element_ty), number < numbers)


_ENOUGH_PROGRAMS = 528
"""Four for each of Hopper's 132 multiprocessors."""
SUMMED, LANES = 128, 32
"""Of numbers and of their shares, where a program sums shares."""


def parameter_gradients(problem: Problem, grad: Tensor, weight: Tensor, threshold: Tensor, needs_weight: bool,
                        needs_threshold: bool, needs_bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of weight, threshold and bias, each in the shape and dtype of its parameter, or empty."""
    outs = (weight.new_empty(weight.shape if needs_weight else 0),
            threshold.new_empty(threshold.shape if needs_threshold else 0),
            weight.new_empty(weight.shape[0] if needs_bias else 0))
    shares = [None, None]
    if needs_weight or needs_threshold:
        shares = _correlation(problem, grad, weight, threshold, needs_weight, needs_threshold)
    shares = (*shares, _shares_of_bias(problem, grad) if needs_bias else None)
    programs = sum(ceil_div(out.numel(), SUMMED) for out in outs)
    if programs > 0:
        with on_device_of(grad):
            launchable(conv_relu_sum_kernel)[(programs,)](
                *shares, *(None if share is None else out for share, out in zip(shares, outs, strict=True)),
                *(0 if share is None else share.shape[0] for share in shares), TAPS=len(problem.taps),
                CHANNELS=problem.channels, OUTPUTS=problem.outputs, GROUPS=problem.groups, BLOCK=SUMMED, LANES=LANES,
                num_warps=4)
    return outs


def _correlation(problem: Problem, grad: Tensor, weight: Tensor, threshold: Tensor, needs_weight: bool,
                 needs_threshold: bool) -> tuple[Tensor | None, Tensor | None]:
    """The shares of weight's gradient and of θ's, a row of each sum; None of what is not needed."""
    x, operand, target = problem.x, operand_of(problem.x), architecture(problem.x)
    taps = len(problem.taps)
    config = choose("weight", problem.channels, problem.outputs, taps, operand, target, problem.users_channels_last)
    is_wide = wide(x, grad)
    kernel, constants = weight_kernel_for(problem, config, operand, target, grad, is_wide)
    sizes = (x.shape[0], *problem.out_size)
    tiles = (math.prod(map(ceil_div, sizes, constants["WINDOW"])) if problem.matrix
             else ceil_div(math.prod(sizes), config.sites))
    blocks = problem.blocks(problem.outputs, config.outputs) * (
        ceil_div(taps * problem.channels, config.channels * config.products) if problem.matrix else taps)
    run, parts = _dealt_out(tiles, blocks)
    of_outputs = ceil_div(problem.outputs, config.outputs) if problem.matrix else 1
    rows = x.new_empty(parts, weight.numel(), dtype=accumulator(x)) if needs_weight else None
    width = threshold.numel() * (1 if problem.matrix else problem.outputs)
    masked = x.new_empty(parts * of_outputs, width, dtype=accumulator(x)) if needs_threshold else None
    with on_device_of(x):
        launchable(kernel)[(parts * blocks,)](
            x, threshold.contiguous(), grad, weight.contiguous() if needs_threshold else None, rows, masked,
            x.shape[0] if problem.matrix else math.prod(sizes), run, *problem.out_size, *x.shape[2:],
            *steps_of(x, constants["VECTOR"]), *steps_of(grad, constants["GRAD_VECTOR"]), **constants,
            WIDE=is_wide, num_warps=config.warps, num_stages=1)
    return rows, masked


def _shares_of_bias(problem: Problem, grad: Tensor) -> Tensor:
    """The shares of the bias' gradient, a row of each sum."""
    outputs, sites, operand = grad.shape[1], grad.numel() // grad.shape[1], operand_of(grad)
    config = choose("weight", 1, problem.outputs, 1, operand, architecture(grad), problem.channels_last)
    vector = vector_of(grad, problem.channels_last)
    blocks = ceil_div(outputs, config.outputs)
    run, parts = _dealt_out(ceil_div(sites, config.sites), blocks)
    shares = grad.new_empty(parts, outputs, dtype=accumulator(grad))
    with on_device_of(grad):
        launchable(conv_relu_bias_gradient_kernel)[(parts * blocks,)](
            grad, shares, sites, run, *problem.out_size, *steps_of(grad, vector),
            **bias_constants(config, outputs, vector, problem.channels_last), WIDE=wide(grad), num_warps=config.warps)
    return shares


def _dealt_out(tiles: int, blocks: int) -> tuple[int, int]:
    """How many tiles a program sums, and how many programs a block then has.

    Programs of many tiles write few shares; too few programs leave the GPU idle.
    """
    run = min(ceil_div(tiles, max(1, _ENOUGH_PROGRAMS // blocks)), LONGEST_RUN)
    return run, ceil_div(tiles, run)


def _window(sizes: tuple[int, ...], sites: int, columns: int) -> tuple[int, int, int, int]:
    """Parts of the ``sizes`` (images, d, h, w) whose product is ``sites``, few of which lie past the ends.

    Each part is a power of two. Along w it has ``columns``, if there are so many, for loads that follow columns.
    """
    window = [1, 1, 1, 1]

    def double(dimension: int, fits: Callable[[int, int], bool]) -> None:
        while math.prod(window) < sites and fits(sizes[dimension], 2 * window[dimension]):
            window[dimension] *= 2

    double(3, lambda size, part: part <= columns and part < 2 * size)
    for dimension in (3, 2, 1, 0):
        double(dimension, lambda size, part: part <= size and -size % part * 8 <= size)
    for dimension in (2, 3, 1):
        double(dimension, lambda size, part: part < 2 * size)
    double(0, lambda size, part: True)
    return tuple(window)


def weight_kernel_for(problem: Problem, config: Config, operand: str, target: str, grad: Tensor,
                      is_wide: bool) -> tuple[Any, dict[str, Any]]:
    """The kernel of weight's and θ's gradients, and its constants."""
    constants = gradient_constants(problem, config, operand, target, grad)
    if not problem.matrix:
        others = ("CHANNELS", "BLOCK_CHANNELS", "PAIRS", "PRECISION")
        return conv_relu_depthwise_weight_gradient_kernel, {
            name: constants[name] for name in constants if name not in others}
    # Wide offsets take the registers that a line of taps needs.
    columns = config.columns if _shares_columns(problem, config) and not is_wide else 1
    sizes = problem.x.shape[0], *problem.out_size
    if columns > 1:
        window = *_window((*sizes[:3], 1), config.sites, 1)[:3], columns
    else:
        window = _window(sizes, config.sites, 1 if problem.channels_last else 32)
    del constants["CHANNELS_LAST"], constants["BLOCK_CHANNELS"]
    return conv_relu_weight_gradient_kernel, constants | {
        "WINDOW": window, "BLOCK_ROWS": config.channels, "PRODUCTS": config.products, "COLUMNS": columns,
        "STAGES": config.stages}


def _shares_columns(problem: Problem, config: Config) -> bool:
    """Whether the blocks of a program can be a line of taps for whose columns of sites x is at neighbouring columns."""
    return (problem.channels % config.channels == 0 and config.products == problem.grid[2][2]
            and problem.stride[2] == problem.grid[1][2] == 1 and problem.out_size[2] >= config.columns)


def bias_constants(config: Config, outputs: int, vector: int, channels_last: bool) -> dict[str, Any]:
    return {"OUTPUTS": outputs, "GRAD_VECTOR": vector, "CHANNELS_LAST": channels_last, "BLOCK_SITES": config.sites,
            "BLOCK_OUTPUTS": config.outputs}
