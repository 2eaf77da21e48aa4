"""The statistics of z = D ⋆ᵀ min(x, 0) in Triton, which Reborn's norm takes of a batch in training.

T is the bytes of one activation. It reads z (1T), which is the least: the statistics depend on all of it. It is one
launch, whose programs leave shares, as LENI's do.
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.gpu.packed import widened
from ...common.gpu.support import architecture, ceil_div, jit, launchable, on_device_of, operand_of, tl, wide
from ...common.layout import reads_channels_last
from ...two_branch.gpu.algebra import merged_statistics
from ...two_branch.gpu.configs import StatisticsConfig
from ...two_branch.gpu.tiles import (
    ROUNDS,
    StatisticsShares,
    about_means,
    add_deviations,
    block_positions,
    index,
    merge_lanes,
    pixels_of,
    split,
    vectors,
)
from ...two_branch.reference import folding_dtype
from . import configs
from .tiles import extent_of, joined_rows, load_dense


@jit
def reborn_statistics_kernel(z, counts, means, squares, height, width, positions, all_tiles, tiles, C: tl.constexpr,
                             VECTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
                             BLOCK_CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Of each program's ``tiles`` tiles, ROWS · BLOCK_PIXELS each: its count of pixels, and means and squares [C]."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    accumulator_type: tl.constexpr = means.dtype.element_ty
    block: tl.constexpr = BLOCK_PIXELS // span
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    height = index(height, WIDE)
    count = tl.zeros((BLOCK_PIXELS, 1), tl.int32)
    position, image, row, column = pixels_of(index(part * tiles, WIDE) * (ROWS * block), height, width, block, span, 1)
    pivot = load_dense(z, image, row, column, position < positions, channel, height, width * span, C, CHANNELS_LAST)
    pivot = pivot.to(accumulator_type)
    sums = tl.zeros_like(pivot)
    deviations = tl.zeros_like(pivot)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        rows = ()
        inside = tl.zeros((BLOCK_PIXELS,), tl.int32)
        for r in tl.static_range(ROWS):
            origin = (index(tile, WIDE) * ROWS + r) * block
            position, image, row, column = pixels_of(origin, height, width, block, span, 1)
            values = load_dense(z, image, row, column, position < positions, channel, height, width * span, C,
                                CHANNELS_LAST)
            rows = rows + (widened(values, accumulator_type) - pivot,)
            inside += (position < positions).to(tl.int32)
        inside = tl.expand_dims(inside, 1)
        sums, deviations = add_deviations(rows, inside, sums, deviations)
        count += inside
    tl.store(counts + part, tl.sum(tl.sum(count, 1), 0))
    feature = index(part, True) * C + channel
    mean, deviations = about_means(count, pivot, sums, deviations)
    mean, deviations = merge_lanes(count, mean, deviations, 0)
    tl.store(means + feature, mean, channel < C)
    tl.store(squares + feature, deviations, channel < C)


def statistics_shares(z: Tensor, channels_last: bool) -> StatisticsShares:
    """Those of z's C channels, in float32 or for a float64 z in float64; an empty z has no parts."""
    channels, dtype = z.shape[1], folding_dtype(z.dtype)
    if z.numel() == 0:
        return StatisticsShares(z.new_empty(0, dtype=torch.int64),
                                *(z.new_empty(0, channels, dtype=dtype) for _ in range(2)))
    z, = joined_rows(channels_last, z)
    target = architecture(z)
    operand = operand_of(z)
    config = configs.statistics(channels, operand, target, channels_last)
    vector, _ = vectors(z, channels_last)
    constants = statistics_constants(channels, vector, operand, config, channels_last) | {"WIDE": wide(z)}
    tiles = ceil_div(z.numel() // channels, config.rows * constants["BLOCK_PIXELS"])
    blocks = ceil_div(channels, config.channels)
    parts, tiles_each = split(z, config.warps, tiles, blocks, ROUNDS)
    counts = z.new_empty(parts, dtype=torch.int64)
    means, squares = (z.new_empty(parts, channels, dtype=dtype) for _ in range(2))
    with on_device_of(z):
        launchable(reborn_statistics_kernel)[(parts * blocks,)](
            z, counts, means, squares, *extent_of(z, vector, channels_last), tiles, tiles_each, **constants,
            num_warps=config.warps, num_stages=1)
    return StatisticsShares(counts, means, squares)


def reborn_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[C]`` of z, in float32 or for a float64 z in float64."""
    channels_last = reads_channels_last("reborn_statistics_triton", z, "z")
    statistics = merged_statistics(*statistics_shares(z, channels_last)).to(folding_dtype(z.dtype))
    mean, variance, _ = statistics.split([z.shape[1]] * 2 + [1])
    return mean.clone(), variance.clone()


def statistics_constants(channels: int, vector: int, operand: str, config: StatisticsConfig,
                         channels_last: bool) -> dict[str, Any]:
    positions = block_positions(config.positions, vector, operand, channels_last)
    return {
        "C": channels, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_PIXELS": positions if channels_last else positions * vector, "BLOCK_CHANNELS": config.channels,
        "CHANNELS_LAST": channels_last,
    }
