"""The algebra of the norms in Triton: what ``batch_norms.py`` says of vectors of channels, a launch at a time.

What a pass over the activations leaves, shares of a few hundred programs, one launch sums, puts through the algebra
and casts and lays out for the next pass: no PyTorch call stands between two kernels. The definition of each formula
is in ``batch_norms.py`` and, with running statistics, in ``reference.fold_leni``. Vectors are computed in float64
whatever the parameters are, and those are read as they are. No sum is atomic: equal shapes give equal bits.

Latency is all that these kernels cost, so what they read is spread over the GPU and read in few, large tiles. Forward,
a program has 16 columns of the weight, and merges the 64 next shares of them at a time; the bias does not depend on
the statistics where features are less their mean, and programs of the same grid compute it, a few rows each.
Backward, where the shares are C times as large (8 MiB for C = 64), everything is of one column of the weight once
Σ dy is known: so a program has one column, whose shares lie together, and of which it reads 8192 numbers at a time,
two or three times in all. Σ dy each of them sums for itself, from L2: a launch of its own would take longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import operand_types
from ..triton_support import CompileCase, ceil_div, jit, launchable, on_device_of, power_of_two, tl
from .reference import folding_dtype
from .triton_features import StatisticsShares, index, merge_lanes, store_taps

# A parameter that is absent is None. ``statistics`` are mean, biased variance and count, packed in float64. What is
# folded is for y = weight · (a − mean) + bias, as the kernels read it: weight in x's dtype, the rest in that of sums.


@jit
def _parameter(pointer, place, mask, DEFAULT: tl.constexpr):
    """Some of a parameter in float64, or as many defaults if there is none."""
    if pointer is None:
        return tl.full(place.shape, DEFAULT, tl.float64)
    else:
        return tl.load(pointer + place, mask, 0.0).to(tl.float64)


@jit
def _inverse_root(variance, EPS: tl.constexpr):
    return 1.0 / tl.sqrt(variance + EPS)


@jit
def _merged(counts, means, squares, parts, feature, mask, FEATURES: tl.constexpr, LANES: tl.constexpr):
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
def _store_statistics(statistics, count, mean, variance, feature, mask, FEATURES: tl.constexpr):
    tl.store(statistics + feature, mean, mask)
    tl.store(statistics + FEATURES + feature, variance, mask)
    tl.store(statistics + 2 * FEATURES + feature * 0, count, feature == 0)


@jit
def _merge_kernel(counts, means, squares, statistics, parts, FEATURES: tl.constexpr, COLUMNS: tl.constexpr,
                  LANES: tl.constexpr):
    """A program merges the shares of COLUMNS features."""
    feature = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = feature < FEATURES
    count, mean, variance = _merged(counts, means, squares, parts, feature, mask, FEATURES, LANES)
    _store_statistics(statistics, count, mean, variance, feature, mask, FEATURES)


# ---- LENI --------------------------------------------------------------------------------------------------


@jit
def _scales(column, variance, negative_weight, C: tl.constexpr, NEGATIVE_EPS: tl.constexpr, FUSION_EPS: tl.constexpr):
    """Of some of the 2C features: γ1 and r1, which are 1 for p, and r2, for a's variance."""
    negative = column >= C
    gamma = _parameter(negative_weight, column - C, negative & (column < 2 * C), 1.0)
    gamma = tl.where(negative, gamma, 1.0)
    first = tl.where(negative, _inverse_root(variance, NEGATIVE_EPS), 1.0)
    # γ1²·v/(v + ε1), which at v = ∞ is γ1².
    seen = tl.where(negative, (1.0 - NEGATIVE_EPS / (variance + NEGATIVE_EPS)) * gamma * gamma, variance)
    return gamma, first, _inverse_root(seen, FUSION_EPS)


@jit
def _folded_weight(compress_weight, place, mask, scale, weight, ACCUMULATOR: tl.constexpr):
    """Some of P times the scales of its columns, rounded as what ``weight`` points at, and to sums' dtype before."""
    folded = tl.load(compress_weight + place, mask, 0.0).to(tl.float64) * scale
    return folded.to(ACCUMULATOR).to(weight.dtype.element_ty)


@jit
def _rounded_mean(mean, column, weight, C: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The mean of some columns as the passes subtract it: of max(x, 0) in x's dtype, which ``weight`` has."""
    mean = mean.to(ACCUMULATOR)
    return tl.where(column < C, mean.to(weight.dtype.element_ty).to(ACCUMULATOR), mean)


@jit
def _fold_columns(compress_weight, weight, scale, column, mask, shift, share, has_share, C: tl.constexpr,
                  ROWS: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The folded weight [C, 2C] of some columns; with a ``shift`` of them, its product as a share [C] of the bias."""
    for first in range(0, C, ROWS):
        row = first + tl.arange(0, ROWS)
        place = (row * (2 * C))[:, None] + column[None, :]
        inside = (row < C)[:, None] & mask[None, :]
        folded = _folded_weight(compress_weight, place, inside, scale[None, :], weight, ACCUMULATOR)
        tl.store(weight + place, folded, inside)
        if shift is not None:
            product = tl.sum(folded.to(tl.float64) * shift[None, :], 1)
            tl.store(share + row, product.to(ACCUMULATOR), (row < C) & has_share)


@jit
def _fold_bias(compress_weight, compress_bias, shift, bias, row, C: tl.constexpr, OFFSET: tl.constexpr,
               FEATURES: tl.constexpr, WIDTH: tl.constexpr):
    """c + P·shift for some rows, where ``shift`` is of FEATURES columns of P from OFFSET on."""
    sums = _parameter(compress_bias, row, row < C, 0.0)
    if shift is not None:
        for first in range(0, FEATURES, WIDTH):
            feature = first + tl.arange(0, WIDTH)
            mask = (row < C)[:, None] & (feature < FEATURES)[None, :]
            factors = tl.load(compress_weight + (row * (2 * C) + OFFSET)[:, None] + feature[None, :], mask, 0.0)
            sums += tl.sum(factors.to(tl.float64) * _parameter(shift, feature, feature < FEATURES, 0.0)[None, :], 1)
    tl.store(bias + row, sums.to(bias.dtype.element_ty), row < C)


@jit
def _leni_fold_kernel(counts, means, squares, statistics, deconv_weight, negative_weight, fusion_weight, fusion_bias,
                      compress_weight, compress_bias, taps, weight, bias, mean, parts,
                      C: tl.constexpr, KERNEL: tl.constexpr, NEGATIVE_EPS: tl.constexpr, FUSION_EPS: tl.constexpr,
                      COLUMNS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
                      SHARES: tl.constexpr):
    """The first programs: columns of the weight, for statistics that they merge, or read; then of the bias and D.

    The bias is SHARES shares: its own, and of each program of columns of max(x, 0) what rounding took of their mean.
    """
    program = tl.program_id(0)
    blocks: tl.constexpr = ceil_div(2 * C, COLUMNS)
    if program < blocks:
        column = program * COLUMNS + tl.arange(0, COLUMNS)
        mask = column < 2 * C
        if counts is not None:
            count, of_column, variance = _merged(counts, means, squares, parts, column, mask, 2 * C, LANES)
            _store_statistics(statistics, count, of_column, variance, column, mask, 2 * C)
        else:
            of_column = tl.load(statistics + column, mask, 0.0)
            variance = tl.load(statistics + 2 * C + column, mask, 0.0)
        rounded = _rounded_mean(of_column, column, weight, C, mean.dtype.element_ty)
        tl.store(mean + column, rounded, mask)
        gamma, first, second = _scales(column, variance, negative_weight, C, NEGATIVE_EPS, FUSION_EPS)
        scale = _parameter(fusion_weight, column, mask, 1.0) * second * (gamma * first)
        _fold_columns(compress_weight, weight, scale, column, mask, rounded.to(tl.float64) - of_column,
                      bias + (1 + program) * C, program + 1 < SHARES, C, 4 * ROWS, bias.dtype.element_ty)
    else:
        row = (program - blocks) * ROWS + tl.arange(0, ROWS)
        _fold_bias(compress_weight, compress_bias, fusion_bias, bias, row, C, 0, 2 * C, WIDTH)
        store_taps(deconv_weight, taps, None, row, C, KERNEL)


@jit
def _running_norm(column, mask, mean, variance, weight, bias, EPS: tl.constexpr):
    """Scale and shift of a norm with running statistics, for some channels: scale·x + shift."""
    scale = _parameter(weight, column, mask, 1.0) * _inverse_root(_parameter(variance, column, mask, 1.0), EPS)
    return scale, _parameter(bias, column, mask, 0.0) - _parameter(mean, column, mask, 0.0) * scale


@jit
def _leni_eval_kernel(deconv_weight, negative_mean, negative_variance, negative_weight, negative_bias, fusion_mean,
                      fusion_variance, fusion_weight, fusion_bias, compress_weight, compress_bias, taps, weight, bias,
                      mean, C: tl.constexpr, KERNEL: tl.constexpr, NEGATIVE_EPS: tl.constexpr,
                      FUSION_EPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """A program folds ROWS rows: of weight and bias, and channels of D, by BN1's scale; the first one writes mean.

    Features are less about their mean, and not if it is small against the deviations from it.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = _parameter(compress_bias, row, row < C, 0.0)
    for start in range(0, 2 * C, WIDTH):
        column = start + tl.arange(0, WIDTH)
        mask = column < 2 * C
        negative = mask & (column >= C)
        _, shift = _running_norm(column - C, negative, negative_mean, negative_variance, negative_weight,
                                 negative_bias, NEGATIVE_EPS)
        shift = tl.where(negative, shift, 0.0)
        of_fusion = _parameter(fusion_mean, column, mask, 0.0)
        variance = _parameter(fusion_variance, column, mask, 1.0)
        middle = of_fusion - shift
        middle = _rounded_mean(tl.where(middle * middle > variance, middle, 0.0), column, weight, C,
                               mean.dtype.element_ty)
        tl.store(mean + column, middle, mask & (tl.program_id(0) == 0))
        scale = _parameter(fusion_weight, column, mask, 1.0) * _inverse_root(variance, FUSION_EPS)
        added = _parameter(fusion_bias, column, mask, 0.0) + scale * (shift - of_fusion + middle.to(tl.float64))
        place = (row * (2 * C))[:, None] + column[None, :]
        inside = (row < C)[:, None] & mask[None, :]
        factors = tl.load(compress_weight + place, inside, 0.0).to(tl.float64)
        sums += tl.sum(factors * added[None, :], 1)
        tl.store(weight + place, _folded_weight(compress_weight, place, inside, scale[None, :], weight,
                                                bias.dtype.element_ty), inside)
    tl.store(bias + row, sums.to(bias.dtype.element_ty), row < C)
    scale, _ = _running_norm(row, row < C, negative_mean, negative_variance, negative_weight, negative_bias,
                             NEGATIVE_EPS)
    store_taps(deconv_weight, taps, scale, row, C, KERNEL)


# ---- backward ----------------------------------------------------------------------------------------------


@jit
def _summed_column(shares, column, parts, row, C: tl.constexpr, LANES: tl.constexpr):
    """One of the shares' columns [parts, C], summed in float64, at some rows."""
    sums = tl.zeros((LANES, row.shape[0]), tl.float64)
    shares += index(column, True) * parts * C
    for first in range(0, parts, LANES):
        part = (first + tl.arange(0, LANES))[:, None]
        values = tl.load(shares + index(part, True) * C + row[None, :], (part < parts) & (row < C)[None, :], 0.0)
        sums += values.to(tl.float64)
    return tl.sum(sums, 0)


@jit
def _through_statistics(mean, count, grad_mean, grad_variance, ACCUMULATOR: tl.constexpr):
    """What the gradients of a feature's mean and variance add to that of its values: constant + slope · value."""
    slope = (2.0 * grad_variance / count).to(ACCUMULATOR)  # rounded first: the constant has to cancel what it adds
    return (grad_mean / count - slope.to(tl.float64) * mean).to(ACCUMULATOR), slope


@jit
def _leni_backward_kernel(shares, statistics, grad_statistics, negative_weight, fusion_weight, fusion_bias,
                          compress_weight, grad_negative, grad_negative_shift, grad_fusion, grad_shift, grad_compress,
                          grad_bias, weight, constant, slope, parts,
                          C: tl.constexpr, NEGATIVE_EPS: tl.constexpr, FUSION_EPS: tl.constexpr,
                          HALF: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
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
    gamma2 = _parameter(fusion_weight, column, True, 1.0)
    scale = gamma2 * second * (gamma * first)
    place = row * (2 * C) + column
    folded = _folded_weight(compress_weight, place, has_row, scale, weight, accumulator_type)
    if shares is None:
        grad_mean = tl.load(grad_statistics + column)
        grad_variance = tl.load(grad_statistics + 2 * C + column)
    else:
        of_weight = _summed_column(shares, column, parts, row, C, LANES)
        of_bias = _summed_column(shares, 2 * C, parts, row, C, LANES)
        compress = tl.load(compress_weight + place, has_row, 0.0).to(tl.float64)
        shift = tl.sum(compress * of_bias, 0)
        scaled = tl.sum(compress * of_weight, 0)
        of_compress = of_weight * scale + of_bias * _parameter(fusion_bias, column, True, 0.0)
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
    of_constant, of_slope = _through_statistics(
        tl.load(statistics + column), tl.load(statistics + 4 * C), grad_mean, grad_variance, accumulator_type)
    tl.store(constant + column, of_constant)
    tl.store(slope + column, of_slope)


# ---- running statistics ------------------------------------------------------------------------------------


@jit
def _counted(batches, MOMENTUM: tl.constexpr):
    """Count a batch; returns the weight of its statistics in the running ones."""
    momentum = tl.full((), 0.0 if MOMENTUM is None else MOMENTUM, tl.float64)
    if batches is not None:
        count = tl.load(batches) + 1
        tl.store(batches, count)
        if MOMENTUM is None:
            momentum = 1.0 / count.to(tl.float64)
    return momentum


@jit
def _move(running, place, mask, value, momentum):
    """Move running statistics towards a batch's."""
    if running is not None:
        dtype: tl.constexpr = running.dtype.element_ty
        before = tl.load(running + place, mask, 0.0).to(tl.float64)
        moved = before * (1.0 - momentum) + value.to(dtype).to(tl.float64) * momentum
        tl.store(running + place, moved.to(dtype), mask)


@jit
def _leni_running_kernel(statistics, negative_weight, negative_bias, negative_mean, negative_variance,
                         negative_batches, fusion_mean, fusion_variance, fusion_batches,
                         C: tl.constexpr, NEGATIVE_EPS: tl.constexpr, NEGATIVE_MOMENTUM: tl.constexpr,
                         FUSION_MOMENTUM: tl.constexpr, BLOCK: tl.constexpr):
    """One program, since all channels need the count of batches, which changes."""
    of_negative = _counted(negative_batches, NEGATIVE_MOMENTUM)
    of_fusion = _counted(fusion_batches, FUSION_MOMENTUM)
    count = tl.load(statistics + 4 * C)
    unbiased = count / (count - 1.0)
    for start in range(0, C, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        mask = channel < C
        variance = tl.load(statistics + 3 * C + channel, mask, 1.0)
        _move(negative_mean, channel, mask, tl.load(statistics + C + channel, mask, 0.0), of_negative)
        _move(negative_variance, channel, mask, variance * unbiased, of_negative)
        _move(fusion_mean, channel, mask, tl.load(statistics + channel, mask, 0.0), of_fusion)
        _move(fusion_mean, channel + C, mask, _parameter(negative_bias, channel, mask, 0.0), of_fusion)
        _move(fusion_variance, channel, mask, tl.load(statistics + 2 * C + channel, mask, 0.0) * unbiased, of_fusion)
        gamma = _parameter(negative_weight, channel, mask, 1.0)
        seen = (1.0 - NEGATIVE_EPS / (variance + NEGATIVE_EPS)) * gamma * gamma
        _move(fusion_variance, channel + C, mask, seen * unbiased, of_fusion)


@jit
def _reborn_running_kernel(statistics, mean, variance, batches, C: tl.constexpr, MOMENTUM: tl.constexpr,
                           BLOCK: tl.constexpr):
    """One program, as for LENI."""
    momentum = _counted(batches, MOMENTUM)
    count = tl.load(statistics + 2 * C)
    for start in range(0, C, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        mask = channel < C
        _move(mean, channel, mask, tl.load(statistics + channel, mask, 0.0), momentum)
        unbiased = tl.load(statistics + C + channel, mask, 0.0) * (count / (count - 1.0))
        _move(variance, channel, mask, unbiased, momentum)


# ---- Reborn ------------------------------------------------------------------------------------------------


@jit
def _reborn_fold_kernel(counts, means, squares, given_mean, given_variance, statistics, norm_weight, norm_bias,
                        compress_weight, compress_bias, weight, bias, mean, parts, values,
                        C: tl.constexpr, EPS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr,
                        ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The first programs: two columns of the weight a channel, for statistics that they merge, or are given; then of
    the bias. ``values`` are those of a channel where statistics are given."""
    program = tl.program_id(0)
    blocks: tl.constexpr = ceil_div(C, COLUMNS)
    if program < blocks:
        channel = program * COLUMNS + tl.arange(0, COLUMNS)
        mask = channel < C
        if counts is not None:
            count, of_channel, variance = _merged(counts, means, squares, parts, channel, mask, C, LANES)
        else:
            count = tl.cast(values, tl.float64)
            of_channel = tl.load(given_mean + channel, mask, 0.0).to(tl.float64)
            variance = tl.load(given_variance + channel, mask, 1.0).to(tl.float64)
        _store_statistics(statistics, count, of_channel, variance, channel, mask, C)
        tl.store(mean + channel, of_channel.to(mean.dtype.element_ty), mask)
        scale = _parameter(norm_weight, channel, mask, 1.0) * _inverse_root(variance, EPS)
        ones = tl.full((COLUMNS,), 1.0, tl.float64)
        _fold_columns(compress_weight, weight, ones, channel, mask, None, None, None, C, 4 * ROWS,
                      bias.dtype.element_ty)
        _fold_columns(compress_weight, weight, scale, channel + C, mask, None, None, None, C, 4 * ROWS,
                      bias.dtype.element_ty)
    else:
        row = (program - blocks) * ROWS + tl.arange(0, ROWS)
        _fold_bias(compress_weight, compress_bias, norm_bias, bias, row, C, C, C, WIDTH)


@jit
def _reborn_backward_kernel(shares, statistics, grad_statistics, norm_weight, norm_bias, compress_weight, grad_scale,
                            grad_shift, grad_compress, grad_bias, matrices, constant, slope, parts,
                            C: tl.constexpr, EPS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
                            LANES: tl.constexpr):
    """A program: one channel, with its two columns; as :func:`_leni_backward_kernel`.

    ``matrices`` [2, C, C] are the halves of the folded weight, transposed. Without shares and gradients of the
    statistics there is no constant and no slope.
    """
    accumulator_type: tl.constexpr = constant.dtype.element_ty
    channel = tl.program_id(0)
    row = tl.arange(0, ROWS)
    has_row = row < C
    inverse = _inverse_root(tl.load(statistics + C + channel), EPS)
    scale = _parameter(norm_weight, channel, True, 1.0) * inverse
    place = row * (2 * C) + channel
    positive = _folded_weight(compress_weight, place, has_row, 1.0, matrices, accumulator_type)
    folded = _folded_weight(compress_weight, place + C, has_row, scale, matrices, accumulator_type)
    tl.store(matrices + channel * C + row, positive, has_row)
    tl.store(matrices + (C + channel) * C + row, folded, has_row)
    if shares is not None:
        of_positive = _summed_column(shares, channel, parts, row, C, LANES)
        of_weight = _summed_column(shares, channel + C, parts, row, C, LANES)
        of_bias = _summed_column(shares, 2 * C, parts, row, C, LANES)
        compress = tl.load(compress_weight + place + C, has_row, 0.0).to(tl.float64)
        shift = tl.sum(compress * of_bias, 0)
        scaled = tl.sum(compress * of_weight, 0)
        of_negative = of_weight * scale + of_bias * _parameter(norm_bias, channel, True, 0.0)
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
        of_constant, of_slope = _through_statistics(
            tl.load(statistics + channel), tl.load(statistics + 2 * C), grad_mean, grad_variance, accumulator_type)
        tl.store(constant + channel, of_constant)
        tl.store(slope + channel, of_slope)


# ---- sums of shares alone ----------------------------------------------------------------------------------


@jit
def _sum_weight_kernel(shares, weight, bias, parts, C: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """A program: one column of the weight's gradient [C, 2C], or the bias'."""
    column = tl.program_id(0)
    row = tl.arange(0, ROWS)
    sums = _summed_column(shares, column, parts, row, C, LANES).to(weight.dtype.element_ty)
    tl.store(weight + row * (2 * C) + column, sums, (row < C) & (column < 2 * C))
    tl.store(bias + row, sums, (row < C) & (column == 2 * C))


@jit
def _sum_taps_kernel(shares, taps, parts, C: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr,
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


# ---- launches ----------------------------------------------------------------------------------------------
# x is only asked for its shape, dtype and device; D, P and the vectors are of any floating dtype and contiguous.

_COLUMNS = 16
_LANES = 64
"""Of features and of shares, where a program merges statistics."""
_ROWS = 8
_WIDTH = 64
"""Of rows and columns of P, where a program computes the bias."""
_TILE = 8192
"""Numbers that a program of 8 warps reads at once of a column's shares: 32 a thread, which its registers hold."""
_VECTOR = 256
"""Of channels, where one program has all of them."""


def bias_shares(channels: int, half: bool) -> int:
    """Of LENI's folded bias: in half precision one more of each program of columns of max(x, 0)."""
    return 1 + (ceil_div(channels, _COLUMNS) if half else 0)


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


def merged_statistics(counts: Tensor, means: Tensor, squares: Tensor) -> Tensor:
    """The packed statistics of all programs' values, from the shares of each."""
    features = means.shape[1]
    statistics = means.new_empty(2 * features + 1, dtype=torch.float64)
    with on_device_of(means):
        launchable(_merge_kernel)[(ceil_div(features, _COLUMNS),)](
            counts, means, squares, statistics, counts.shape[0], FEATURES=features, COLUMNS=_COLUMNS, LANES=_LANES,
            num_warps=4)
    return statistics


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
    programs = ceil_div(2 * channels, _COLUMNS) + ceil_div(channels, _ROWS)
    with on_device_of(x):
        launchable(_leni_fold_kernel)[(programs,)](
            *(shares or (None, None, None)), statistics, deconv_weight, negative_weight, fusion_weight, fusion_bias,
            compress_weight, compress_bias, *folded, parts, C=channels, KERNEL=kernel_size,
            NEGATIVE_EPS=negative_eps, FUSION_EPS=fusion_eps, COLUMNS=_COLUMNS, LANES=_LANES, ROWS=_ROWS, WIDTH=_WIDTH,
            SHARES=folded.bias.shape[0], num_warps=4)
    return folded, statistics


def leni_fold_running(x: Tensor, deconv_weight: Tensor, negative: tuple[Tensor | None, ...],
                      fusion: tuple[Tensor | None, ...], compress_weight: Tensor, compress_bias: Tensor | None,
                      negative_eps: float, fusion_eps: float) -> Folded:
    """LENI's norms folded for running statistics; of each norm mean, variance, weight and bias."""
    channels, kernel_size = x.shape[1], deconv_weight.shape[-1]
    folded = Folded.empty(x, kernel_size)
    with on_device_of(x):
        launchable(_leni_eval_kernel)[(ceil_div(channels, _ROWS),)](
            deconv_weight, *negative, *fusion, compress_weight, compress_bias, *folded, C=channels,
            KERNEL=kernel_size, NEGATIVE_EPS=negative_eps, FUSION_EPS=fusion_eps, ROWS=_ROWS, WIDTH=_WIDTH,
            num_warps=4)
    return folded


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


def _gradient_like(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.new_empty(parameter.shape)


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
        gradients = (*map(_gradient_like, parameters), compress_weight.new_empty(channels))
    with on_device_of(x):
        launchable(_leni_backward_kernel)[(2 * channels,)](
            shares, statistics, grad_statistics, negative_weight, fusion_weight, fusion_bias, compress_weight,
            *gradients, *passed, 0 if shares is None else shares.shape[1], C=channels, NEGATIVE_EPS=negative_eps,
            FUSION_EPS=fusion_eps, HALF=x.dtype.itemsize == 2, **_of_columns(channels))
    return passed, gradients, grad_statistics


def _of_columns(channels: int) -> dict[str, int]:
    """How a program reads a column of as many rows."""
    rows = power_of_two(channels)
    return {"ROWS": rows, "LANES": max(1, min(_TILE // rows, 256)), "num_warps": 8}


def summed_weight(shares: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight ``[C, 2C]`` and bias ``[C]``, in the shares' dtype."""
    columns, parts, channels = shares.shape
    weight, bias = shares.new_empty(channels, 2 * channels), shares.new_empty(channels)
    with on_device_of(shares):
        launchable(_sum_weight_kernel)[(columns,)](shares, weight, bias, parts, C=channels, **_of_columns(channels))
    return weight, bias


def summed_taps(shares: Tensor, deconv_weight: Tensor) -> Tensor:
    """D's gradient, in its shape and dtype, from shares ``[parts, k, k, C]``."""
    parts, kernel_size, _, channels = shares.shape
    gradient = deconv_weight.new_empty(deconv_weight.shape)
    with on_device_of(shares):
        launchable(_sum_taps_kernel)[(kernel_size**2 * ceil_div(channels, _COLUMNS),)](
            shares, gradient, parts, C=channels, SIZE=kernel_size**2, CHANNELS=_COLUMNS, LANES=2 * _LANES, num_warps=4)
    return gradient


def update_leni(statistics: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
                negative: tuple[Tensor | None, ...], negative_momentum: float | None,
                fusion: tuple[Tensor | None, ...], fusion_momentum: float | None, negative_eps: float) -> None:
    """Move both norms' running mean and variance, and count the batch; of each norm mean, variance and batches."""
    with on_device_of(statistics):
        launchable(_leni_running_kernel)[(1,)](
            statistics, negative_weight, negative_bias, *negative, *fusion, C=statistics.shape[0] // 4,
            NEGATIVE_EPS=negative_eps, NEGATIVE_MOMENTUM=negative_momentum, FUSION_MOMENTUM=fusion_momentum,
            BLOCK=_VECTOR, num_warps=4)


def update_reborn(statistics: Tensor, mean: Tensor | None, variance: Tensor | None, batches: Tensor | None,
                  momentum: float | None) -> None:
    """As :func:`update_leni`, of Reborn's norm."""
    with on_device_of(statistics):
        launchable(_reborn_running_kernel)[(1,)](
            statistics, mean, variance, batches, C=statistics.shape[0] // 2, MOMENTUM=momentum, BLOCK=_VECTOR,
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
        launchable(_reborn_fold_kernel)[(ceil_div(channels, _COLUMNS) + ceil_div(channels, _ROWS),)](
            *(shares or (None, None, None)), mean, variance, statistics, norm_weight, norm_bias, compress_weight,
            compress_bias, *folded, parts, x.numel() // channels, C=channels, EPS=eps, COLUMNS=_COLUMNS, LANES=_LANES,
            ROWS=_ROWS, WIDTH=_WIDTH, num_warps=4)
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
        gradients = (*map(_gradient_like, (norm_weight, norm_bias, compress_weight)),
                     compress_weight.new_empty(channels))
    with on_device_of(x):
        launchable(_reborn_backward_kernel)[(channels,)](
            shares, statistics, grad_statistics, norm_weight, norm_bias, compress_weight, *gradients, *passed,
            0 if shares is None else shares.shape[1], C=channels, EPS=eps, HALF=x.dtype.itemsize == 2,
            **_of_columns(channels))
    return passed, gradients, grad_statistics


# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every kernel, for parameters of x's dtype."""
    for operand in operand_types(architecture):
        for channels in (3, 64, 256) if operand in ("bf16", "fp32") else (64,):
            yield from _CaseOf(channels, operand).kernels()


class _CaseOf(NamedTuple):
    """The compile cases of one width and dtype."""

    channels: int
    operand: str

    def kernels(self) -> Iterator[CompileCase]:
        eps = {"NEGATIVE_EPS": 1e-5, "FUSION_EPS": 1e-3}
        merge = {"COLUMNS": _COLUMNS, "LANES": _LANES}
        rows = {"ROWS": _ROWS, "WIDTH": _WIDTH}
        of_columns = _of_columns(self.channels)
        warps = of_columns.pop("num_warps")
        backward = {"HALF": self.operand in ("fp16", "bf16"), **of_columns}
        shares = {"SHARES": bias_shares(self.channels, backward["HALF"])}
        no_shares = dict.fromkeys(("counts", "means", "squares"))
        given = dict.fromkeys(("shares", "grad_negative", "grad_negative_shift", "grad_fusion", "grad_scale",
                               "grad_shift", "grad_compress", "grad_bias"))
        block = {"BLOCK": _VECTOR}
        yield self._case("leni merge", _merge_kernel, merge)
        yield self._case("leni fold", _leni_fold_kernel, eps | merge | rows | shares)
        yield self._case("leni fold of given", _leni_fold_kernel, eps | merge | rows | shares | no_shares)
        yield self._case("leni fold of running", _leni_eval_kernel, eps | rows)
        yield self._case("leni fold backward", _leni_backward_kernel, eps | backward, warps)
        yield self._case("leni fold backward of given", _leni_backward_kernel, eps | backward | given, warps)
        yield self._case("leni running", _leni_running_kernel,
                         eps | block | {"NEGATIVE_MOMENTUM": 0.1, "FUSION_MOMENTUM": None})
        yield self._case("leni sum of weight", _sum_weight_kernel, of_columns, warps)
        yield self._case("leni sum of taps", _sum_taps_kernel, {"SIZE": 9, "CHANNELS": _COLUMNS, "LANES": 2 * _LANES})
        yield self._case("reborn running", _reborn_running_kernel, block | {"MOMENTUM": 0.1})
        yield self._case("reborn fold", _reborn_fold_kernel, {"EPS": 1e-5} | merge | rows)
        yield self._case("reborn fold of given", _reborn_fold_kernel, {"EPS": 1e-5} | merge | rows | no_shares)
        yield self._case("reborn fold backward", _reborn_backward_kernel, {"EPS": 1e-5} | backward, warps)
        yield self._case("reborn fold backward of given", _reborn_backward_kernel, {"EPS": 1e-5} | backward | given,
                         warps)

    def _case(self, name: str, kernel: Any, constants: dict[str, Any], warps: int = 4) -> CompileCase:
        arguments = kernel.arg_names
        constants = {"C": self.channels, "KERNEL": 3, "FEATURES": 2 * self.channels} | constants
        constants = {name: value for name, value in constants.items() if name in arguments}
        element = "fp32" if self.operand == "tf32" else self.operand
        sums = "fp64" if self.operand == "fp64" else "fp32"
        types = dict.fromkeys(("means", "squares", "shares", "taps", "bias", "mean", "constant", "slope"), f"*{sums}")
        types |= dict.fromkeys(("statistics", "grad_statistics"), "*fp64") | dict.fromkeys(
            ("counts", "batches", "negative_batches", "fusion_batches"), "*i64")
        types |= dict.fromkeys(("parts", "values"), "i32")
        signature = {argument: types.get(argument, f"*{element}") for argument in arguments
                     if argument not in constants}
        return CompileCase(f"{name} C={self.channels}", kernel, signature, constants, warps, self.operand, 0, 32, 0)
