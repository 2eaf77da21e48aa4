"""What LENI's Triton kernels share: a tile of x as both branches, read in place in either layout.

A stride-1 transposed convolution is a correlation with flipped taps. A tile is a set of *positions*: a
position is ``ROWS`` output pixels under each other (in NCHW, ``VECTOR`` times as many, side by side), so
that one load of x serves up to k output rows. z is formed in float32 (float64 for float64).
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.gpu.packed import negative_part
from ...common.gpu.support import ceil_div, jit, power_of_two, tl
from ...two_branch.gpu.tiles import block_positions, locate, vectors
from ...two_branch.reference import folding_dtype


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
def within(place, length, SHIFT: tl.constexpr):
    """Whether ``SHIFT`` from a row or column of an image is another one, where the image has ``length`` of them."""
    if SHIFT < 0:
        return place >= -SHIFT
    elif SHIFT == 0:
        return tl.full(place.shape, True, tl.int1)
    else:
        return place < length - SHIFT


@jit
def concatenate(tiles, AXIS: tl.constexpr):
    """A tuple of [A, B] tiles (a power of two of them) as one tile, along AXIS."""
    if len(tiles) == 1:
        return tiles[0]
    else:
        half: tl.constexpr = len(tiles) // 2
        first = concatenate(tiles[:half], AXIS)
        second = concatenate(tiles[half:], AXIS)
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
        return concatenate(rows, AXIS)
    else:
        even = ()
        odd = ()
        for r in tl.static_range(len(rows)):
            pairs = tl.reshape(rows[r], (rows[r].shape[0], rows[r].shape[1] // 2, 2))
            first, second = tl.split(pairs)
            even = even + (first,)
            odd = odd + (second,)
        both = tl.join(concatenate(even, AXIS), concatenate(odd, AXIS))
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


def taps_of(x: Tensor, parts: int, kernel_size: int) -> Tensor:
    """Room for D ``[k, k, C]`` of each of several programs, in the dtype that z is formed in."""
    return x.new_empty(parts, kernel_size, kernel_size, x.shape[1], dtype=folding_dtype(x.dtype))


def row_constants(channels: int, kernel_size: int, vector: int, operand: str, config: Any,
                  channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "KERNEL": kernel_size, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_POSITIONS": block_positions(config.positions, vector, operand, channels_last),
        "BLOCK_CHANNELS": config.channels, "CHANNELS_LAST": channels_last,
    }


def cover(x: Tensor, constants: dict[str, Any]) -> tuple[int, int, int]:
    """The positions in a row of the image, the positions in all, and the tiles that cover them."""
    batch, _, height, width = x.shape
    columns = width if constants["CHANNELS_LAST"] else width // constants["VECTOR"]
    positions = batch * ceil_div(height, constants["ROWS"]) * columns
    return columns, positions, ceil_div(positions, constants["BLOCK_POSITIONS"])
