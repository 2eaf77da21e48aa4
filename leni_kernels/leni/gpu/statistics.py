"""The statistics of LENI's branches in Triton, which its norms take of a batch in training.

T is the bytes of one activation. It reads x (1T), which is the least: the statistics depend on all of it. Both branches
are formed from x, tile by tile; what a tile reads a second time (halos) comes from L1 and L2. By the model (``make
predict``) the instructions bound it: it takes two to four times the time of its bytes. The tilings are those that
compile without spilling in the cases of ``tests/test_codegen.py``; the rest are not all compiled.

It is one launch. D it reads as it lies: every program first lays out its channels' share of it, as tiles read it, in a
place of its own. What the programs leave are shares, which the algebra's launches take; where the pass is called
alone, one more launch sums them.
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

import torch
from torch import Tensor

from ...common.gpu.packed import positive_part, widened
from ...common.gpu.support import architecture, ceil_div, jit, launchable, on_device_of, operand_of, tl, wide
from ...common.layout import reads_channels_last
from ...two_branch.gpu.algebra import merged_statistics
from ...two_branch.gpu.tiles import (
    ROUNDS,
    StatisticsShares,
    about_means,
    add_deviations,
    index,
    locate,
    merge_lanes,
    split,
)
from ...two_branch.reference import folding_dtype
from . import configs
from .configs import for_vectors
from .features import cover, lay_out, row_constants, rows_of, taps_of, units_of_rows


@jit
def leni_statistics_kernel(x, deconv_weight, taps, counts, means, squares, height, width, positions, all_tiles, tiles,
                           stride_n, stride_h, stride_o, C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr,
                           ROWS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                           CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Of each program's ``tiles`` tiles: its count of pixels, and means and squares [2C]; taps: a [k, k, C] each."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    lanes: tl.constexpr = BLOCK_POSITIONS * span
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    taps += index(part, True) * (KERNEL * KERNEL * C)
    lay_out(deconv_weight, taps, channel, C, KERNEL)
    # Of each lane's first value, of either branch, all others' deviations are summed.
    first = index(part * tiles, WIDE) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    first_rows, first_deconvolved = rows_of(
        x, taps, tl.zeros((1, 1), accumulator_type), first, first < positions, channel, height, width,
        stride_n, stride_h, stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
    positive_pivot = widened(positive_part(first_rows[0]), accumulator_type)
    negative_pivot = first_deconvolved[0]
    count = tl.expand_dims(tl.zeros((lanes,), tl.int32), 1 - axis)
    positive_sums = tl.zeros_like(positive_pivot)
    positive_squares = tl.zeros_like(positive_pivot)
    negative_sums = tl.zeros_like(positive_pivot)
    negative_squares = tl.zeros_like(positive_pivot)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        origin = index(tile, WIDE) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        rows, deconvolved = rows_of(x, taps, -negative_pivot, position, position < positions, channel, height, width,
                                    stride_n, stride_h, stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
        position = origin + tl.arange(0, lanes) // span
        _, row, _ = locate(position, width, height, ROWS)
        inside = tl.where(position < positions, tl.minimum(height - row, ROWS), 0).to(tl.int32)
        inside = tl.expand_dims(inside, 1 - axis)
        positive = ()
        for r in tl.static_range(ROWS):
            positive = positive + (widened(positive_part(rows[r]), accumulator_type) - positive_pivot,)
        positive_sums, positive_squares = add_deviations(positive, inside, positive_sums, positive_squares)
        negative_sums, negative_squares = add_deviations(deconvolved, inside, negative_sums, negative_squares)
        count += inside
    tl.store(counts + part, tl.sum(tl.sum(count, 1), 0))
    feature = index(part, True) * (2 * C) + channel
    mean, deviations = about_means(count, positive_pivot, positive_sums, positive_squares)
    mean, deviations = merge_lanes(count, mean, deviations, axis)
    tl.store(means + feature, mean, channel < C)
    tl.store(squares + feature, deviations, channel < C)
    mean, deviations = about_means(count, negative_pivot, negative_sums, negative_squares)
    mean, deviations = merge_lanes(count, mean, deviations, axis)
    tl.store(means + feature + C, mean, channel < C)
    tl.store(squares + feature + C, deviations, channel < C)


# ---- launches ----------------------------------------------------------------------------------------------


def statistics_shares(x: Tensor, deconv_weight: Tensor, channels_last: bool) -> StatisticsShares:
    """Those of ``a = [max(x, 0); D ⋆ᵀ min(x, 0)]`` ``[2C]``, in float32 or for a float64 x in float64.

    ``x`` ``[N, C, H, W]`` is as :func:`forward.leni_folded` takes it; D, contiguous, of any floating dtype and
    of k·k elements a channel. An empty x has no parts.
    """
    channels, kernel_size, dtype = x.shape[1], deconv_weight.shape[-1], folding_dtype(x.dtype)
    if x.numel() == 0:
        return StatisticsShares(x.new_empty(0, dtype=torch.int64),
                                *(x.new_empty(0, 2 * channels, dtype=dtype) for _ in range(2)))
    target = architecture(x)
    operand = operand_of(x)
    vector, strides = units_of_rows(x, channels_last)
    config = for_vectors(configs.statistics(channels, kernel_size, operand, target, channels_last), vector,
                         operand, channels_last)
    constants = row_constants(channels, kernel_size, vector, operand, config, channels_last) | {"WIDE": wide(x)}
    columns, positions, tiles = cover(x, constants)
    blocks = ceil_div(channels, config.channels)
    # In channels-last a program's lanes have more channels each to merge in the end, which takes as long as a tile.
    parts, tiles_each = split(x, config.warps, tiles, blocks, 2 if channels_last else ROUNDS)
    counts = x.new_empty(parts, dtype=torch.int64)
    means, squares = (x.new_empty(parts, 2 * channels, dtype=dtype) for _ in range(2))
    with on_device_of(x):
        launchable(leni_statistics_kernel)[(parts * blocks,)](
            x, deconv_weight, taps_of(x, parts, kernel_size), counts, means, squares, x.shape[2], columns, positions,
            tiles, tiles_each, *strides, **constants, num_warps=config.warps, num_stages=1)
    return StatisticsShares(counts, means, squares)


def leni_statistics(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[2C]`` of ``[max(x, 0); taps ⋆ᵀ min(x, 0)]``, in taps' dtype.

    ``x`` ``[N, C, H, W]`` and taps ``[C, k, k]`` are as :func:`forward.leni_folded` takes them.
    """
    channels_last = reads_channels_last("leni_statistics_triton", x)
    shares = statistics_shares(x, taps.contiguous(), channels_last)
    mean, variance, _ = merged_statistics(*shares).to(taps.dtype).split([2 * x.shape[1]] * 2 + [1])
    return mean.clone(), variance.clone()
