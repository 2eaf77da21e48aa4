"""What the Triton kernels of LENI and Reborn share: tiles of pixels by channels, sums over them, and their launches.

Positions are numbered across rows and images, so that narrow images fill a tile too; in NCHW a position may be a vector
of pixels side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...common.gpu.architectures import warp_size
from ...common.gpu.packed import widened
from ...common.gpu.support import (
    LONGEST_RUN,
    ceil_div,
    full_vector,
    itemsize,
    jit,
    multiprocessors,
    tl,
    vector_length,
)


@jit
def locate(position, width, height, ROWS: tl.constexpr):
    """The (image, first row, column) of a position, where ``width`` positions stand side by side in a row."""
    band = position // width
    bands = tl.cdiv(height, ROWS)
    return band // bands, band % bands * ROWS, position % width


@jit
def weight_tiles(weight, output, channel, C: tl.constexpr):
    """The two [outputs, channels] tiles of the [C, 2C] weight: positive branch, negative branch."""
    pointer = weight + output[:, None] * (2 * C) + channel[None, :]
    mask = (output < C)[:, None] & (channel < C)[None, :]
    return tl.load(pointer, mask, 0.0), tl.load(pointer + C, mask, 0.0)


@jit
def pixels_of(origin, height, width, POSITIONS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr):
    """Of each pixel of a tile, in the order in which rows are joined: its position, image, row and column."""
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

def vectors(x: Tensor, channels_last: bool) -> tuple[int, tuple[int, int, int]]:
    """The length of an aligned vector along x's stride-1 dimension, and the other strides in vectors."""
    inner, others = (1, (0, 2, 3)) if channels_last else (3, (0, 2, 1))
    steps = [x.stride(dimension) for dimension in others if x.shape[dimension] > 1]
    length = vector_length(x.dtype.itemsize, x.shape[inner], *steps)
    return length, tuple(x.stride(dimension) // length for dimension in others)


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
