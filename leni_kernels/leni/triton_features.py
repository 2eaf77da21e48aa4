"""What LENI's Triton kernels share: a tile of x as both branches, read in place in either layout.

A stride-1 transposed convolution is a correlation with flipped taps. A tile is a set of *positions*: a
position is ``ROWS`` output pixels under each other (in NCHW, ``VECTOR`` times as many, side by side), so
that one load of x serves up to k output rows; positions are numbered across rows and images, so that narrow
images fill a tile too. z is formed in float32 (float64 for float64).
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import warp_size
from ..triton_packed import negative_part, widened
from ..triton_support import (
    LONGEST_RUN,
    ceil_div,
    float32_operand,
    full_vector,
    itemsize,
    jit,
    multiprocessors,
    power_of_two,
    tl,
    vector_length,
)


@jit
def repeated(COUNT: tl.constexpr, tile):
    """A tuple of COUNT times the tile."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tile,)
    return tiles


@jit
def add_tap_row(sums, x, taps, INPUT_ROW: tl.constexpr):
    """Add one input row's share to every output row it reaches: ``sums[r] += taps[INPUT_ROW - r] · x``."""
    added = ()
    for r in tl.static_range(len(sums)):
        if r <= INPUT_ROW and INPUT_ROW - r < len(taps):
            added = added + (sums[r] + x * taps[INPUT_ROW - r],)
        else:
            added = added + (sums[r],)
    return added


@jit
def locate(position, width, height, ROWS: tl.constexpr):
    """The (image, first row, column) of a position, where ``width`` positions stand side by side in a row."""
    band = position // width
    bands = tl.cdiv(height, ROWS)
    return band // bands, band % bands * ROWS, position % width


@jit
def within(place, length, SHIFT: tl.constexpr):
    """Whether ``SHIFT`` from a row or column of an image is another one, where the image has ``length`` of them."""
    if SHIFT < 0:
        return place >= -SHIFT
    elif SHIFT == 0:
        return tl.full(place.shape, True, tl.int1)
    else:
        return place < length - SHIFT


@jit
def weight_tiles(weight, output, channel, C: tl.constexpr):
    """The two [outputs, channels] tiles of the [C, 2C] weight: positive branch, negative branch."""
    pointer = weight + output[:, None] * (2 * C) + channel[None, :]
    mask = (output < C)[:, None] & (channel < C)[None, :]
    return tl.load(pointer, mask, 0.0), tl.load(pointer + C, mask, 0.0)


@jit
def _concatenate(tiles, AXIS: tl.constexpr):
    """A tuple of [A, B] tiles (a power of two of them) as one tile, along AXIS."""
    if len(tiles) == 1:
        return tiles[0]
    else:
        half: tl.constexpr = len(tiles) // 2
        first = _concatenate(tiles[:half], AXIS)
        second = _concatenate(tiles[half:], AXIS)
        both = tl.permute(tl.join(first, second), (2, 0, 1) if AXIS == 0 else (0, 2, 1))
        return tl.reshape(both, (first.shape[0] * (2 - AXIS), first.shape[1] * (1 + AXIS)))


@jit
def join_rows(rows, AXIS: tl.constexpr):
    """A tuple of output rows, [A, B] each, concatenated along AXIS as an operand for the matrix units.

    No data moves between threads. Even and odd elements are concatenated apart: that leaves neighbours along
    B in neighbouring registers, and so lets Triton store the operand to shared memory 128 bits at a time. The last row
    is repeated up to a power of two.
    """
    for _ in tl.static_range(power_of_two(len(rows)) - len(rows)):
        rows = rows + (rows[len(rows) - 1],)
    if AXIS == 1 and rows[0].dtype == tl.float32:
        # Hopper's TF32 products want channels side by side, across B; and where no cast follows, as here,
        # Triton (3.6 and 3.8) aborts on pairs.
        return _concatenate(rows, AXIS)
    else:
        even = ()
        odd = ()
        for r in tl.static_range(len(rows)):
            pairs = tl.reshape(rows[r], (rows[r].shape[0], rows[r].shape[1] // 2, 2))
            first, second = tl.split(pairs)
            even = even + (first,)
            odd = odd + (second,)
        both = tl.join(_concatenate(even, AXIS), _concatenate(odd, AXIS))
        return tl.reshape(both, (both.shape[0], both.shape[1] * 2))


# ---- channels last -----------------------------------------------------------------------------------------


@jit
def minus_negative_mean(mean, channel, C: tl.constexpr, AXIS: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """What some channels of z are summed from, for z less its mean, of the [2C] that there are; 0 where it is None."""
    if mean is None:
        return tl.expand_dims(tl.zeros(channel.shape, ACCUMULATOR), AXIS)
    else:
        return -tl.expand_dims(tl.load(mean + C + channel, channel < C, 0.0).to(ACCUMULATOR), AXIS)


@jit
def rows_channels_last(x, first, taps, start, row, column, inside, channel, height, width, stride_h, stride_w,
                       C: tl.constexpr, KERNEL: tl.constexpr, ROWS: tl.constexpr, EVEN_ROWS: tl.constexpr = False):
    """ROWS rows of x and of ``start`` + z, [P, K] each, of K channels at P positions.

    ``first`` [P, K] are the first rows' offsets; apart from ``x`` since their sums would be kept, or made anew, for
    every tap. ``start`` [P, K] or [1, K] is in z's dtype. EVEN_ROWS says that ROWS divides the height: a position's
    own rows are then in the image, and need no test.
    """
    half: tl.constexpr = KERNEL // 2
    centre = ()
    has_channel = channel < C
    sums = repeated(ROWS, tl.broadcast_to(start, first.shape))
    pointers = ()
    pointer = x + (first - half * (stride_h + stride_w))
    for _ in tl.static_range(ROWS + KERNEL - 1):
        pointers = pointers + (pointer,)
        pointer += stride_h
    # Columns outside, rows inside: only one column of the taps is held in registers at a time.
    for j in tl.static_range(KERNEL):
        tap_column = ()
        for i in tl.static_range(KERNEL):
            flipped = taps + (KERNEL * KERNEL - 1 - i * KERNEL - j) * C
            tap_column = tap_column + (tl.load(flipped + channel, has_channel, 0.0)[None, :],)
        inside_column = inside & within(column, width, j - half)
        for i in tl.static_range(ROWS + KERNEL - 1):
            if EVEN_ROWS and half <= i and i < half + ROWS:
                inside_row = inside_column
            else:
                inside_row = inside_column & within(row, height, i - half)
            values = tl.load(pointers[i] + j * stride_w, inside_row[:, None] & has_channel[None, :], 0.0)
            sums = add_tap_row(sums, negative_part(values, taps.dtype.element_ty), tap_column, i)
            if j == half and i >= half and i < half + ROWS:
                centre = centre + (values,)
    return centre, sums


# ---- NCHW --------------------------------------------------------------------------------------------------


@jit
def split_vector(vectors):
    """[K, P, VECTOR] as a tuple of VECTOR [K, P] tiles."""
    if vectors.shape[2] == 1:
        return (tl.reshape(vectors, (vectors.shape[0], vectors.shape[1])),)
    else:
        pairs = tl.reshape(vectors, (vectors.shape[0], vectors.shape[1], vectors.shape[2] // 2, 2))
        even, odd = tl.split(pairs)
        if vectors.shape[2] == 2:
            return (tl.reshape(even, (vectors.shape[0], vectors.shape[1])),
                    tl.reshape(odd, (vectors.shape[0], vectors.shape[1])))
        else:
            return _interleave(split_vector(even), split_vector(odd))


@jit
def _interleave(even, odd):
    elements = ()
    for e in tl.static_range(len(even)):
        elements = elements + (even[e], odd[e])
    return elements


@jit
def join_vector(elements):
    """A tuple of VECTOR [K, P] tiles as [K, P, VECTOR]."""
    if len(elements) == 1:
        return tl.expand_dims(elements[0], 2)
    elif len(elements) == 2:
        return tl.join(elements[0], elements[1])
    else:
        both = tl.join(join_vector(elements[::2]), join_vector(elements[1::2]))
        return tl.reshape(both, (both.shape[0], both.shape[1], both.shape[2] * 2))


@jit
def _load_negative(pointer, mask, ACCUMULATOR: tl.constexpr):
    return negative_part(tl.load(pointer, mask, 0.0), ACCUMULATOR)


@jit
def rows_contiguous(x, taps, start, row, column, inside, channel, height, width, stride_h,
                    C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr):
    """ROWS rows of x and of ``start`` + z, [K, P·VECTOR] each, of K channels at P positions.

    ``x`` [K, P] points at first rows; ``start`` [K, P·VECTOR] or [K, 1] is in z's dtype.
    """
    half: tl.constexpr = KERNEL // 2
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    centre = ()
    has_channel = channel < C
    start = tl.broadcast_to(start, (x.shape[0], x.shape[1] * VECTOR))
    sums = repeated(ROWS, tl.reshape(start, (x.shape[0], x.shape[1], VECTOR)))
    vector = tl.arange(0, VECTOR)[None, None, :]
    flipped = ()
    for i in tl.static_range(KERNEL * KERNEL):
        tap = tl.load(taps + (KERNEL * KERNEL - 1 - i) * C + channel, has_channel, 0.0)
        flipped = flipped + (tap[:, None, None],)
    pointer = x - half * stride_h
    for i in tl.static_range(ROWS + KERNEL - 1):
        # On both sides, where one would do: of fewer tests Triton 3.8 makes code that spills on sm_100.
        inside_row = has_channel[:, None] & (inside & (row >= half - i) & (row < height + half - i))[None, :]
        values = tl.load(tl.expand_dims(pointer, 2) + vector, tl.expand_dims(inside_row, 2), 0.0)
        if i >= half and i < half + ROWS:
            centre = centre + (tl.reshape(values, (x.shape[0], x.shape[1] * VECTOR)),)
        # The vector and its halo, element by element: column shifts are then a choice of registers.
        line = ()
        for j in tl.static_range(half):
            inside_halo = inside_row & (column >= half - j)[None, :]
            line = line + (_load_negative(pointer + (j - half), inside_halo, accumulator_type),)
        line = line + split_vector(negative_part(values, accumulator_type))
        for j in tl.static_range(half):
            inside_halo = inside_row & (column + VECTOR + j < width)[None, :]
            line = line + (_load_negative(pointer + (VECTOR + j), inside_halo, accumulator_type),)
        for j in tl.static_range(KERNEL):
            sums = add_tap_row(sums, join_vector(line[j:j + VECTOR]), flipped[j::KERNEL], i)
        pointer += stride_h
    lines = ()
    for r in tl.static_range(ROWS):
        lines = lines + (tl.reshape(sums[r], (x.shape[0], x.shape[1] * VECTOR)),)
    return centre, lines


# ---- either layout -----------------------------------------------------------------------------------------
# Here ``stride_o`` is the stride of the dimension that, with rows and images, is not x's stride-1 dimension: columns
# in channels-last, channels in NCHW. SPAN is the pixels of a position that stand side by side: 1, or VECTOR in NCHW.


@jit
def rows_of(x, taps, start, position, inside, channel, height, width, stride_n, stride_h, stride_o,
            C: tl.constexpr, KERNEL: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
            CHANNELS_LAST: tl.constexpr):
    """ROWS rows of x and of ``start`` + z, [P, K] each (in NCHW, [K, P·SPAN]), of K channels at P positions.

    ``start`` is as they are, or one for all positions.
    """
    image, row, column = locate(position, width, height, ROWS)
    first = image * stride_n + row * stride_h
    if CHANNELS_LAST:
        offset = (first + column * stride_o)[:, None] + channel[None, :]
        return rows_channels_last(x, offset, taps, start, row, column, inside, channel, height, width, stride_h,
                                  stride_o, C, KERNEL, ROWS)
    else:
        base = x + (first + column * SPAN)[None, :] + (channel * stride_o)[:, None]
        return rows_contiguous(base, taps, start, row, column * SPAN, inside, channel, height, width * SPAN, stride_h,
                               C, KERNEL, SPAN, ROWS)


@jit
def pixels_of(origin, height, width, POSITIONS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr):
    """Of each pixel of a tile, in the order of :func:`join_rows`: its position, image, row and column."""
    pixel = tl.arange(0, ROWS * POSITIONS * SPAN)
    position = origin + pixel // SPAN % POSITIONS
    image, row, column = locate(position, width, height, ROWS)
    return position, image, row + pixel // (POSITIONS * SPAN), column * SPAN + pixel % SPAN


# ---- training ----------------------------------------------------------------------------------------------


@jit
def index(value, WIDE: tl.constexpr):
    """A number that offsets are made of, in 64 bits where they need as many."""
    return tl.cast(value, tl.int64 if WIDE else tl.int32)


@jit
def load_pixels(base, image, row, column, inside, channel, stride_n, stride_h, stride_o, stride_i,
                C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """A [pixels, channels] tile of an activation of any strides; stride_i is that of x's stride-1 dimension."""
    pixel = image * stride_n + row * stride_h + column * (stride_o if CHANNELS_LAST else stride_i)
    pointer = base + pixel[:, None] + (channel * (stride_i if CHANNELS_LAST else stride_o))[None, :]
    return tl.load(pointer, inside[:, None] & (channel < C)[None, :], 0.0)


@jit
def dense_offsets(image, row, column, channel, height, columns, C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The [pixels, channels] offsets in an activation without gaps; ``height`` of the type that they need."""
    plane = height * columns
    if CHANNELS_LAST:
        return ((image * plane + row * columns + column) * C)[:, None] + channel[None, :]
    else:
        return (image * (C * plane) + row * columns + column)[:, None] + (channel * plane)[None, :]


@jit
def add_deviations(deviations, inside, sums, squares):
    """Each lane's sums of deviations from its pivot, and of their squares, with rows added: the first ``inside``.

    With a lane's own first value as its pivot nothing is lost where variances are small against means: the pivot's
    squared deviation from the mean is itself a part of the lane's, so that the squares are at most (count + 1) times
    what is left of them in the end.
    """
    for r in tl.static_range(len(deviations)):
        deviation = tl.where(r < inside, deviations[r], 0.0)
        sums += deviation
        squares += deviation * deviation
    return sums, squares


@jit
def about_means(count, pivot, sums, squares):
    """Each lane's mean, and its squared deviations from that, by those from its pivot."""
    distance = sums * (1.0 / tl.maximum(count, 1).to(sums.dtype))
    squares -= sums * distance
    return pivot + distance, tl.where(squares < 0, 0.0, squares)


@jit
def merge_lanes(count, mean, squares, AXIS: tl.constexpr):
    """The mean and the sum of squared deviations of all lanes together, per channel."""
    weight = count.to(mean.dtype)
    part = 1.0 / tl.maximum(tl.sum(tl.sum(weight, 1), 0), 1.0)
    rough = tl.sum(weight * mean, AXIS) * part
    # What rounding took from a mean that is large against its deviations.
    whole = rough + tl.sum(weight * (mean - tl.expand_dims(rough, AXIS)), AXIS) * part
    distance = mean - tl.expand_dims(whole, AXIS)
    return whole, tl.sum(squares + weight * distance * distance, AXIS)


@jit
def less_mean(branch, mean, has_channel, AXIS: tl.constexpr):
    """A branch less its mean, in its dtype; ``mean`` points at the channels' means."""
    channel_mean = tl.expand_dims(tl.load(mean, has_channel, 0.0), AXIS)
    return (widened(branch, channel_mean.dtype) - channel_mean).to(branch.dtype)


@jit
def centred(branch, mean, inside, AXIS: tl.constexpr):
    """A branch less its mean, 0 where the image has ended."""
    return tl.where(inside, branch.to(mean.dtype) - tl.expand_dims(mean, AXIS), 0.0)


@jit
def store_taps(deconv_weight, taps, scale, channel, C: tl.constexpr, KERNEL: tl.constexpr):
    """D [C, k, k] of some channels, whatever its dtype, times their ``scale`` if there is one, as ``taps`` [k, k, C].

    So a tile's channels stand side by side; as D lies, each of them would be a load of its own in every tile.
    """
    size: tl.constexpr = KERNEL * KERNEL
    tap = tl.arange(0, power_of_two(size))
    mask = (channel < C)[:, None] & (tap < size)[None, :]
    values = tl.load(deconv_weight + (channel * size)[:, None] + tap[None, :], mask, 0.0)
    if scale is not None:
        values = values.to(tl.float64) * scale[:, None]
    tl.store(taps + (tap * C)[None, :] + channel[:, None], values.to(taps.dtype.element_ty), mask)


@jit
def lay_out(deconv_weight, taps, channel, C: tl.constexpr, KERNEL: tl.constexpr):
    """:func:`store_taps` for the program to read itself, from where no other one writes."""
    store_taps(deconv_weight, taps, None, channel, C, KERNEL)
    tl.debug_barrier()


@jit
def store_share(shares, part, parts, output, channel, positive, negative, bias, has_bias, C: tl.constexpr):
    """Write a program's share of the gradients of weight [C, 2C] and, if it has one, of bias [C].

    ``shares`` are [2C + 1, parts, C]: all that a column of the weight is the sum of lies together, bias the last one.
    """
    column = index(parts, True) * C
    pointer = shares + index(part, True) * C + output[:, None]
    mask = (output < C)[:, None] & (channel < C)[None, :]
    tl.store(pointer + (channel * column)[None, :], positive, mask)
    tl.store(pointer + ((channel + C) * column)[None, :], negative, mask)
    if has_bias:
        tl.store(shares + (2 * C * column + index(part, True) * C) + output, bias, output < C)


# ---- launches ----------------------------------------------------------------------------------------------


_OPERANDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


def operand_of(x: Tensor, architecture: str) -> str:
    """What the matrix units multiply for x's dtype: "fp16", "bf16", "tf32", "fp32" or "fp64"."""
    return _OPERANDS.get(x.dtype) or float32_operand(architecture)


def vectors(x: Tensor, channels_last: bool) -> tuple[int, tuple[int, int, int]]:
    """The length of an aligned vector along x's stride-1 dimension, and the other strides in vectors."""
    inner, others = (1, (0, 2, 3)) if channels_last else (3, (0, 2, 1))
    steps = [x.stride(dimension) for dimension in others if x.shape[dimension] > 1]
    length = vector_length(x.dtype.itemsize, x.shape[inner], *steps)
    return length, tuple(x.stride(dimension) // length for dimension in others)


def units_of_rows(x: Tensor, channels_last: bool) -> tuple[int, tuple[int, int, int]]:
    """As :func:`vectors`, but in channels-last all channels of a pixel are one where the strides are whole pixels.

    The pixels of a row without gaps are then 1 apart, which Triton takes for a constant: the loads of neighbouring
    columns share an address.
    """
    channels, others = x.shape[1], (0, 2, 3)
    if channels_last and not any(x.stride(dimension) % channels for dimension in others if x.shape[dimension] > 1):
        return channels, tuple(x.stride(dimension) // channels for dimension in others)
    return vectors(x, channels_last)


NARROW_VECTORS = (4, 2, 1)
"""Of half precision in NCHW, in planes of 28, 14 and 7 columns; compiled ahead as well."""


def block_positions(positions: int, vector: int, operand: str, channels_last: bool) -> int:
    """The positions of a tile: a configuration counts NCHW's in full vectors; narrower ones take more."""
    return positions if channels_last else positions * full_vector(operand) // vector


def loads_of_rows(kernel_size: int, operand: str, config: Any, vector: int, channels_last: bool,
                  architecture: str) -> tuple[int, int]:
    """The bits of a load of x, and how many such loads a thread should make for one block of channels."""
    threads = config.warps * warp_size(architecture)
    elements = config.positions * config.channels * (1 if channels_last else full_vector(operand))
    vector = min(vector, max(1, elements // threads))
    shifts = kernel_size if channels_last else 1
    loads = (config.rows + kernel_size - 1) * shifts * max(1, elements // (threads * vector))
    return vector * itemsize(operand) * 8, loads


ROUNDS = 6
"""Of programs, where each leaves little behind: they are whole rounds where a multiprocessor holds twice, three or six
times as many as :func:`programs_at_once` counts, and end together though some run slower."""
_FEW_TILES = 8
"""For which a program is still worth its start."""


def programs_at_once(x: Tensor, warps: int) -> int:
    """The programs that x's GPU runs at once, where a thread takes all the registers it can have: 8 warps fit."""
    return multiprocessors(x) * max(1, 8 // warps)


def split(x: Tensor, warps: int, tiles: int, blocks: int, rounds: int = 1) -> tuple[int, int]:
    """How many programs share the tiles of one block, and how many tiles each takes.

    All blocks together have as many programs as run in ``rounds``, or fewer for few tiles, but no fewer than run at
    once; and more where one had more than LONGEST_RUN tiles.
    """
    at_once = programs_at_once(x, warps)
    fewest, most = (ceil_div(tiles, max(1, programs // blocks)) for programs in (rounds * at_once, at_once))
    each = min(max(fewest, min(most, _FEW_TILES)), LONGEST_RUN)
    return ceil_div(tiles, each), each


class StatisticsShares(NamedTuple):
    """What the programs of a pass found of their parts of a batch."""

    counts: Tensor
    """``[parts]`` int64: the values a channel."""
    means: Tensor
    """``[parts, features]``."""
    squares: Tensor
    """``[parts, features]``: the sums of squared deviations."""


def gradient_vectors(grad: Tensor, channels_last: bool) -> tuple[int, tuple[int, int, int, int]]:
    """As :func:`vectors`, for a gradient whose stride along x's stride-1 dimension, the last one, may be any."""
    inner, others = (1, (0, 2, 3)) if channels_last else (3, (0, 2, 1))
    if grad.shape[inner] > 1 and grad.stride(inner) != 1:
        return 1, tuple(grad.stride(dimension) for dimension in (*others, inner))
    length, strides = vectors(grad, channels_last)
    return length, (*strides, 1)
