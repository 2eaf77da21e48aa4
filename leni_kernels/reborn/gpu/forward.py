"""Reborn forward in Triton: the tail behind the deconvolution that makes z, and whole steps.

T is the bytes of one activation. The tail reads x and z and writes y = weight · [max(x, 0); z − mean] + bias (3T); in
training the statistics of z come before it (``statistics.py``, 1T). Less would need the deconvolution in these kernels,
and it is the library's. x and z are kept for backward. What a tile reads a second time (x and z once for each block of
outputs) comes from L2. By the model (``make predict``) memory bounds a tail of 64 channels, and of more L2, which
brings the weights again for every tile. Each pass is one launch.

Launches, apart from the library's deconvolution: ``reborn_training`` 3 (2 for a mean and a variance that are given),
``reborn_running_statistics`` 1. Where a channel has few values they are converted first, and so are the results.
"""

from __future__ import annotations

from torch import Tensor

from ...common.gpu.packed import positive_part
from ...common.gpu.support import architecture, ceil_div, jit, launchable, on_device_of, operand_of, tl, wide
from ...common.layout import reads_channels_last
from ...two_branch.gpu.algebra import merged_statistics
from ...two_branch.gpu.steps import as_read
from ...two_branch.gpu.tiles import (
    dense_offsets,
    index,
    less_mean,
    load_pixels,
    pixels_of,
    vectors,
    weight_tiles,
)
from ...two_branch.layout import empty_as
from ...two_branch.statistics import precise
from . import configs
from .algebra import reborn_fold, update_reborn
from .statistics import statistics_shares
from .tiles import deconvolve, extent_of, joined_rows, load_dense, tail_constants


@jit
def reborn_tail_kernel(x, z, weight, bias, mean, y, height, width, positions, stride_n, stride_h, stride_o,
                       C: tl.constexpr, VECTOR: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                       BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                       WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """weight: [C, 2C]. A program does TILES tiles of one block of outputs."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    accumulator_type: tl.constexpr = bias.dtype.element_ty
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    height = index(height, WIDE)
    columns = width * span
    blocks: tl.constexpr = ceil_div(C, BLOCK_OUTPUTS)
    output = tl.program_id(0) % blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    lane = tl.arange(0, BLOCK_CHANNELS)
    if BLOCK_CHANNELS >= C:
        positive_weight, negative_weight = weight_tiles(weight, output, lane, C)
    first_tile = tl.program_id(0) // blocks * TILES
    for tile in range(TILES):
        origin = index(first_tile + tile, WIDE) * (BLOCK_PIXELS // span)
        position, image, row, column = pixels_of(origin, height, width, BLOCK_PIXELS // span, span, 1)
        inside = position < positions
        sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), accumulator_type)
        for k in range(0, C, BLOCK_CHANNELS):
            channel = k + lane
            positive = load_pixels(x, image, row, column, inside, channel, stride_n, stride_h, stride_o, 1, C,
                                   CHANNELS_LAST)
            negative = load_dense(z, image, row, column, inside, channel, height, columns, C, CHANNELS_LAST)
            if mean is not None:
                negative = less_mean(negative, mean + channel, channel < C, 0)
            if BLOCK_CHANNELS < C:
                positive_weight, negative_weight = weight_tiles(weight, output, channel, C)
            sums = tl.dot(positive_part(positive), tl.trans(positive_weight), sums, PRECISION,
                          out_dtype=accumulator_type)
            sums = tl.dot(negative, tl.trans(negative_weight), sums, PRECISION, out_dtype=accumulator_type)
        sums += tl.load(bias + output, output < C, 0.0)[None, :]
        offset = dense_offsets(image, row, column, output, height, columns, C, CHANNELS_LAST)
        tl.store(y + offset, sums.to(y.dtype.element_ty), inside[:, None] & (output < C)[None, :])


# ---- launches ----------------------------------------------------------------------------------------------
# x ``[N, C, H, W]`` and the parameters are as LENI's folded kernel takes them; z and ``negative`` have x's
# shape and layout and no gaps; grad may have any strides.

# A program that does several tiles reads its weights once; too few programs leave the GPU idle at the end.
MOST_TILES = 4
_ENOUGH_PROGRAMS = 1024


def reborn_tail(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None = None) -> Tensor:
    """``weight · [max(x, 0); z − mean] + bias`` for weight ``[C, 2C]``, bias and mean ``[C]``, in x's dtype."""
    return tail_laid_out(x, z, weight.to(x.dtype).contiguous(), bias.contiguous(),
                         None if mean is None else mean.contiguous(), reads_channels_last("reborn_tail_triton", x))


def tail_laid_out(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                  channels_last: bool) -> Tensor:
    """:func:`reborn_tail` for parameters as the kernel reads them: contiguous, and weight in x's dtype."""
    y = empty_as(x, channels_last)
    if x.numel() == 0:
        return y
    x, = joined_rows(channels_last, x)
    channels, target = x.shape[1], architecture(x)
    operand = operand_of(x)
    config = configs.tail(channels, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    tiles = ceil_div(x.numel() // channels, config.pixels)
    constants = tail_constants(channels, vector, operand, config, channels_last)
    constants |= {"TILES": MOST_TILES if tiles >= MOST_TILES * _ENOUGH_PROGRAMS else 1, "WIDE": wide(x, y)}
    programs = ceil_div(tiles, constants["TILES"]) * ceil_div(channels, config.outputs)
    with on_device_of(x):
        launchable(reborn_tail_kernel)[(programs,)](
            x, z, weight, bias, mean, y, *extent_of(x, vector, channels_last), *strides, **constants,
            num_warps=config.warps, num_stages=config.stages)
    return y


def reborn_batch_statistics(x: Tensor, deconv_weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """z, as in :func:`reborn_training`, and its statistics ``[2C + 1]``."""
    channels_last = reads_channels_last("reborn_batch_statistics_triton", x)
    a, = precise(x, channels_last)
    z = deconvolve(a, deconv_weight, groups, channels_last)
    return z, merged_statistics(*statistics_shares(z, channels_last))


def reborn_training(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None,
                    compress_weight: Tensor, compress_bias: Tensor | None, z: Tensor | None, mean: Tensor | None,
                    variance: Tensor | None, eps: float, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """y, z, in float64 where a channel has few values, and the norm's statistics ``[2C + 1]``.

    These are the batch's, or a mean and a variance that are given.

    A z that is given is not deconvolved again, and comes back as an empty tensor.
    """
    return _block("reborn_training_triton", x, deconv_weight, norm_weight, norm_bias, compress_weight, compress_bias, z,
                  mean, variance, eps, groups)


def _block(operator: str, x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None,
           compress_weight: Tensor, compress_bias: Tensor | None, z: Tensor | None, mean: Tensor | None,
           variance: Tensor | None, eps: float, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    channels_last = reads_channels_last(operator, x)
    # With z or without statistics it is a batch in training, whose norm is its own or a group's.
    a, = precise(x, channels_last) if mean is None or z is not None else (x,)
    of_a = deconvolve(a, deconv_weight, groups, channels_last) if z is None else z
    shares = statistics_shares(of_a, channels_last) if mean is None or variance is None else None
    norm_weight, norm_bias, compress_weight, compress_bias, mean, variance = as_read(
        norm_weight, norm_bias, compress_weight, compress_bias, mean, variance)
    (weight, bias, middle), statistics = reborn_fold(
        a, shares, mean, variance, norm_weight, norm_bias, compress_weight, compress_bias, eps)
    y = tail_laid_out(a, of_a, weight, bias, middle, channels_last).to(x.dtype)
    return y, of_a if z is None else x.new_empty(0), statistics


def reborn_eval(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None,
                compress_weight: Tensor, compress_bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float,
                groups: int) -> Tensor:
    """y with running statistics."""
    return _block("reborn_eval_triton", x, deconv_weight, norm_weight, norm_bias, compress_weight, compress_bias, None,
                  mean, variance, eps, groups)[0]


def reborn_running_statistics(statistics: Tensor, mean: Tensor | None, variance: Tensor | None,
                              batches: Tensor | None, momentum: float | None) -> None:
    """As :func:`leni_running_statistics`, of the one norm."""
    update_reborn(statistics, mean, variance, batches, momentum)
