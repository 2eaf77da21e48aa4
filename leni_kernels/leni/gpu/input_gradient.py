"""LENI's input gradient in Triton: the gradient of z, and from that those of x and of the taps.

T is the bytes of one activation. ``leni_negative_gradient_kernel`` reads x and dy and writes g_z, the gradient of z
(3T); ``leni_input_gradient_kernel`` reads g_z, x and dy and writes dx (4T). dx needs g_z on a halo of k//2 pixels, and
Triton cannot shift a tile on the chip: a shift goes through memory. Without g_z in device memory it is 3T, but then the
product of every halo is formed again, or each program keeps the last rows of g_z in a ring, whose writes and reads
wait for each other in every tile: twice the instructions, and those are what bounds it. As it is, in half precision
memory bounds the first pass up to 128 channels and the second up to 64, and instructions or L1 of more (``make
predict``): of the second's 18 multiplications an element that are not products of matrices each loaded g_z serves all
rows that it reaches.

Of a separable deconvolution a product of z with a matrix goes into g_z, and the first pass would be two such products,
of operands that are made in different ways. There the folded kernel writes it before (2T), where g_z is to be, and the
first pass reads it and not x: 9T in all.

A tile is as in ``features.py``: positions of ROWS pixels under each other, of one block of channels. The first
pass lays D out for both. Programs share nothing else, and no sum is atomic: equal shapes give equal bits. Each pass is
one launch; the programs' shares of D's gradient are summed by one more, of the algebra. The tilings are those that
compile without spilling in the cases of ``tests/test_codegen.py``; the rest are not all compiled.
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...common.gpu.packed import negative_part, widened
from ...common.gpu.support import architecture, ceil_div, jit, launchable, on_device_of, operand_of, tl, wide
from ...common.layout import reads_channels_last
from ...two_branch.gpu.tiles import (
    ROUNDS,
    block_positions,
    gradient_vectors,
    index,
    load_pixels,
    locate,
    pixels_of,
    split,
    vectors,
)
from ...two_branch.layout import empty_as
from ...two_branch.reference import folding_dtype
from . import configs
from .algebra import summed_taps
from .configs import Config, for_vectors
from .covariance import multiplied_distances
from .features import add_tap_row, concatenate, join_rows, join_vector, lay_out, repeated, rows_of, split_vector

# ---- tiles as they lie -------------------------------------------------------------------------------------
# One row of a tile is [P, K] in channels-last and [K, P, SPAN] in NCHW; of all its rows a product is made, which is
# [ROWS·P, K] or [K, ROWS·P·SPAN].


@jit
def _in_elements(stride_n, stride_h, stride_o, VECTOR: tl.constexpr, WIDE: tl.constexpr):
    """Strides that were counted in vectors."""
    return index(stride_n, WIDE) * VECTOR, index(stride_h, WIDE) * VECTOR, index(stride_o, WIDE) * VECTOR


@jit
def _pointers(base, pixel, channel, stride_c, stride_i, SPAN: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """To one row, from the offsets [P] of its first pixels; ``stride_i`` is that of x's stride-1 dimension."""
    if CHANNELS_LAST:
        return base + pixel[:, None] + (channel * stride_i)[None, :]
    else:
        first = (channel * stride_c)[:, None] + pixel[None, :]
        return base + first[:, :, None] + (tl.arange(0, SPAN) * stride_i)[None, None, :]


@jit
def _mask(inside, has_channel, CHANNELS_LAST: tl.constexpr):
    """Of the pointers to one row."""
    if CHANNELS_LAST:
        return inside[:, None] & has_channel[None, :]
    else:
        return (has_channel[:, None] & inside[None, :])[:, :, None]


@jit
def _flat(row, CHANNELS_LAST: tl.constexpr):
    """One row as a product has it."""
    return row if CHANNELS_LAST else tl.reshape(row, (row.shape[0], row.shape[1] * row.shape[2]))


@jit
def _load_rows(pointers, stride_h, row, inside, has_channel, height, ROWS: tl.constexpr,
               CHANNELS_LAST: tl.constexpr):
    """A tuple of rows, 0 where the image has ended."""
    rows = ()
    for r in tl.static_range(ROWS):
        mask = _mask(inside & (row + r < height), has_channel, CHANNELS_LAST)
        rows = rows + (tl.load(pointers, mask, 0.0),)
        pointers += stride_h
    return rows


@jit
def _split_rows(tile, ROWS: tl.constexpr, AXIS: tl.constexpr):
    """The inverse of :func:`join_rows`: what is computed with rows then goes through shared memory only once."""
    if ROWS == 1:
        return (tile,)
    else:
        if AXIS == 0:
            halves = tl.permute(tl.reshape(tile, (2, tile.shape[0] // 2, tile.shape[1])), (1, 2, 0))
        else:
            halves = tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1))
        first, second = tl.split(halves)
        return _split_rows(first, ROWS // 2, AXIS) + _split_rows(second, ROWS // 2, AXIS)


# ---- products ----------------------------------------------------------------------------------------------


@jit
def _weight_tile(weight, output, channel, C: tl.constexpr):
    """[outputs, channels] of one branch, whose [C, C] in the [C, 2C] ``weight`` points at."""
    mask = (output < C)[:, None] & (channel < C)[None, :]
    return tl.load(weight + (output * (2 * C))[:, None] + channel[None, :], mask, 0.0)


@jit
def _branch_gradient(grad, weight, weight_tile, pixel, row, inside, channel, height, stride_h, stride_o, stride_i,
                     C: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
                     CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr):
    """weightᵀ·dy of one branch, a tuple of rows; a weight that does not fit at once is read here."""
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    pixels: tl.constexpr = ROWS * pixel.shape[0] * SPAN
    channels: tl.constexpr = channel.shape[0]
    shape: tl.constexpr = (pixels, channels) if CHANNELS_LAST else (channels, pixels)
    product = tl.zeros(shape, ACCUMULATOR)
    for k in range(0, C, BLOCK_OUTPUTS):
        output = k + tl.arange(0, BLOCK_OUTPUTS)
        pointers = _pointers(grad, pixel, output, stride_o, stride_i, SPAN, CHANNELS_LAST)
        loaded = _load_rows(pointers, stride_h, row, inside, output < C, height, ROWS, CHANNELS_LAST)
        rows = ()
        for r in tl.static_range(ROWS):
            rows = rows + (_flat(loaded[r], CHANNELS_LAST),)
        # In NCHW Triton 3.6 aborts on pairs where, as here, no cast follows.
        gradient = join_rows(rows, axis) if CHANNELS_LAST else concatenate(rows, axis)
        if BLOCK_OUTPUTS < C:
            weight_tile = _weight_tile(weight, output, channel, C)
        if CHANNELS_LAST:
            product = tl.dot(gradient, weight_tile, product, PRECISION, out_dtype=ACCUMULATOR)
        else:
            product = tl.dot(tl.trans(weight_tile), gradient, product, PRECISION, out_dtype=ACCUMULATOR)
    return _split_rows(product, ROWS, axis)


# ---- the gradient of z -------------------------------------------------------------------------------------


@jit
def leni_negative_gradient_kernel(grad, x, deconv_weight, weight, constant, slope, taps, grad_z, height, width,
                                  positions, all_tiles, tiles, stride_n, stride_h, stride_o, grad_stride_n,
                                  grad_stride_h, grad_stride_o, grad_stride_i, C: tl.constexpr, KERNEL: tl.constexpr,
                                  VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr, ROWS: tl.constexpr,
                                  BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                                  BLOCK_OUTPUTS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
                                  PRECISION: tl.constexpr, GIVEN: tl.constexpr):
    """g_z = weightᵀ·dy + constant + slope·z of each program's ``tiles`` tiles; taps: a [k, k, C] of its own.

    GIVEN says that what is to stand in z's place is where g_z is to be.
    """
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    pixel_stride: tl.constexpr = C if CHANNELS_LAST else 1
    stride_n, stride_h, stride_o = _in_elements(stride_n, stride_h, stride_o, VECTOR, WIDE)
    grad_stride_n, grad_stride_h, grad_stride_o = _in_elements(grad_stride_n, grad_stride_h, grad_stride_o,
                                                               GRAD_VECTOR, WIDE)
    grad_stride_i = index(grad_stride_i, WIDE)
    columns = width * span
    plane = index(height, WIDE) * columns
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    has_channel = channel < C
    taps += index(part, True) * (KERNEL * KERNEL * C)
    lay_out(deconv_weight, taps, channel, C, KERNEL)
    weight += C
    weight_tile = _weight_tile(weight, tl.arange(0, BLOCK_OUTPUTS), channel, C)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        position = index(tile, WIDE) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
        inside = position < positions
        image, row, column = locate(position, width, height, ROWS)
        column *= span
        pixel = image * grad_stride_n + row * grad_stride_h
        pixel += column * (grad_stride_o if CHANNELS_LAST else grad_stride_i)
        rows = _branch_gradient(grad, weight, weight_tile, pixel, row, inside, channel, height, grad_stride_h,
                                grad_stride_o, grad_stride_i, C, span, ROWS, BLOCK_OUTPUTS, CHANNELS_LAST,
                                accumulator_type, PRECISION)
        if slope is not None:
            if not GIVEN:
                start = tl.zeros((1, 1), accumulator_type)
                _, deconvolved = rows_of(x, taps, start, position, inside, channel, height, width, stride_n, stride_h,
                                         stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
            of_z = tl.expand_dims(tl.load(slope + C + channel, has_channel, 0.0), axis)
            added = tl.expand_dims(tl.load(constant + C + channel, has_channel, 0.0), axis)
        pixel = image * (C * plane) + (row * columns + column) * pixel_stride
        pointers = _pointers(grad_z, pixel, channel, plane, 1, span, CHANNELS_LAST)
        for r in tl.static_range(ROWS):
            gradient = rows[r]
            mask = _mask(inside & (row + r < height), has_channel, CHANNELS_LAST)
            if GIVEN:
                value = _flat(tl.load(pointers, mask, 0.0), CHANNELS_LAST)
                gradient += value.to(accumulator_type) * of_z + added
            elif slope is not None:
                gradient += deconvolved[r] * of_z + added
            gradient = tl.reshape(gradient.to(grad_z.dtype.element_ty), pointers.shape)
            tl.store(pointers, gradient, mask)
            pointers += columns * pixel_stride


# ---- the gradients of x and of the taps --------------------------------------------------------------------
# ``tap_sums`` are a tuple in the order of the taps' columns, [P, K] in channels-last and [K, P] in NCHW.


@jit
def _correlate_channels_last(grad_z, negative, tap_sums, taps, row, column, inside, channel, height, columns,
                             C: tl.constexpr, KERNEL: tl.constexpr, ROWS: tl.constexpr):
    """taps ⋆ g_z, a tuple of rows, and the taps' gradients' sums with min(x, 0)·shift(g_z) added."""
    half: tl.constexpr = KERNEL // 2
    sums = repeated(ROWS, tl.zeros_like(negative[0]))
    has_channel = channel < C
    corner = grad_z - half * (columns + 1) * C
    added = ()
    # Columns outside, rows inside: as in rows_channels_last, but for the tests, with fewer of which Triton 3.8 spills.
    for j in tl.static_range(KERNEL):
        tap_column = ()
        for i in tl.static_range(KERNEL):
            tap = tl.load(taps + (i * KERNEL + j) * C + channel, has_channel, 0.0)
            tap_column = tap_column + (tap[None, :],)
        column_sums = tap_sums[j * KERNEL:(j + 1) * KERNEL]
        inside_column = inside & (column >= half - j) & (column < columns + half - j)
        pointer = corner + j * C
        for i in tl.static_range(ROWS + KERNEL - 1):
            inside_row = inside_column & (row >= half - i) & (row < height + half - i)
            values = widened(tl.load(pointer, _mask(inside_row, has_channel, True), 0.0), negative[0].dtype)
            pointer += columns * C
            sums = add_tap_row(sums, values, tap_column, i)
            column_sums = add_tap_row(column_sums, values, negative, i)
        added = added + column_sums
    return sums, added


@jit
def _correlate_contiguous(grad_z, negative, tap_sums, taps, row, column, inside, channel, height, columns,
                          C: tl.constexpr, KERNEL: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr):
    """As :func:`_correlate_channels_last`, in NCHW."""
    half: tl.constexpr = KERNEL // 2
    accumulator_type: tl.constexpr = negative[0].dtype
    sums = repeated(ROWS, tl.zeros_like(negative[0]))
    has_channel = channel < C
    tap_tiles = ()
    for tap in tl.static_range(KERNEL * KERNEL):
        tap_tiles = tap_tiles + (tl.load(taps + tap * C + channel, has_channel, 0.0)[:, None, None],)
    pointer = grad_z - half * columns
    for i in tl.static_range(ROWS + KERNEL - 1):
        inside_row = has_channel[:, None] & (inside & (row >= half - i) & (row < height + half - i))[None, :]
        values = tl.load(pointer[:, :, None] + tl.arange(0, SPAN)[None, None, :], inside_row[:, :, None], 0.0)
        # The vector and its halo, element by element: as in rows_contiguous.
        line = ()
        for j in tl.static_range(half):
            inside_halo = inside_row & (column >= half - j)[None, :]
            line = line + (tl.load(pointer + (j - half), inside_halo, 0.0).to(accumulator_type),)
        line = line + split_vector(widened(values, accumulator_type))
        for j in tl.static_range(half):
            inside_halo = inside_row & (column + SPAN + j < columns)[None, :]
            line = line + (tl.load(pointer + (SPAN + j), inside_halo, 0.0).to(accumulator_type),)
        added = ()
        for j in tl.static_range(KERNEL):
            shifted = join_vector(line[j:j + SPAN])
            sums = add_tap_row(sums, shifted, tap_tiles[j::KERNEL], i)
            added = added + _add_products(tap_sums[j * KERNEL:(j + 1) * KERNEL], shifted, negative, i)
        tap_sums = added
        pointer += columns
    return sums, tap_sums


@jit
def _add_products(sums, x, rows, INPUT_ROW: tl.constexpr):
    """As :func:`add_tap_row`, but of each vector the sum of its products."""
    added = ()
    for r in tl.static_range(len(sums)):
        if r <= INPUT_ROW and INPUT_ROW - r < len(rows):
            added = added + (sums[r] + tl.sum(x * rows[INPUT_ROW - r], 2),)
        else:
            added = added + (sums[r],)
    return added


@jit
def _tap_sum(x, grad_z, tap, first_tile, end_tile, channel, height, width, positions, stride_n, stride_h, stride_o,
             plane, C: tl.constexpr, KERNEL: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
             BLOCK_POSITIONS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
             ACCUMULATOR: tl.constexpr):
    """Σ min(x, 0)·shift(g_z) [K] of one tap, only of pixels whose shift is in the image."""
    columns = width * SPAN
    pixel_stride: tl.constexpr = C if CHANNELS_LAST else 1
    total = tl.zeros((ROWS * BLOCK_POSITIONS * SPAN, channel.shape[0]), ACCUMULATOR)
    for tile in range(first_tile, end_tile):
        origin = index(tile, WIDE) * BLOCK_POSITIONS
        position, image, row, column = pixels_of(origin, height, width, BLOCK_POSITIONS, SPAN, ROWS)
        inside = (position < positions) & (row < height)
        value = load_pixels(x, image, row, column, inside, channel, stride_n, stride_h, stride_o, 1, C, CHANNELS_LAST)
        row += tap // KERNEL - KERNEL // 2
        column += tap % KERNEL - KERNEL // 2
        inside &= (row >= 0) & (row < height) & (column >= 0) & (column < columns)
        shifted = load_pixels(grad_z, image, row, column, inside, channel, C * plane, columns * pixel_stride,
                              C if CHANNELS_LAST else plane, 1, C, CHANNELS_LAST)
        product = negative_part(value, ACCUMULATOR) * shifted.to(ACCUMULATOR)
        total += tl.where(inside[:, None], product, 0.0)
    return tl.sum(total, 0)


@jit
def leni_input_gradient_kernel(grad, x, grad_z, weight, constant, slope, taps, dx, taps_parts, height, width, positions,
                               all_tiles, tiles, stride_n, stride_h, stride_o, grad_stride_n, grad_stride_h,
                               grad_stride_o, grad_stride_i, C: tl.constexpr, KERNEL: tl.constexpr,
                               VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr, ROWS: tl.constexpr,
                               BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
                               CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """dx, and Σ min(x, 0)·shift(g_z) [k, k, C] of each program's ``tiles`` tiles; taps: D as [k, k, C]."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    pixel_stride: tl.constexpr = C if CHANNELS_LAST else 1
    sums_shape: tl.constexpr = (BLOCK_POSITIONS, BLOCK_CHANNELS) if CHANNELS_LAST else (BLOCK_CHANNELS, BLOCK_POSITIONS)
    stride_n, stride_h, stride_o = _in_elements(stride_n, stride_h, stride_o, VECTOR, WIDE)
    grad_stride_n, grad_stride_h, grad_stride_o = _in_elements(grad_stride_n, grad_stride_h, grad_stride_o,
                                                               GRAD_VECTOR, WIDE)
    grad_stride_i = index(grad_stride_i, WIDE)
    columns = width * span
    plane = index(height, WIDE) * columns
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    has_channel = channel < C
    weight_tile = _weight_tile(weight, tl.arange(0, BLOCK_OUTPUTS), channel, C)
    tap_sums = repeated(KERNEL * KERNEL, tl.zeros(sums_shape, accumulator_type))
    first_tile = part * tiles
    end_tile = tl.minimum(first_tile + tiles, all_tiles)
    for tile in range(first_tile, end_tile):
        position = index(tile, WIDE) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
        inside = position < positions
        image, row, column = locate(position, width, height, ROWS)
        column *= span
        pixel = image * stride_n + row * stride_h + column * (stride_o if CHANNELS_LAST else 1)
        pointers = _pointers(x, pixel, channel, stride_o, 1, span, CHANNELS_LAST)
        values = _load_rows(pointers, stride_h, row, inside, has_channel, height, ROWS, CHANNELS_LAST)
        negative = ()
        for r in tl.static_range(ROWS):
            negative = negative + (negative_part(values[r], accumulator_type),)
        dense_pixel = image * (C * plane) + (row * columns + column) * pixel_stride
        if CHANNELS_LAST:
            correlated, tap_sums = _correlate_channels_last(
                grad_z + dense_pixel[:, None] + channel[None, :], negative, tap_sums, taps, row, column, inside,
                channel, height, columns, C, KERNEL, ROWS)
        else:
            correlated, tap_sums = _correlate_contiguous(
                grad_z + dense_pixel[None, :] + (channel * plane)[:, None], negative, tap_sums, taps, row, column,
                inside, channel, height, columns, C, KERNEL, span, ROWS)
        pixel = image * grad_stride_n + row * grad_stride_h
        pixel += column * (grad_stride_o if CHANNELS_LAST else grad_stride_i)
        rows = _branch_gradient(grad, weight, weight_tile, pixel, row, inside, channel, height, grad_stride_h,
                                grad_stride_o, grad_stride_i, C, span, ROWS, BLOCK_OUTPUTS, CHANNELS_LAST,
                                accumulator_type, PRECISION)
        if slope is not None:
            of_p = tl.expand_dims(tl.load(slope + channel, has_channel, 0.0), axis)
            added = tl.expand_dims(tl.load(constant + channel, has_channel, 0.0), axis)
        pointers = _pointers(dx, dense_pixel, channel, plane, 1, span, CHANNELS_LAST)
        for r in tl.static_range(ROWS):
            value = _flat(values[r], CHANNELS_LAST)
            passed = rows[r]
            if slope is not None:
                passed += value.to(accumulator_type) * of_p + added
            gradient = tl.where(value > 0, passed, tl.where(value < 0, _flat(correlated[r], CHANNELS_LAST), 0.0))
            gradient = tl.reshape(gradient.to(dx.dtype.element_ty), pointers.shape)
            tl.store(pointers, gradient, _mask(inside & (row + r < height), has_channel, CHANNELS_LAST))
            pointers += columns * pixel_stride
    taps_parts += index(part, True) * (KERNEL * KERNEL * C) + channel
    missing = tl.zeros((BLOCK_CHANNELS,), tl.int32)
    for tap in tl.static_range(KERNEL * KERNEL):
        total = tl.sum(tap_sums[tap % KERNEL * KERNEL + tap // KERNEL], axis)
        missing |= (total != total).to(tl.int32)
        tl.store(taps_parts + tap * C, total, has_channel)
    # Past the edge g_z was 0, of which ±Inf and NaN make a NaN: where there is one, the sums are formed without.
    if tl.max(missing, 0) > 0:
        for any_tap in range(KERNEL * KERNEL):
            total = _tap_sum(x, grad_z, any_tap, first_tile, end_tile, channel, height, width, positions, stride_n,
                             stride_h, stride_o, plane, C, KERNEL, span, ROWS, BLOCK_POSITIONS, CHANNELS_LAST, WIDE,
                             accumulator_type)
            tl.store(taps_parts + any_tap * C, total, has_channel)


# ---- launches ----------------------------------------------------------------------------------------------


def input_gradient_shares(grad: Tensor, x: Tensor, deconv_weight: Tensor, weight: Tensor, constant: Tensor | None,
                          slope: Tensor | None, channels_last: bool,
                          given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x's gradient as :func:`leni_input_gradient` has it, and the programs' shares ``[parts, k, k, C]`` of D's.

    ``weight`` ``[C, 2C]`` has x's dtype, ``constant`` and ``slope`` are float32 or for a float64 x float64; all three
    and D are contiguous, and D is of any floating dtype. What is ``given``, of x's dtype and laid out as x's gradient,
    stands in z's place beside the slope; it is overwritten.
    """
    dx = empty_as(x, channels_last)
    channels, kernel_size = x.shape[1], deconv_weight.shape[-1]
    taps_shape, dtype = (kernel_size, kernel_size, channels), folding_dtype(x.dtype)
    if x.numel() == 0:
        return dx, x.new_empty(0, *taps_shape, dtype=dtype)
    target = architecture(x)
    operand = operand_of(x)
    where = channels, kernel_size, operand, target, channels_last
    vector, strides = vectors(x, channels_last)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    shared = {"GRAD_VECTOR": grad_vector, "WIDE": wide(x, grad, dx)}
    chosen = [for_vectors(choose(*where), vector, operand, channels_last)
              for choose in (configs.negative_gradient, configs.input_gradient)]
    first, second = (
        _tile(x, config, shared | input_gradient_constants(
            channels, kernel_size, vector, operand, config, channels_last))
        for config in chosen)
    grad_z = torch.empty_like(dx) if given is None else given
    taps, taps_parts = (x.new_empty(tiling.parts, *taps_shape, dtype=dtype) for tiling in (first, second))
    with on_device_of(x):
        launchable(leni_negative_gradient_kernel)[(first.programs,)](
            grad, x, deconv_weight, weight, constant, slope, taps, grad_z, *first.sizes, *strides, *grad_strides,
            **first.constants, GIVEN=given is not None, num_warps=chosen[0].warps, num_stages=1)
        launchable(leni_input_gradient_kernel)[(second.programs,)](
            grad, x, grad_z, weight, constant, slope, taps, dx, taps_parts, *second.sizes, *strides, *grad_strides,
            **second.constants, num_warps=chosen[1].warps, num_stages=1)
    return dx, taps_parts


def leni_input_gradient(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None,
                        slope: Tensor | None, matrix: Tensor | None = None,
                        centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradients of x, in x's dtype and order, and of taps ``[C, k, k]``, for a gradient of the folded form.

    ``grad`` ``[N, C, H, W]`` may have any strides. ``constant`` and ``slope`` ``[2C]``, or neither, are added to
    the gradient of ``a = [max(x, 0); z]``, z = taps ⋆ᵀ min(x, 0), as ``constant + slope·a``; with a ``matrix``
    ``[C, C]`` and a ``centre`` ``[C]``, of ``a = [max(x, 0); matrix·(z − centre)]``, whose second half is rounded to
    x's dtype.
    """
    given = None if matrix is None or x.numel() == 0 else multiplied_distances(x, taps, matrix, centre)
    added = (None, None) if slope is None else (constant.contiguous(), slope.contiguous())
    dx, shares = input_gradient_shares(grad, x, taps.contiguous(), weight.to(x.dtype).contiguous(), *added,
                                       reads_channels_last("leni_input_gradient_triton", x), given)
    return dx, summed_taps(shares, taps)


class _Tiling(NamedTuple):
    """How a pass runs over one input."""

    parts: int
    blocks: int
    sizes: tuple[int, ...]
    """Height, positions in a row and in all, and the tiles in all and of each program."""
    constants: dict[str, Any]

    @property
    def programs(self) -> int:
        return self.parts * self.blocks


def _tile(x: Tensor, config: Config, constants: dict[str, Any]) -> _Tiling:
    batch, _, height, width = x.shape
    columns = width if constants["CHANNELS_LAST"] else width // constants["VECTOR"]
    positions = batch * ceil_div(height, config.rows) * columns
    tiles, blocks = ceil_div(positions, constants["BLOCK_POSITIONS"]), ceil_div(x.shape[1], config.channels)
    parts, tiles_each = split(x, config.warps, tiles, blocks, ROUNDS)
    return _Tiling(parts, blocks, (height, columns, positions, tiles, tiles_each), constants)


def input_gradient_constants(channels: int, kernel_size: int, vector: int, operand: str, config: Config,
                             channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "KERNEL": kernel_size, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_POSITIONS": block_positions(config.positions, vector, operand, channels_last),
        "BLOCK_CHANNELS": config.channels, "BLOCK_OUTPUTS": config.outputs, "CHANNELS_LAST": channels_last,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }
