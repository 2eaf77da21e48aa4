"""The algebra of the norms on vectors of channels, in Triton, a launch at a time.

What a pass over the activations leaves, shares of a few hundred programs, one launch sums, puts through the algebra
and casts and lays out for the next pass: no PyTorch call stands between two kernels. The formulas are derived at the
top of ``csrc/two_branch/norms.h`` and, for running statistics, in ``fold_leni`` and ``fold_reborn``. Vectors are
computed in float64 whatever the parameters are, and those are read as they are. No sum is atomic: equal shapes give
equal bits. Here is what LENI and Reborn share; the rest is in the ``algebra.py`` of either.

Latency is all that these kernels cost, so what they read is spread over the GPU and read in few, large tiles. Forward,
a program has 16 columns of the weight, and merges the 64 next shares of them at a time; the bias does not depend on
the statistics where features are less their mean, and programs of the same grid compute it, a few rows each.
Backward, where the shares are C times as large (8 MiB for C = 64), everything is of one column of the weight once
Σ dy is known: so a program has one column, whose shares lie together, and of which it reads 8192 numbers at a time,
two or three times in all. Σ dy each of them sums for itself, from L2: a launch of its own would take longer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...common.gpu.support import ceil_div, jit, launchable, on_device_of, power_of_two, tl
from ..reference import folding_dtype
from .tiles import index, merge_lanes

# A parameter that is absent is None. ``statistics`` are mean, biased variance and count, packed in float64. What is
# folded is for y = weight · (a − mean) + bias, as the kernels read it: weight in x's dtype, the rest in that of sums.


@jit
def parameter(pointer, place, mask, DEFAULT: tl.constexpr):
    """Some of a parameter in float64, or as many defaults if there is none."""
    if pointer is None:
        return tl.full(place.shape, DEFAULT, tl.float64)
    else:
        return tl.load(pointer + place, mask, 0.0).to(tl.float64)


@jit
def inverse_root(variance, EPS: tl.constexpr):
    return 1.0 / tl.sqrt(variance + EPS)


@jit
def merged(counts, means, squares, parts, feature, mask, FEATURES: tl.constexpr, LANES: tl.constexpr):
    """Count of all parts, and mean and biased variance of some features; the mean as the passes subtract it."""
    shape: tl.constexpr = (LANES, feature.shape[0])
    count = tl.zeros((LANES, 1), tl.float64)
    mean = tl.zeros(shape, tl.float64)
    deviations = tl.zeros(shape, tl.float64)
    for first in range(0, parts, LANES):
        part = (first + tl.arange(0, LANES))[:, None]
        place = index(part, True) * FEATURES + feature[None, :]
        inside = (part < parts) & mask[None, :]
        own = tl.load(counts + part, part < parts, 0).to(tl.float64)
        distance = tl.load(means + place, inside, 0.0).to(tl.float64) - mean
        share = own / tl.maximum(count + own, 1.0)
        mean += distance * share
        deviations += tl.load(squares + place, inside, 0.0).to(tl.float64) + distance * distance * (count * share)
        count += own
    mean, deviations = merge_lanes(count, mean, deviations, 0)
    count = tl.sum(tl.sum(count, 1), 0)
    return count, mean.to(means.dtype.element_ty).to(tl.float64), deviations / tl.maximum(count, 1.0)


@jit
def store_statistics(statistics, count, mean, variance, feature, mask, FEATURES: tl.constexpr):
    tl.store(statistics + feature, mean, mask)
    tl.store(statistics + FEATURES + feature, variance, mask)
    tl.store(statistics + 2 * FEATURES + feature * 0, count, feature == 0)


@jit
def norms_merge_kernel(counts, means, squares, statistics, parts, FEATURES: tl.constexpr, COLUMNS: tl.constexpr,
                       LANES: tl.constexpr):
    """A program merges the shares of COLUMNS features."""
    feature = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = feature < FEATURES
    count, mean, variance = merged(counts, means, squares, parts, feature, mask, FEATURES, LANES)
    store_statistics(statistics, count, mean, variance, feature, mask, FEATURES)


@jit
def folded_weight(compress_weight, place, mask, scale, weight, ACCUMULATOR: tl.constexpr):
    """Some of P times the scales of its columns, rounded as what ``weight`` points at, and to sums' dtype before."""
    folded = tl.load(compress_weight + place, mask, 0.0).to(tl.float64) * scale
    return folded.to(ACCUMULATOR).to(weight.dtype.element_ty)


@jit
def fold_columns(compress_weight, weight, scale, column, mask, shift, share, has_share, C: tl.constexpr,
                 ROWS: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The folded weight [C, 2C] of some columns; with a ``shift`` of them, its product as a share [C] of the bias."""
    for first in range(0, C, ROWS):
        row = first + tl.arange(0, ROWS)
        place = (row * (2 * C))[:, None] + column[None, :]
        inside = (row < C)[:, None] & mask[None, :]
        folded = folded_weight(compress_weight, place, inside, scale[None, :], weight, ACCUMULATOR)
        tl.store(weight + place, folded, inside)
        if shift is not None:
            product = tl.sum(folded.to(tl.float64) * shift[None, :], 1)
            tl.store(share + row, product.to(ACCUMULATOR), (row < C) & has_share)


@jit
def fold_bias(compress_weight, compress_bias, shift, bias, row, C: tl.constexpr, OFFSET: tl.constexpr,
              FEATURES: tl.constexpr, WIDTH: tl.constexpr):
    """c + P·shift for some rows, where ``shift`` is of FEATURES columns of P from OFFSET on."""
    sums = parameter(compress_bias, row, row < C, 0.0)
    if shift is not None:
        for first in range(0, FEATURES, WIDTH):
            feature = first + tl.arange(0, WIDTH)
            mask = (row < C)[:, None] & (feature < FEATURES)[None, :]
            factors = tl.load(compress_weight + (row * (2 * C) + OFFSET)[:, None] + feature[None, :], mask, 0.0)
            sums += tl.sum(factors.to(tl.float64) * parameter(shift, feature, feature < FEATURES, 0.0)[None, :], 1)
    tl.store(bias + row, sums.to(bias.dtype.element_ty), row < C)


# ---- backward ----------------------------------------------------------------------------------------------


@jit
def summed_column(shares, column, parts, row, C: tl.constexpr, LANES: tl.constexpr):
    """One of the shares' columns [parts, C], summed in float64, at some rows."""
    sums = tl.zeros((LANES, row.shape[0]), tl.float64)
    shares += index(column, True) * parts * C
    for first in range(0, parts, LANES):
        part = (first + tl.arange(0, LANES))[:, None]
        values = tl.load(shares + index(part, True) * C + row[None, :], (part < parts) & (row < C)[None, :], 0.0)
        sums += values.to(tl.float64)
    return tl.sum(sums, 0)


@jit
def through_statistics(mean, count, grad_mean, grad_variance, ACCUMULATOR: tl.constexpr):
    """What the gradients of a feature's mean and variance add to that of its values: constant + slope · value."""
    slope = (2.0 * grad_variance / count).to(ACCUMULATOR)  # rounded first: the constant has to cancel what it adds
    return (grad_mean / count - slope.to(tl.float64) * mean).to(ACCUMULATOR), slope


# ---- running statistics ------------------------------------------------------------------------------------


@jit
def counted(batches, MOMENTUM: tl.constexpr):
    """Count a batch; returns the weight of its statistics in the running ones."""
    momentum = tl.full((), 0.0 if MOMENTUM is None else MOMENTUM, tl.float64)
    if batches is not None:
        count = tl.load(batches) + 1
        tl.store(batches, count)
        if MOMENTUM is None:
            momentum = 1.0 / count.to(tl.float64)
    return momentum


@jit
def move(running, place, mask, value, momentum):
    """Move running statistics towards a batch's."""
    if running is not None:
        dtype: tl.constexpr = running.dtype.element_ty
        before = tl.load(running + place, mask, 0.0).to(tl.float64)
        moved = before * (1.0 - momentum) + value.to(dtype).to(tl.float64) * momentum
        tl.store(running + place, moved.to(dtype), mask)


# ---- sums of shares alone ----------------------------------------------------------------------------------


@jit
def norms_sum_weight_kernel(shares, weight, bias, parts, C: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """A program: one column of the weight's gradient [C, 2C], or the bias'."""
    column = tl.program_id(0)
    row = tl.arange(0, ROWS)
    sums = summed_column(shares, column, parts, row, C, LANES).to(weight.dtype.element_ty)
    tl.store(weight + row * (2 * C) + column, sums, (row < C) & (column < 2 * C))
    tl.store(bias + row, sums, (row < C) & (column == 2 * C))


# ---- launches ----------------------------------------------------------------------------------------------
# x is only asked for its shape, dtype and device; D, P and the vectors are of any floating dtype and contiguous.

COLUMNS = 16
LANES = 64
"""Of features and of shares, where a program merges statistics."""
ROWS = 8
WIDTH = 64
"""Of rows and columns of P, where a program computes the bias."""
_TILE = 8192
"""Numbers that a program of 8 warps reads at once of a column's shares: 32 a thread, which its registers hold."""
VECTOR = 256
"""Of channels, where one program has all of them."""


def merged_statistics(counts: Tensor, means: Tensor, squares: Tensor) -> Tensor:
    """The packed statistics of all programs' values, from the shares of each."""
    features = means.shape[1]
    statistics = means.new_empty(2 * features + 1, dtype=torch.float64)
    with on_device_of(means):
        launchable(norms_merge_kernel)[(ceil_div(features, COLUMNS),)](
            counts, means, squares, statistics, counts.shape[0], FEATURES=features, COLUMNS=COLUMNS, LANES=LANES,
            num_warps=4)
    return statistics


class PassedOn(NamedTuple):
    """What the passes to x's gradient read: ``weightᵀ · dy + constant + slope · a``."""

    weight: Tensor
    """``[C, 2C]`` in x's dtype; of Reborn ``[2, C, C]``, its halves transposed."""
    constant: Tensor
    """``[2C]``, of Reborn ``[C]``, in float32 or for a float64 x in float64, as slope."""
    slope: Tensor

    @classmethod
    def empty(cls, x: Tensor, weight: tuple[int, ...], features: int) -> PassedOn:
        return cls(x.new_empty(weight), *(x.new_empty(features, dtype=folding_dtype(x.dtype)) for _ in range(2)))


def gradient_like(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.new_empty(parameter.shape)


def tile_of_columns(channels: int) -> dict[str, int]:
    """How a program reads a column of as many rows."""
    rows = power_of_two(channels)
    return {"ROWS": rows, "LANES": max(1, min(_TILE // rows, 256)), "num_warps": 8}


def summed_weight(shares: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight ``[C, 2C]`` and bias ``[C]``, in the shares' dtype."""
    columns, parts, channels = shares.shape
    weight, bias = shares.new_empty(channels, 2 * channels), shares.new_empty(channels)
    with on_device_of(shares):
        launchable(norms_sum_weight_kernel)[(columns,)](
            shares, weight, bias, parts, C=channels, **tile_of_columns(channels))
    return weight, bias
