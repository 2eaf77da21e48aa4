"""The algebra of LENI's two norms in Triton, a launch at a time, on vectors of channels.

How programs share the work, and what they round, is said in ``two_branch/gpu/algebra.py``. In half precision the bias
has a share more of each program of columns of max(x, 0), whose mean is rounded there.
"""

from __future__ import annotations

from typing import NamedTuple

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
from ...two_branch.gpu.tiles import StatisticsShares, index
from ...two_branch.reference import folding_dtype
from .features import store_taps


@jit
def _scales(column, variance, negative_weight, C: tl.constexpr, NEGATIVE_EPS: tl.constexpr, FUSION_EPS: tl.constexpr):
    """Of some of the 2C features: γ1 and r1, which are 1 for p, and r2, for a's variance."""
    negative = column >= C
    gamma = parameter(negative_weight, column - C, negative & (column < 2 * C), 1.0)
    gamma = tl.where(negative, gamma, 1.0)
    first = tl.where(negative, inverse_root(variance, NEGATIVE_EPS), 1.0)
    # γ1²·v/(v + ε1), which at v = ∞ is γ1².
    seen = tl.where(negative, (1.0 - NEGATIVE_EPS / (variance + NEGATIVE_EPS)) * gamma * gamma, variance)
    return gamma, first, inverse_root(seen, FUSION_EPS)


@jit
def _rounded_mean(mean, column, weight, C: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The mean of some columns as the passes subtract it: of max(x, 0) in x's dtype, which ``weight`` has."""
    mean = mean.to(ACCUMULATOR)
    return tl.where(column < C, mean.to(weight.dtype.element_ty).to(ACCUMULATOR), mean)


@jit
def leni_fold_kernel(counts, means, squares, statistics, deconv_weight, negative_weight, fusion_weight, fusion_bias,
                     compress_weight, compress_bias, taps, weight, bias, mean, parts, C: tl.constexpr,
                     KERNEL: tl.constexpr, NEGATIVE_EPS: tl.constexpr, FUSION_EPS: tl.constexpr, COLUMNS: tl.constexpr,
                     LANES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SHARES: tl.constexpr):
    """The first programs: columns of the weight, for statistics that they merge, or read; then of the bias and D.

    The bias is SHARES shares: its own, and of each program of columns of max(x, 0) what rounding took of their mean.
    """
    program = tl.program_id(0)
    blocks: tl.constexpr = ceil_div(2 * C, COLUMNS)
    if program < blocks:
        column = program * COLUMNS + tl.arange(0, COLUMNS)
        mask = column < 2 * C
        if counts is not None:
            count, of_column, variance = merged(counts, means, squares, parts, column, mask, 2 * C, LANES)
            store_statistics(statistics, count, of_column, variance, column, mask, 2 * C)
        else:
            of_column = tl.load(statistics + column, mask, 0.0)
            variance = tl.load(statistics + 2 * C + column, mask, 0.0)
        rounded = _rounded_mean(of_column, column, weight, C, mean.dtype.element_ty)
        tl.store(mean + column, rounded, mask)
        gamma, first, second = _scales(column, variance, negative_weight, C, NEGATIVE_EPS, FUSION_EPS)
        scale = parameter(fusion_weight, column, mask, 1.0) * second * (gamma * first)
        fold_columns(compress_weight, weight, scale, column, mask, rounded.to(tl.float64) - of_column,
                     bias + (1 + program) * C, program + 1 < SHARES, C, 4 * ROWS, bias.dtype.element_ty)
    else:
        row = (program - blocks) * ROWS + tl.arange(0, ROWS)
        fold_bias(compress_weight, compress_bias, fusion_bias, bias, row, C, 0, 2 * C, WIDTH)
        store_taps(deconv_weight, taps, None, row, C, KERNEL)


@jit
def _running_norm(column, mask, mean, variance, weight, bias, EPS: tl.constexpr):
    """Scale and shift of a norm with running statistics, for some channels: scale·x + shift."""
    scale = parameter(weight, column, mask, 1.0) * inverse_root(parameter(variance, column, mask, 1.0), EPS)
    return scale, parameter(bias, column, mask, 0.0) - parameter(mean, column, mask, 0.0) * scale


@jit
def leni_fold_running_kernel(deconv_weight, negative_mean, negative_variance, negative_weight, negative_bias,
                             fusion_mean, fusion_variance, fusion_weight, fusion_bias, compress_weight, compress_bias,
                             taps, weight, bias, mean, C: tl.constexpr, KERNEL: tl.constexpr,
                             NEGATIVE_EPS: tl.constexpr, FUSION_EPS: tl.constexpr, ROWS: tl.constexpr,
                             WIDTH: tl.constexpr):
    """A program folds ROWS rows: of weight and bias, and channels of D, by BN1's scale; the first one writes mean.

    Features are less about their mean, and not if it is small against the deviations from it.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = parameter(compress_bias, row, row < C, 0.0)
    for start in range(0, 2 * C, WIDTH):
        column = start + tl.arange(0, WIDTH)
        mask = column < 2 * C
        negative = mask & (column >= C)
        _, shift = _running_norm(column - C, negative, negative_mean, negative_variance, negative_weight,
                                 negative_bias, NEGATIVE_EPS)
        shift = tl.where(negative, shift, 0.0)
        of_fusion = parameter(fusion_mean, column, mask, 0.0)
        variance = parameter(fusion_variance, column, mask, 1.0)
        middle = of_fusion - shift
        middle = _rounded_mean(tl.where(middle * middle > variance, middle, 0.0), column, weight, C,
                               mean.dtype.element_ty)
        tl.store(mean + column, middle, mask & (tl.program_id(0) == 0))
        scale = parameter(fusion_weight, column, mask, 1.0) * inverse_root(variance, FUSION_EPS)
        added = parameter(fusion_bias, column, mask, 0.0) + scale * (shift - of_fusion + middle.to(tl.float64))
        place = (row * (2 * C))[:, None] + column[None, :]
        inside = (row < C)[:, None] & mask[None, :]
        factors = tl.load(compress_weight + place, inside, 0.0).to(tl.float64)
        sums += tl.sum(factors * added[None, :], 1)
        tl.store(weight + place, folded_weight(compress_weight, place, inside, scale[None, :], weight,
                                               bias.dtype.element_ty), inside)
    tl.store(bias + row, sums.to(bias.dtype.element_ty), row < C)
    scale, _ = _running_norm(row, row < C, negative_mean, negative_variance, negative_weight, negative_bias,
                             NEGATIVE_EPS)
    store_taps(deconv_weight, taps, scale, row, C, KERNEL)


@jit
def leni_fold_backward_kernel(shares, statistics, grad_statistics, negative_weight, fusion_weight, fusion_bias,
                              compress_weight, grad_negative, grad_negative_shift, grad_fusion, grad_shift,
                              grad_compress, grad_bias, weight, constant, slope, parts, C: tl.constexpr,
                              NEGATIVE_EPS: tl.constexpr, FUSION_EPS: tl.constexpr, HALF: tl.constexpr,
                              ROWS: tl.constexpr, LANES: tl.constexpr):
    """A program: one of the 2C columns.

    Of its shares it makes the parameters' gradients and those of its mean and variance, which without shares it
    reads. For the pass to x's gradient it folds its column of the weight, and writes constant and slope.
    """
    accumulator_type: tl.constexpr = constant.dtype.element_ty
    column = tl.program_id(0)
    negative = column >= C
    row = tl.arange(0, ROWS)
    has_row = row < C
    variance = tl.load(statistics + 2 * C + column)
    gamma, first, second = _scales(column, variance, negative_weight, C, NEGATIVE_EPS, FUSION_EPS)
    gamma2 = parameter(fusion_weight, column, True, 1.0)
    scale = gamma2 * second * (gamma * first)
    place = row * (2 * C) + column
    folded = folded_weight(compress_weight, place, has_row, scale, weight, accumulator_type)
    if shares is None:
        grad_mean = tl.load(grad_statistics + column)
        grad_variance = tl.load(grad_statistics + 2 * C + column)
    else:
        of_weight = summed_column(shares, column, parts, row, C, LANES)
        of_bias = summed_column(shares, 2 * C, parts, row, C, LANES)
        compress = tl.load(compress_weight + place, has_row, 0.0).to(tl.float64)
        shift = tl.sum(compress * of_bias, 0)
        scaled = tl.sum(compress * of_weight, 0)
        of_compress = of_weight * scale + of_bias * parameter(fusion_bias, column, True, 0.0)
        tl.store(grad_compress + place, of_compress.to(grad_compress.dtype.element_ty), has_row)
        tl.store(grad_bias + row, of_bias.to(grad_bias.dtype.element_ty), has_row & (column == 0))
        if grad_fusion is not None:
            tl.store(grad_fusion + column, (scaled * second * (gamma * first)).to(grad_fusion.dtype.element_ty))
        if grad_shift is not None:
            tl.store(grad_shift + column, shift.to(grad_shift.dtype.element_ty))
        # BN2 all but undoes BN1's scale: what is left, of the order of the eps, is written as what it is.
        if grad_negative is not None:
            of_gamma = scaled * gamma2 * first * FUSION_EPS * (second * second * second)
            tl.store(grad_negative + column - C, of_gamma.to(grad_negative.dtype.element_ty), negative)
        if grad_negative_shift is not None:  # β1 shifts what BN2 centres
            tl.store(grad_negative_shift + column - C, tl.zeros((), grad_negative_shift.dtype.element_ty), negative)
        ratio = gamma * first * second
        per_variance = tl.where(negative, first * first * (1.0 + NEGATIVE_EPS * (ratio * ratio)), second * second)
        if HALF:
            # What goes through the statistics has to cancel what the rounded weight passes on.
            shift = tl.sum(folded.to(tl.float64) * of_bias, 0)
            scaled = tl.sum(folded.to(tl.float64) * of_weight, 0)
        else:
            shift *= scale
            scaled *= scale
        grad_mean = -shift
        grad_variance = -0.5 * per_variance * scaled
        tl.store(grad_statistics + column, grad_mean)
        tl.store(grad_statistics + 2 * C + column, grad_variance)
    tl.store(weight + place, folded, has_row)
    of_constant, of_slope = through_statistics(
        tl.load(statistics + column), tl.load(statistics + 4 * C), grad_mean, grad_variance, accumulator_type)
    tl.store(constant + column, of_constant)
    tl.store(slope + column, of_slope)


@jit
def leni_update_kernel(statistics, negative_weight, negative_bias, negative_mean, negative_variance, negative_batches,
                       fusion_mean, fusion_variance, fusion_batches, C: tl.constexpr, NEGATIVE_EPS: tl.constexpr,
                       NEGATIVE_MOMENTUM: tl.constexpr, FUSION_MOMENTUM: tl.constexpr, BLOCK: tl.constexpr):
    """One program, since all channels need the count of batches, which changes."""
    of_negative = counted(negative_batches, NEGATIVE_MOMENTUM)
    of_fusion = counted(fusion_batches, FUSION_MOMENTUM)
    count = tl.load(statistics + 4 * C)
    unbiased = count / (count - 1.0)
    for start in range(0, C, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        mask = channel < C
        variance = tl.load(statistics + 3 * C + channel, mask, 1.0)
        move(negative_mean, channel, mask, tl.load(statistics + C + channel, mask, 0.0), of_negative)
        move(negative_variance, channel, mask, variance * unbiased, of_negative)
        move(fusion_mean, channel, mask, tl.load(statistics + channel, mask, 0.0), of_fusion)
        move(fusion_mean, channel + C, mask, parameter(negative_bias, channel, mask, 0.0), of_fusion)
        move(fusion_variance, channel, mask, tl.load(statistics + 2 * C + channel, mask, 0.0) * unbiased, of_fusion)
        gamma = parameter(negative_weight, channel, mask, 1.0)
        seen = (1.0 - NEGATIVE_EPS / (variance + NEGATIVE_EPS)) * gamma * gamma
        move(fusion_variance, channel + C, mask, seen * unbiased, of_fusion)


@jit
def leni_sum_taps_kernel(shares, taps, parts, C: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr,
                         LANES: tl.constexpr):
    """A program: one of the SIZE taps, of CHANNELS channels; shares [parts, SIZE, C], taps [C, SIZE]."""
    channel = tl.program_id(0) // SIZE * CHANNELS + tl.arange(0, CHANNELS)
    tap = tl.program_id(0) % SIZE
    sums = tl.zeros((LANES, CHANNELS), tl.float64)
    for first in range(0, parts, LANES):
        part = (first + tl.arange(0, LANES))[:, None]
        values = tl.load(shares + (index(part, True) * SIZE + tap) * C + channel[None, :],
                         (part < parts) & (channel < C)[None, :], 0.0)
        sums += values.to(tl.float64)
    tl.store(taps + channel * SIZE + tap, tl.sum(sums, 0).to(taps.dtype.element_ty), channel < C)


def bias_shares(channels: int, half: bool) -> int:
    """Of LENI's folded bias: in half precision one more of each program of columns of max(x, 0)."""
    return 1 + (ceil_div(channels, COLUMNS) if half else 0)


class Folded(NamedTuple):
    """What the folded kernel reads, for ``y = weight · (a − mean) + bias``."""

    taps: Tensor
    """``[k, k, C]``."""
    weight: Tensor
    """``[C, 2C]``, in x's dtype."""
    bias: Tensor
    """``[shares, C]``, to be summed, in float32 or for a float64 x in float64, as taps and mean."""
    mean: Tensor
    """``[2C]``; of max(x, 0) numbers of x's dtype."""

    @classmethod
    def empty(cls, x: Tensor, kernel_size: int, shares: int = 1) -> Folded:
        channels, dtype = x.shape[1], folding_dtype(x.dtype)
        shapes = (kernel_size, kernel_size, channels), (shares, channels), (2 * channels,)
        taps, bias, mean = (x.new_empty(shape, dtype=dtype) for shape in shapes)
        return cls(taps, x.new_empty(channels, 2 * channels), bias, mean)


def leni_fold(x: Tensor, shares: StatisticsShares | None, statistics: Tensor | None,
              deconv_weight: Tensor, negative_weight: Tensor | None, fusion_weight: Tensor | None,
              fusion_bias: Tensor | None, compress_weight: Tensor, compress_bias: Tensor | None,
              negative_eps: float, fusion_eps: float) -> tuple[Folded, Tensor]:
    """LENI's norms folded for a batch's statistics, which come packed, or as the shares that they are merged from."""
    channels, kernel_size = x.shape[1], deconv_weight.shape[-1]
    folded = Folded.empty(x, kernel_size, bias_shares(channels, x.dtype.itemsize == 2))
    parts = 0 if shares is None else shares[0].shape[0]
    if statistics is None:
        statistics = x.new_empty(4 * channels + 1, dtype=torch.float64)
    programs = ceil_div(2 * channels, COLUMNS) + ceil_div(channels, ROWS)
    with on_device_of(x):
        launchable(leni_fold_kernel)[(programs,)](
            *(shares or (None, None, None)), statistics, deconv_weight, negative_weight, fusion_weight, fusion_bias,
            compress_weight, compress_bias, *folded, parts, C=channels, KERNEL=kernel_size,
            NEGATIVE_EPS=negative_eps, FUSION_EPS=fusion_eps, COLUMNS=COLUMNS, LANES=LANES, ROWS=ROWS, WIDTH=WIDTH,
            SHARES=folded.bias.shape[0], num_warps=4)
    return folded, statistics


def leni_fold_running(x: Tensor, deconv_weight: Tensor, negative: tuple[Tensor | None, ...],
                      fusion: tuple[Tensor | None, ...], compress_weight: Tensor, compress_bias: Tensor | None,
                      negative_eps: float, fusion_eps: float) -> Folded:
    """LENI's norms folded for running statistics; of each norm mean, variance, weight and bias."""
    channels, kernel_size = x.shape[1], deconv_weight.shape[-1]
    folded = Folded.empty(x, kernel_size)
    with on_device_of(x):
        launchable(leni_fold_running_kernel)[(ceil_div(channels, ROWS),)](
            deconv_weight, *negative, *fusion, compress_weight, compress_bias, *folded, C=channels,
            KERNEL=kernel_size, NEGATIVE_EPS=negative_eps, FUSION_EPS=fusion_eps, ROWS=ROWS, WIDTH=WIDTH,
            num_warps=4)
    return folded


def leni_fold_backward(x: Tensor, shares: Tensor | None, statistics: Tensor, grad_statistics: Tensor | None,
                       negative_weight: Tensor | None, negative_bias: Tensor | None, fusion_weight: Tensor | None,
                       fusion_bias: Tensor | None, compress_weight: Tensor, negative_eps: float, fusion_eps: float,
                       ) -> tuple[PassedOn, tuple[Tensor | None, ...], Tensor]:
    """What is passed on, the parameters' gradients and those of the statistics ``[4C]``, from the weight's shares.

    Without shares the gradients of the statistics are given, and there are no others. Those of the parameters are of
    γ1, β1, γ2, β2, P and c; None of an absent one.
    """
    channels = x.shape[1]
    passed = PassedOn.empty(x, (channels, 2 * channels), 2 * channels)
    gradients: tuple[Tensor | None, ...] = (None,) * 6
    if grad_statistics is None:
        grad_statistics = statistics.new_empty(4 * channels)
        parameters = (negative_weight, negative_bias, fusion_weight, fusion_bias, compress_weight)
        gradients = (*map(gradient_like, parameters), compress_weight.new_empty(channels))
    with on_device_of(x):
        launchable(leni_fold_backward_kernel)[(2 * channels,)](
            shares, statistics, grad_statistics, negative_weight, fusion_weight, fusion_bias, compress_weight,
            *gradients, *passed, 0 if shares is None else shares.shape[1], C=channels, NEGATIVE_EPS=negative_eps,
            FUSION_EPS=fusion_eps, HALF=x.dtype.itemsize == 2, **tile_of_columns(channels))
    return passed, gradients, grad_statistics


def summed_taps(shares: Tensor, deconv_weight: Tensor) -> Tensor:
    """D's gradient, in its shape and dtype, from shares ``[parts, k, k, C]``."""
    parts, kernel_size, _, channels = shares.shape
    gradient = deconv_weight.new_empty(deconv_weight.shape)
    with on_device_of(shares):
        launchable(leni_sum_taps_kernel)[(kernel_size**2 * ceil_div(channels, COLUMNS),)](
            shares, gradient, parts, C=channels, SIZE=kernel_size**2, CHANNELS=COLUMNS, LANES=2 * LANES, num_warps=4)
    return gradient


def update_leni(statistics: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
                negative: tuple[Tensor | None, ...], negative_momentum: float | None,
                fusion: tuple[Tensor | None, ...], fusion_momentum: float | None, negative_eps: float) -> None:
    """Move both norms' running mean and variance, and count the batch; of each norm mean, variance and batches."""
    with on_device_of(statistics):
        launchable(leni_update_kernel)[(1,)](
            statistics, negative_weight, negative_bias, *negative, *fusion, C=statistics.shape[0] // 4,
            NEGATIVE_EPS=negative_eps, NEGATIVE_MOMENTUM=negative_momentum, FUSION_MOMENTUM=fusion_momentum,
            BLOCK=VECTOR, num_warps=4)
