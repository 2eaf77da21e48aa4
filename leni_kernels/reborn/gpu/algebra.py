"""The algebra of Reborn's norm in Triton, a launch at a time, on vectors of channels.

How programs share the work, and what they round, is said in ``two_branch/gpu/algebra.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.gpu.support import ceil_div, jit, launchable, on_device_of, tl
from ...two_branch.gpu.algebra import (
    COLUMNS,
    LANES,
    ROWS,
    VECTOR,
    WIDTH,
    PassedOn,
    counted,
    fold_bias,
    fold_columns,
    folded_weight,
    gradient_like,
    inverse_root,
    merged,
    move,
    parameter,
    store_statistics,
    summed_column,
    through_statistics,
    tile_of_columns,
)
from ...two_branch.gpu.tiles import StatisticsShares
from ...two_branch.reference import folding_dtype


@jit
def reborn_update_kernel(statistics, mean, variance, batches, C: tl.constexpr, MOMENTUM: tl.constexpr,
                         BLOCK: tl.constexpr):
    """One program, as for LENI."""
    momentum = counted(batches, MOMENTUM)
    count = tl.load(statistics + 2 * C)
    for start in range(0, C, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        mask = channel < C
        move(mean, channel, mask, tl.load(statistics + channel, mask, 0.0), momentum)
        unbiased = tl.load(statistics + C + channel, mask, 0.0) * (count / (count - 1.0))
        move(variance, channel, mask, unbiased, momentum)


@jit
def reborn_fold_kernel(counts, means, squares, given_mean, given_variance, statistics, norm_weight, norm_bias,
                       compress_weight, compress_bias, weight, bias, mean, parts, values, C: tl.constexpr,
                       EPS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
                       WIDTH: tl.constexpr):
    """The first programs: two columns of the weight a channel, for statistics that they merge, or are given; then of
    the bias. ``values`` are those of a channel where statistics are given."""
    program = tl.program_id(0)
    blocks: tl.constexpr = ceil_div(C, COLUMNS)
    if program < blocks:
        channel = program * COLUMNS + tl.arange(0, COLUMNS)
        mask = channel < C
        if counts is not None:
            count, of_channel, variance = merged(counts, means, squares, parts, channel, mask, C, LANES)
        else:
            count = tl.cast(values, tl.float64)
            of_channel = tl.load(given_mean + channel, mask, 0.0).to(tl.float64)
            variance = tl.load(given_variance + channel, mask, 1.0).to(tl.float64)
        store_statistics(statistics, count, of_channel, variance, channel, mask, C)
        tl.store(mean + channel, of_channel.to(mean.dtype.element_ty), mask)
        scale = parameter(norm_weight, channel, mask, 1.0) * inverse_root(variance, EPS)
        ones = tl.full((COLUMNS,), 1.0, tl.float64)
        fold_columns(compress_weight, weight, ones, channel, mask, None, None, None, C, 4 * ROWS,
                     bias.dtype.element_ty)
        fold_columns(compress_weight, weight, scale, channel + C, mask, None, None, None, C, 4 * ROWS,
                     bias.dtype.element_ty)
    else:
        row = (program - blocks) * ROWS + tl.arange(0, ROWS)
        fold_bias(compress_weight, compress_bias, norm_bias, bias, row, C, C, C, WIDTH)


@jit
def reborn_fold_backward_kernel(shares, statistics, grad_statistics, norm_weight, norm_bias, compress_weight,
                                grad_scale, grad_shift, grad_compress, grad_bias, matrices, constant, slope, parts,
                                C: tl.constexpr, EPS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
                                LANES: tl.constexpr):
    """A program: one channel, with its two columns; as :func:`leni_fold_backward_kernel`.

    ``matrices`` [2, C, C] are the halves of the folded weight, transposed. Without shares and gradients of the
    statistics there is no constant and no slope.
    """
    accumulator_type: tl.constexpr = constant.dtype.element_ty
    channel = tl.program_id(0)
    row = tl.arange(0, ROWS)
    has_row = row < C
    inverse = inverse_root(tl.load(statistics + C + channel), EPS)
    scale = parameter(norm_weight, channel, True, 1.0) * inverse
    place = row * (2 * C) + channel
    positive = folded_weight(compress_weight, place, has_row, 1.0, matrices, accumulator_type)
    folded = folded_weight(compress_weight, place + C, has_row, scale, matrices, accumulator_type)
    tl.store(matrices + channel * C + row, positive, has_row)
    tl.store(matrices + (C + channel) * C + row, folded, has_row)
    if shares is not None:
        of_positive = summed_column(shares, channel, parts, row, C, LANES)
        of_weight = summed_column(shares, channel + C, parts, row, C, LANES)
        of_bias = summed_column(shares, 2 * C, parts, row, C, LANES)
        compress = tl.load(compress_weight + place + C, has_row, 0.0).to(tl.float64)
        shift = tl.sum(compress * of_bias, 0)
        scaled = tl.sum(compress * of_weight, 0)
        of_negative = of_weight * scale + of_bias * parameter(norm_bias, channel, True, 0.0)
        tl.store(grad_compress + place, of_positive.to(grad_compress.dtype.element_ty), has_row)
        tl.store(grad_compress + place + C, of_negative.to(grad_compress.dtype.element_ty), has_row)
        tl.store(grad_bias + row, of_bias.to(grad_bias.dtype.element_ty), has_row & (channel == 0))
        if grad_scale is not None:
            tl.store(grad_scale + channel, (scaled * inverse).to(grad_scale.dtype.element_ty))
        if grad_shift is not None:
            tl.store(grad_shift + channel, shift.to(grad_shift.dtype.element_ty))
        if HALF:
            shift = tl.sum(folded.to(tl.float64) * of_bias, 0)
            scaled = tl.sum(folded.to(tl.float64) * of_weight, 0)
        else:
            shift *= scale
            scaled *= scale
        grad_mean = -shift
        grad_variance = -0.5 * (inverse * inverse) * scaled
        tl.store(grad_statistics + channel, grad_mean)
        tl.store(grad_statistics + C + channel, grad_variance)
    elif grad_statistics is not None:
        grad_mean = tl.load(grad_statistics + channel)
        grad_variance = tl.load(grad_statistics + C + channel)
    if grad_statistics is not None:
        of_constant, of_slope = through_statistics(
            tl.load(statistics + channel), tl.load(statistics + 2 * C), grad_mean, grad_variance, accumulator_type)
        tl.store(constant + channel, of_constant)
        tl.store(slope + channel, of_slope)


def update_reborn(statistics: Tensor, mean: Tensor | None, variance: Tensor | None, batches: Tensor | None,
                  momentum: float | None) -> None:
    """As :func:`update_leni`, of Reborn's norm."""
    with on_device_of(statistics):
        launchable(reborn_update_kernel)[(1,)](
            statistics, mean, variance, batches, C=statistics.shape[0] // 2, MOMENTUM=momentum, BLOCK=VECTOR,
            num_warps=4)


def reborn_fold(x: Tensor, shares: StatisticsShares | None, mean: Tensor | None, variance: Tensor | None,
                norm_weight: Tensor | None, norm_bias: Tensor | None, compress_weight: Tensor,
                compress_bias: Tensor | None, eps: float) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Weight, bias and mean of ``y = weight · [max(x, 0); z − mean] + bias``, and the statistics packed.

    For the statistics that ``shares`` merge to, or else for a mean and a variance that are given.
    """
    channels, dtype = x.shape[1], folding_dtype(x.dtype)
    statistics = x.new_empty(2 * channels + 1, dtype=torch.float64)
    bias, of_z = (x.new_empty(channels, dtype=dtype) for _ in range(2))
    folded = x.new_empty(channels, 2 * channels), bias, of_z
    parts = 0 if shares is None else shares[0].shape[0]
    with on_device_of(x):
        launchable(reborn_fold_kernel)[(ceil_div(channels, COLUMNS) + ceil_div(channels, ROWS),)](
            *(shares or (None, None, None)), mean, variance, statistics, norm_weight, norm_bias, compress_weight,
            compress_bias, *folded, parts, x.numel() // channels, C=channels, EPS=eps, COLUMNS=COLUMNS, LANES=LANES,
            ROWS=ROWS, WIDTH=WIDTH, num_warps=4)
    return folded, statistics


def reborn_fold_backward(x: Tensor, shares: Tensor | None, statistics: Tensor, grad_statistics: Tensor | None,
                         norm_weight: Tensor | None, norm_bias: Tensor | None, compress_weight: Tensor, eps: float,
                         ) -> tuple[PassedOn, tuple[Tensor | None, ...], Tensor | None]:
    """As :func:`leni_fold_backward`, of γ, β, P and c; with neither shares nor gradients of the statistics ``[2C]``,
    only the weight is of use in what is passed on."""
    channels = x.shape[1]
    passed = PassedOn.empty(x, (2, channels, channels), channels)
    gradients: tuple[Tensor | None, ...] = (None,) * 4
    if shares is not None:
        grad_statistics = statistics.new_empty(2 * channels)
        gradients = (*map(gradient_like, (norm_weight, norm_bias, compress_weight)),
                     compress_weight.new_empty(channels))
    with on_device_of(x):
        launchable(reborn_fold_backward_kernel)[(channels,)](
            shares, statistics, grad_statistics, norm_weight, norm_bias, compress_weight, *gradients, *passed,
            0 if shares is None else shares.shape[1], C=channels, EPS=eps, HALF=x.dtype.itemsize == 2,
            **tile_of_columns(channels))
    return passed, gradients, grad_statistics
