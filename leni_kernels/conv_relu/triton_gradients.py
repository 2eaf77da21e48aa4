"""ConvReLU's gradients in Triton: that of x, those of weight, θ and bias, and the sums that end them.

In bytes of activations, T each: the gradient of x moves 3T, x and y's gradient read and dx written; every tap has a
product of its own, because x against its threshold decides who takes that. With few channels adding it up bounds that,
and L1, which serves the taps; with many L2, of a pipeline. The gradients of weight and of θ read x and y's gradient,
2T, and through L2 again both for each line of taps, x half as often once more at the edges of its windows, or x for
each tap and y's gradient for every few; the matrix units bound them, which multiply every tile of x twice. That of the
bias reads y's gradient. Backward keeps nothing but x. No sum depends on timing: a program writes its share, and one
launch adds up the shares of all parameters.

Of a tap, dw[o, c] = Σ_q dy[q, o] · max(x̂[q, c], θ[c]) and dθ[c] = Σ_q [x̂[q, c] ≤ θ[c]] · Σ_o w[o, c] · dy[q, o]. That
is Σ_o w[o, c] · M[o, c], where M[o, c] = Σ_q dy[q, o] · [x̂[q, c] ≤ θ[c]]: the same product, of zeros and ones. So both
come of one pass over the same tiles, and sites outside x count for θ without being sought. The pass of dx has the terms
of dθ at hand, but adding them up over a tile's sites takes four times the instructions of the second product, and the
sites outside x would need a pass of their own.
"""

from __future__ import annotations

from ..triton_packed import add_where_above, at_most, maximum
from ..triton_support import ceil_div, constexpr_function, jit, tl
from .triton_tiles import (
    grid_offset,
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
    without_nan,
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
def input_gradient_kernel(x, weight, threshold, grad, dx, sites, span_d, span_h, span_w, in_d, in_h, in_w,
                          out_d, out_h, out_w, step_n, step_d, step_h, step_w, step_c,
                          grad_step_n, grad_step_d, grad_step_h, grad_step_w, grad_step_c,
                          GRID: tl.constexpr, STRIDE: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
                          GROUPS: tl.constexpr, VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
                          CHANNELS_LAST: tl.constexpr, DX_CHANNELS_LAST: tl.constexpr, BLOCK_SITES: tl.constexpr,
                          BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, STAGES: tl.constexpr,
                          SWAPPED: tl.constexpr, PAIRS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
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
def correlation_kernel(x, threshold, grad, weight, weight_shares, threshold_shares, images, tiles, out_d, out_h, out_w,
                       in_d, in_h, in_w, step_n, step_d, step_h, step_w, step_c,
                       grad_step_n, grad_step_d, grad_step_h, grad_step_w, grad_step_c,
                       GRID: tl.constexpr, STRIDE: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
                       GROUPS: tl.constexpr, VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr, WINDOW: tl.constexpr,
                       BLOCK_SITES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
                       PRODUCTS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, PAIRS: tl.constexpr,
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
def depthwise_correlation_kernel(x, threshold, grad, weight, weight_shares, threshold_shares, sites, tiles, out_d,
                                 out_h, out_w, in_d, in_h, in_w, step_n, step_d, step_h, step_w, step_c,
                                 grad_step_n, grad_step_d, grad_step_h, grad_step_w, grad_step_c,
                                 GRID: tl.constexpr, STRIDE: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
                                 VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                                 BLOCK_SITES: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, WIDE: tl.constexpr):
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
def bias_kernel(grad, bias_shares, sites, tiles, out_d, out_h, out_w, grad_step_n, grad_step_d, grad_step_h,
                grad_step_w, grad_step_c, OUTPUTS: tl.constexpr, GRAD_VECTOR: tl.constexpr,
                CHANNELS_LAST: tl.constexpr, BLOCK_SITES: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
                WIDE: tl.constexpr):
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
def sum_kernel(weight_shares, threshold_shares, bias_shares, dweight, dthreshold, dbias, weight_rows, threshold_rows,
               bias_rows, TAPS: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
               BLOCK: tl.constexpr, LANES: tl.constexpr):
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
