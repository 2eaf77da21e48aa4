"""The gradient of the weight that Reborn's tail multiplies by, in Triton.

T is the bytes of one activation. It reads x, z and dy (3T), which is the least once z is in memory. What a tile reads a
second time (x, z and dy once for each block of channels or outputs) comes from L2. By the model (``make predict``)
memory bounds it for 64 channels, and instructions for more. It is one launch, whose programs leave shares.
"""

from __future__ import annotations

from torch import Tensor

from ...common.gpu.packed import positive_part
from ...common.gpu.support import architecture, ceil_div, jit, launchable, on_device_of, operand_of, tl, wide
from ...common.layout import reads_channels_last
from ...two_branch.gpu.algebra import summed_weight
from ...two_branch.gpu.tiles import (
    centred,
    gradient_vectors,
    index,
    load_pixels,
    pixels_of,
    split,
    store_share,
    vectors,
)
from ...two_branch.reference import folding_dtype
from . import configs
from .tiles import extent_of, joined_rows, load_dense, tail_constants


@jit
def reborn_weight_gradient_kernel(grad, x, z, positive_mean, negative_mean, shares, height, width, positions, all_tiles,
                                  tiles, parts, stride_n, stride_h, stride_o, grad_stride_n, grad_stride_h,
                                  grad_stride_o, grad_stride_i, C: tl.constexpr, VECTOR: tl.constexpr,
                                  GRAD_VECTOR: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                                  BLOCK_OUTPUTS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
                                  PRECISION: tl.constexpr):
    """Of each program's ``tiles`` tiles: Σ dy·([max(x, 0); z] − mean)ᵀ [C, 2C] and Σ dy [C]."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    accumulator_type: tl.constexpr = shares.dtype.element_ty
    element_type: tl.constexpr = x.dtype.element_ty
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    grad_stride_n = index(grad_stride_n, WIDE) * GRAD_VECTOR
    grad_stride_h = index(grad_stride_h, WIDE) * GRAD_VECTOR
    grad_stride_o = index(grad_stride_o, WIDE) * GRAD_VECTOR
    grad_stride_i = index(grad_stride_i, WIDE)
    height = index(height, WIDE)
    channel_blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    output_blocks: tl.constexpr = ceil_div(C, BLOCK_OUTPUTS)
    channel_block = tl.program_id(0) % channel_blocks
    part = tl.program_id(0) // (channel_blocks * output_blocks)
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    output = tl.program_id(0) // channel_blocks % output_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    if positive_mean is None:
        of_positive = tl.zeros((BLOCK_CHANNELS,), accumulator_type)
    else:
        of_positive = tl.load(positive_mean + channel, channel < C, 0.0).to(accumulator_type)
    of_negative = tl.load(negative_mean + channel, channel < C, 0.0).to(accumulator_type)
    positive_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), accumulator_type)
    negative_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), accumulator_type)
    bias_sums = tl.zeros((BLOCK_OUTPUTS,), accumulator_type)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        origin = index(tile, WIDE) * (BLOCK_PIXELS // span)
        position, image, row, column = pixels_of(origin, height, width, BLOCK_PIXELS // span, span, 1)
        inside = position < positions
        gradient = load_pixels(grad, image, row, column, inside, output, grad_stride_n, grad_stride_h, grad_stride_o,
                               grad_stride_i, C, CHANNELS_LAST)
        positive = load_pixels(x, image, row, column, inside, channel, stride_n, stride_h, stride_o, 1, C,
                               CHANNELS_LAST)
        negative = load_dense(z, image, row, column, inside, channel, height, width * span, C, CHANNELS_LAST)
        if channel_block == 0:
            bias_sums += tl.sum(gradient.to(accumulator_type), 0)
        inside = tl.expand_dims(inside, 1)
        positive = centred(positive_part(positive), of_positive, inside, 0).to(element_type)
        negative = centred(negative, of_negative, inside, 0).to(element_type)
        gradient = tl.trans(gradient)
        positive_sums = tl.dot(gradient, positive, positive_sums, PRECISION, out_dtype=accumulator_type)
        negative_sums = tl.dot(gradient, negative, negative_sums, PRECISION, out_dtype=accumulator_type)
    store_share(shares, part, parts, output, channel, positive_sums, negative_sums, bias_sums, channel_block == 0, C)


def weight_shares(grad: Tensor, x: Tensor, z: Tensor, positive_mean: Tensor | None, negative_mean: Tensor,
                  channels_last: bool) -> Tensor:
    """The programs' shares ``[2C + 1, parts, C]`` of the columns of ``Σ grad·([max(x, 0); z] − mean)ᵀ``, and last of
    ``Σ grad``; the means, contiguous, begin with C of a branch, and no mean of a branch is 0."""
    channels, dtype = x.shape[1], folding_dtype(x.dtype)
    if x.numel() == 0:
        return x.new_empty(2 * channels + 1, 0, channels, dtype=dtype)
    x, grad = joined_rows(channels_last, x, grad)
    target = architecture(x)
    operand = operand_of(x)
    config = configs.weight_gradient(channels, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = tail_constants(channels, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "WIDE": wide(x, grad, z)}
    tiles = ceil_div(x.numel() // channels, config.pixels)
    blocks = ceil_div(channels, config.channels) * ceil_div(channels, config.outputs)
    parts, tiles_each = split(x, config.warps, tiles, blocks, 2)  # two of 64 channels fit on a multiprocessor
    shares = x.new_empty(2 * channels + 1, parts, channels, dtype=dtype)
    with on_device_of(x):
        launchable(reborn_weight_gradient_kernel)[(parts * blocks,)](
            grad, x, z, positive_mean, negative_mean, shares, *extent_of(x, vector, channels_last), tiles, tiles_each,
            parts, *strides, *grad_strides, **constants, num_warps=config.warps, num_stages=config.stages)
    return shares


def reborn_weight_gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ grad·([max(x, 0); z] − mean)ᵀ`` ``[C, 2C]`` and ``Σ grad`` ``[C]``, for mean ``[2C]``, in its dtype."""
    channels_last = reads_channels_last("reborn_weight_gradient_triton", x)
    of_positive, of_negative = mean.contiguous().chunk(2)
    return summed_weight(weight_shares(grad, x, z, of_positive, of_negative, channels_last))
