"""LENI forward in Triton: ``y = weight · ([max(x, 0); taps ⋆ᵀ min(x, 0)] − mean) + bias`` in one pass, and steps of it.

Reads x once from device memory, writes y once, saves nothing: 2T, where T is the bytes of one activation.
That is the least, since every element of x matters and every element of y is new; a ReLU moves as much. The
halo of a tile and the k column shifts of a row come from L1 and L2. With more output channels than one tile
has, x is read once per block of them, through L2. By the model (``make predict``) memory, L1 and the instructions that
are issued take about as long up to 64 channels; from there on the instructions bound it, and L1, which brings weights
that do not stay on the chip. In training the statistics' pass comes before it (``statistics.py``, 1T): 3T.

It is one launch for parameters that are laid out and rounded already (``leni_laid_out``): the algebra's launch leaves
them so, and a folded module keeps them so. ``leni_folded`` copies taps, and in half precision casts weight and
rounds a mean.

Launches of steps: ``leni_batch_statistics`` 2, ``leni_eval`` 2, ``leni_training`` 3 (2 for statistics that are given),
``leni_running_statistics`` 1, and nothing else on the device. Where a channel has few values they are converted first,
and so are the results.

Both branches (``features.py``) go through the matrix units into one accumulator, rounded to x's dtype, and
before that less their mean, if there is one: what is left may be much smaller, and so is the rounding of it. The mean
of max(x, 0) is a number of x's dtype, near the true one, so that half precision subtracts it in pairs.
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.gpu.packed import difference, positive_part
from ...common.gpu.support import (
    architecture,
    ceil_div,
    itemsize,
    jit,
    launchable,
    on_device_of,
    operand_of,
    power_of_two,
    tl,
    wide,
)
from ...common.layout import reads_channels_last
from ...two_branch.gpu.algebra import merged_statistics
from ...two_branch.gpu.steps import as_read
from ...two_branch.gpu.tiles import block_positions, locate, weight_tiles
from ...two_branch.layout import empty_as
from ...two_branch.reference import centred_bias
from ...two_branch.statistics import precise
from . import configs
from .algebra import leni_fold, leni_fold_running, update_leni
from .configs import Config, for_height, for_vectors
from .features import join_rows, minus_negative_mean, rows_channels_last, rows_contiguous, units_of_rows
from .statistics import statistics_shares


@jit
def branch_tiles(rows, deconvolved, mean, channel, C: tl.constexpr, AXIS: tl.constexpr):
    """Rows of x, and of z less its mean, as operands of both branches, in x's dtype; ``mean`` [2C] may be None."""
    if AXIS == 0:
        narrow = ()  # first, which frees the registers of sums; along the other axis Triton 3.6 cannot join pairs then
        for r in tl.static_range(len(deconvolved)):
            narrow = narrow + (deconvolved[r].to(rows[0].dtype),)
        negative = join_rows(narrow, AXIS)
    else:
        negative = join_rows(deconvolved, AXIS).to(rows[0].dtype)
    positive = positive_part(join_rows(rows, AXIS))
    if mean is not None:
        rounded = tl.load(mean + channel, channel < C, 0.0).to(positive.dtype)
        positive = difference(positive, tl.broadcast_to(tl.expand_dims(rounded, AXIS), positive.shape))
    return positive, negative


@jit
def summed_bias(bias, output, C: tl.constexpr, SHARES: tl.constexpr):
    """Some outputs of the bias, which is the sum of [SHARES, C]."""
    share = tl.arange(0, power_of_two(SHARES))[:, None]
    return tl.sum(tl.load(bias + share * C + output[None, :], (share < SHARES) & (output < C)[None, :], 0.0), 0)


@jit
def leni_folded_channels_last_kernel(x, taps, weight, bias, mean, y, height, width, positions, stride_n, stride_h,
                                     stride_w, C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr,
                                     ROWS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                                     BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, SHARES: tl.constexpr,
                                     WIDE: tl.constexpr, PRECISION: tl.constexpr, EVEN_ROWS: tl.constexpr):
    """x, y: [N, H, W, C] in memory; the strides of x count vectors of VECTOR elements; taps: [k, k, C].

    EVEN_ROWS says that ROWS divides the height. The products have as many rows as the next power of two of ROWS; those
    beyond are not stored.
    """
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    stride_n = tl.cast(stride_n, index_type) * VECTOR
    stride_h = tl.cast(stride_h, index_type) * VECTOR
    stride_w = tl.cast(stride_w, index_type) * VECTOR
    pixels: tl.constexpr = power_of_two(ROWS) * BLOCK_POSITIONS
    output_blocks: tl.constexpr = ceil_div(C, BLOCK_OUTPUTS)
    output = tl.program_id(0) % output_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    if BLOCK_CHANNELS >= C:
        positive_weight, negative_weight = weight_tiles(weight, output, channel, C)
    shift = summed_bias(bias, output, C, SHARES)
    first_tile = tl.program_id(0) // output_blocks * TILES
    for tile in range(TILES):
        origin = tl.cast(first_tile + tile, index_type) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        if BLOCK_CHANNELS < C and ROWS >= 4:
            # The last one again in place of none: a test less of each load, and many to keep from block to block. Of
            # two rows they are few, and without it sm_80 has registers for them.
            position = tl.minimum(position, positions - 1)
            inside = tl.full(position.shape, True, tl.int1)
        else:
            inside = position < positions
        image, row, column = locate(position, width, height, ROWS)
        first = (image * stride_n + row * stride_h + column * stride_w)[:, None] + channel[None, :]
        sums = tl.broadcast_to(shift[None, :], (pixels, BLOCK_OUTPUTS))
        for k in range(0, C, BLOCK_CHANNELS):
            start = minus_negative_mean(mean, k + channel, C, 0, accumulator_type)
            rows, deconvolved = rows_channels_last(
                x + k, first, taps, start, row, column, inside, k + channel, height, width,
                stride_h, stride_w, C, KERNEL, ROWS, EVEN_ROWS)
            positive, negative = branch_tiles(rows, deconvolved, mean, k + channel, C, 0)
            if BLOCK_CHANNELS < C:
                positive_weight, negative_weight = weight_tiles(weight, output, k + channel, C)
            sums = tl.dot(positive, tl.trans(positive_weight), sums, PRECISION, out_dtype=accumulator_type)
            sums = tl.dot(negative, tl.trans(negative_weight), sums, PRECISION, out_dtype=accumulator_type)
        pixel = tl.arange(0, pixels)
        position = origin + pixel % BLOCK_POSITIONS
        image, first_row, column = locate(position, width, height, ROWS)
        row = pixel // BLOCK_POSITIONS
        # A sum of what first rows have and what lines are apart: a thread has one position, or a few, of many rows.
        offset = ((image * height + first_row) * width + column) * C + row * (tl.cast(width, index_type) * C)
        mask = ((position < positions) & (row < tl.minimum(ROWS, height - first_row)))[:, None] & (output < C)[None, :]
        tl.store(y + (offset[:, None] + output[None, :]), sums.to(y.dtype.element_ty), mask)


@jit
def leni_folded_contiguous_kernel(x, taps, weight, bias, mean, y, height, width, positions, stride_n, stride_h,
                                  stride_c, C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr,
                                  ROWS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                                  BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, SHARES: tl.constexpr,
                                  WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """x, y: [N, C, H, W] in memory; width and x's strides count vectors of VECTOR; taps: [k, k, C]."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    stride_n = tl.cast(stride_n, index_type) * VECTOR
    stride_h = tl.cast(stride_h, index_type) * VECTOR
    stride_c = tl.cast(stride_c, index_type) * VECTOR
    plane = tl.cast(height, index_type) * width * VECTOR
    output_blocks: tl.constexpr = ceil_div(C, BLOCK_OUTPUTS)
    output = tl.program_id(0) % output_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    if BLOCK_CHANNELS >= C:
        positive_weight, negative_weight = weight_tiles(weight, output, channel, C)
    first_tile = tl.program_id(0) // output_blocks * TILES
    for tile in range(TILES):
        origin = tl.cast(first_tile + tile, index_type) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        image, row, column = locate(position, width, height, ROWS)
        first = image * stride_n + row * stride_h + column * VECTOR
        base = x + first[None, :] + (channel * stride_c)[:, None]
        sums = tl.zeros((BLOCK_OUTPUTS, ROWS * BLOCK_POSITIONS * VECTOR), accumulator_type)
        for k in range(0, C, BLOCK_CHANNELS):
            start = minus_negative_mean(mean, k + channel, C, 1, accumulator_type)
            rows, deconvolved = rows_contiguous(
                base + k * stride_c, taps, start, row, column * VECTOR, position < positions, k + channel, height,
                width * VECTOR, stride_h, C, KERNEL, VECTOR, ROWS)
            positive, negative = branch_tiles(rows, deconvolved, mean, k + channel, C, 1)
            if BLOCK_CHANNELS < C:
                positive_weight, negative_weight = weight_tiles(weight, output, k + channel, C)
            sums = tl.dot(positive_weight, positive, sums, PRECISION, out_dtype=accumulator_type)
            sums = tl.dot(negative_weight, negative, sums, PRECISION, out_dtype=accumulator_type)
        shift = tl.load(bias + output, output < C, 0.0) if SHARES == 1 else summed_bias(bias, output, C, SHARES)
        sums += shift[:, None]
        pixel = tl.arange(0, ROWS * BLOCK_POSITIONS * VECTOR)
        position = origin + pixel // VECTOR % BLOCK_POSITIONS
        image, row, column = locate(position, width, height, ROWS)
        row += pixel // (BLOCK_POSITIONS * VECTOR)
        offset = image * (C * plane) + (row * width + column) * VECTOR + pixel % VECTOR
        pointer = y + offset[None, :] + (output * plane)[:, None]
        mask = ((position < positions) & (row < height))[None, :] & (output < C)[:, None]
        tl.store(pointer, sums.to(y.dtype.element_ty), mask)


# ---- launches ----------------------------------------------------------------------------------------------

# A program that does several tiles reads its weights once; too few programs leave the GPU idle at the end.
MOST_TILES = 4
_ENOUGH_PROGRAMS = 1024


def leni_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None = None) -> Tensor:
    """Launch on x ``[N, C, H, W]`` with taps ``[C, k, k]``, weight ``[C, 2C]``, bias ``[C]``, mean ``[2C]``; returns y.

    The parameters are float32, or float64 for a float64 x. x has stride 1 along channels or along
    columns, and y is laid out as x; no other stride of x matters, and x is not copied.
    """
    channels_last = reads_channels_last("leni_folded_triton", x)
    return folded_laid_out(x, *lay_out_folded(x.dtype, taps, weight, bias, mean), channels_last)


def lay_out_folded(dtype: torch.dtype, taps: Tensor, weight: Tensor, bias: Tensor,
                   mean: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The parameters of :func:`leni_folded` as the kernel reads them for an x of this dtype."""
    weight = weight.to(dtype).contiguous()
    if mean is not None and dtype.itemsize == 2:
        positive, negative = mean.chunk(2)
        rounded = torch.cat([positive.to(dtype).to(mean.dtype), negative])
        bias, mean = centred_bias(weight, bias, rounded - mean), rounded
    return (taps.permute(1, 2, 0).contiguous(), weight, bias.contiguous(), None if mean is None else mean.contiguous())


def leni_laid_out(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None) -> Tensor:
    """:func:`leni_folded` for parameters as the kernel reads them: taps ``[k, k, C]``, weight in x's dtype.

    So are the values of mean's first half, of max(x, 0). The bias may come as shares ``[shares, C]``, which are summed.
    """
    return folded_laid_out(x, taps, weight, bias, mean, reads_channels_last("leni_laid_out_triton", x))


def folded_laid_out(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                    channels_last: bool) -> Tensor:
    y = empty_as(x, channels_last)
    if x.numel() == 0:
        return y
    batch, channels, height, width = x.shape
    kernel_size, target = taps.shape[0], architecture(x)
    operand = operand_of(x)
    vector, strides = units_of_rows(x, channels_last)
    config = for_vectors(configs.folded(channels, kernel_size, operand, target, channels_last), vector, operand,
                         channels_last, least_rows=1)
    config = for_height(config, height, channels_last)
    columns = width if channels_last else width // vector
    positions = batch * ceil_div(height, config.rows) * columns
    constants = folded_constants(channels, kernel_size, vector, operand, config, channels_last)
    tiles = ceil_div(positions, constants["BLOCK_POSITIONS"])
    several = config.channels >= channels and tiles >= MOST_TILES * _ENOUGH_PROGRAMS
    constants |= {"TILES": MOST_TILES if several else 1, "SHARES": bias.numel() // channels, "WIDE": wide(x, y)}
    if channels_last:
        constants["EVEN_ROWS"] = even_rows(height, operand, config)
    programs = ceil_div(tiles, constants["TILES"]) * ceil_div(channels, config.outputs)
    with on_device_of(x):
        launchable(kernel_for(channels_last))[(programs,)](
            x, taps, weight, bias, mean, y, height, columns, positions, *strides, **constants, num_warps=config.warps,
            num_stages=1)
    return y


def kernel_for(channels_last: bool) -> Any:
    return leni_folded_channels_last_kernel if channels_last else leni_folded_contiguous_kernel


def even_rows(height: int, operand: str, config: Config) -> bool:
    """Whether tiles end where images do, where a kernel of its own is worth it: in half precision, which moves less."""
    return itemsize(operand) == 2 and bool(height % config.rows == 0)  # of a symbol a guard


def folded_constants(channels: int, kernel_size: int, vector: int, operand: str, config: Config,
                     channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "KERNEL": kernel_size, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_POSITIONS": block_positions(config.positions, vector, operand, channels_last),
        "BLOCK_CHANNELS": config.channels, "BLOCK_OUTPUTS": config.outputs,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


# ---- steps -------------------------------------------------------------------------------------------------
# x ``[N, C, H, W]`` has stride 1 along channels or along columns, and y and dx are laid out as x; D ``[C, 1, k, k]``,
# P ``[C, 2C, 1, 1]``.


def leni_batch_statistics(x: Tensor, deconv_weight: Tensor) -> Tensor:
    """The statistics ``[4C + 1]`` of ``a = [max(x, 0); D ⋆ᵀ min(x, 0)]``; zeros of an empty batch."""
    channels_last = reads_channels_last("leni_batch_statistics_triton", x)
    a, = precise(x, channels_last)
    return merged_statistics(*statistics_shares(a, deconv_weight.contiguous(), channels_last))


def leni_eval(x: Tensor, deconv_weight: Tensor, negative_mean: Tensor, negative_variance: Tensor,
              negative_weight: Tensor | None, negative_bias: Tensor | None, fusion_mean: Tensor,
              fusion_variance: Tensor, fusion_weight: Tensor | None, fusion_bias: Tensor | None,
              compress_weight: Tensor, compress_bias: Tensor | None, negative_eps: float,
              fusion_eps: float) -> Tensor:
    """y with running statistics."""
    channels_last = reads_channels_last("leni_eval_triton", x)
    negative = as_read(negative_mean, negative_variance, negative_weight, negative_bias)
    fusion = as_read(fusion_mean, fusion_variance, fusion_weight, fusion_bias)
    deconv_weight, *compress = as_read(deconv_weight, compress_weight, compress_bias)
    folded = leni_fold_running(x, deconv_weight, negative, fusion, *compress, negative_eps, fusion_eps)
    return folded_laid_out(x, *folded, channels_last)


def leni_training(x: Tensor, deconv_weight: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
                  fusion_weight: Tensor | None, fusion_bias: Tensor | None, compress_weight: Tensor,
                  compress_bias: Tensor | None, statistics: Tensor | None, negative_eps: float,
                  fusion_eps: float) -> tuple[Tensor, Tensor]:
    """y with the batch's statistics, and those; or y with the statistics that are given, and an empty tensor.

    β1 shifts what BN2 centres, and has no part in it.
    """
    channels_last = reads_channels_last("leni_training_triton", x)
    a, = precise(x, channels_last)
    deconv_weight, *parameters = as_read(deconv_weight, negative_weight, fusion_weight, fusion_bias, compress_weight,
                                         compress_bias)
    shares = None
    if statistics is None:
        shares = statistics_shares(a, deconv_weight, channels_last)
    folded, of_batch = leni_fold(a, shares, statistics, deconv_weight, *parameters, negative_eps,
                                 fusion_eps)
    y = folded_laid_out(a, *folded, channels_last).to(x.dtype)
    return y, of_batch if statistics is None else statistics.new_empty(0)


def leni_running_statistics(statistics: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
                            negative_mean: Tensor | None, negative_variance: Tensor | None,
                            negative_batches: Tensor | None, negative_momentum: float | None,
                            fusion_mean: Tensor | None, fusion_variance: Tensor | None,
                            fusion_batches: Tensor | None, fusion_momentum: float | None,
                            negative_eps: float) -> None:
    """Count the batch and move both norms' running statistics, as ``F.batch_norm`` does in training."""
    update_leni(
        statistics, *as_read(negative_weight, negative_bias), (negative_mean, negative_variance, negative_batches),
        negative_momentum, (fusion_mean, fusion_variance, fusion_batches), fusion_momentum, negative_eps)
