"""Reborn's tail in Triton: what follows the deconvolution that makes z, forward and backward.

T is the bytes of one activation. Forward, ``reborn_statistics`` reads z (1T), ``reborn_tail`` reads x and z and writes
y = weight · [max(x, 0); z − mean] + bias (3T). Backward, ``reborn_weight_gradient`` reads x, z and dy (3T),
``reborn_negative_gradient`` reads dy and z and writes dz (3T; 2T with running statistics, which need no z), and after
the deconvolution of dz ``reborn_input_gradient`` reads dy, x and its result and writes dx (4T). Only x and z are kept.
Less would need the deconvolution in these kernels, and it is the library's: z, dz and what it makes of dz have to be
written, the norm's statistics depend on all of z, and dz on all of dy through their gradients. Nothing else is written.
What a tile reads a second time (x, z and dy once for each block of channels or outputs) comes from L2. By the model
(``make predict``) memory bounds every pass of 64 channels. Of more, instructions bound the weight's gradient, and L2,
which brings the weights again for every tile, y and the gradient of z.

Each pass is one launch; shares of sums, and parameters as the kernels read them, are as in ``triton_training.py``.

A tile is pixels by channels in either layout, and max(x, 0) is taken on the way to the matrix units. Where rows follow
each other without a gap, a plane is one row, so that narrow images have long vectors too. No sum is atomic: equal
shapes give equal bits. The tilings are those that compile without spilling in the cases of ``tests/test_codegen.py``;
the rest are not all compiled.
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import warp_size
from ..triton_packed import positive_part, widened
from ..triton_support import (
    CompileCase,
    architecture,
    ceil_div,
    full_vector,
    itemsize,
    jit,
    launchable,
    on_device_of,
    operands_and_sizes,
    tl,
    wide,
)
from . import triton_algebra, triton_configs
from .reference import folding_dtype
from .triton_configs import StatisticsConfig, TailConfig
from .triton_features import (
    ROUNDS,
    StatisticsShares,
    about_means,
    add_deviations,
    block_positions,
    centred,
    dense_offsets,
    gradient_vectors,
    index,
    less_mean,
    load_pixels,
    loads_of_rows,
    merge_lanes,
    operand_of,
    pixels_of,
    split,
    store_share,
    vectors,
    weight_tiles,
)

# In the kernels ``width`` and the strides count vectors of VECTOR elements in NCHW, and the strides alone do in
# channels-last; stride_o is as in ``triton_features.py``, and x is any activation that has stride 1 there. z, what is
# joined to it, and all that is written have no gaps.


@jit
def _load_dense(base, image, row, column, inside, channel, height, columns, C: tl.constexpr,
                CHANNELS_LAST: tl.constexpr):
    """A [pixels, channels] tile of an activation without gaps."""
    offset = dense_offsets(image, row, column, channel, height, columns, C, CHANNELS_LAST)
    return tl.load(base + offset, inside[:, None] & (channel < C)[None, :], 0.0)


# ---- statistics --------------------------------------------------------------------------------------------


@jit
def _statistics_kernel(z, counts, means, squares, height, width, positions, all_tiles, tiles,
                       C: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
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
    pivot = _load_dense(z, image, row, column, position < positions, channel, height, width * span, C, CHANNELS_LAST)
    pivot = pivot.to(accumulator_type)
    sums = tl.zeros_like(pivot)
    deviations = tl.zeros_like(pivot)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        rows = ()
        inside = tl.zeros((BLOCK_PIXELS,), tl.int32)
        for r in tl.static_range(ROWS):
            origin = (index(tile, WIDE) * ROWS + r) * block
            position, image, row, column = pixels_of(origin, height, width, block, span, 1)
            values = _load_dense(z, image, row, column, position < positions, channel, height, width * span, C,
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


# ---- y -----------------------------------------------------------------------------------------------------


@jit
def _tail_kernel(x, z, weight, bias, mean, y, height, width, positions, stride_n, stride_h, stride_o,
                 C: tl.constexpr, VECTOR: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                 BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
                 PRECISION: tl.constexpr):
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
            negative = _load_dense(z, image, row, column, inside, channel, height, columns, C, CHANNELS_LAST)
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


# ---- the gradient of weight and bias -----------------------------------------------------------------------


@jit
def _weight_gradient_kernel(grad, x, z, positive_mean, negative_mean, shares, height, width, positions, all_tiles,
                            tiles, parts, stride_n, stride_h, stride_o,
                            grad_stride_n, grad_stride_h, grad_stride_o, grad_stride_i,
                            C: tl.constexpr, VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
                            BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
                            CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
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
        negative = _load_dense(z, image, row, column, inside, channel, height, width * span, C, CHANNELS_LAST)
        if channel_block == 0:
            bias_sums += tl.sum(gradient.to(accumulator_type), 0)
        inside = tl.expand_dims(inside, 1)
        positive = centred(positive_part(positive), of_positive, inside, 0).to(element_type)
        negative = centred(negative, of_negative, inside, 0).to(element_type)
        gradient = tl.trans(gradient)
        positive_sums = tl.dot(gradient, positive, positive_sums, PRECISION, out_dtype=accumulator_type)
        negative_sums = tl.dot(gradient, negative, negative_sums, PRECISION, out_dtype=accumulator_type)
    store_share(shares, part, parts, output, channel, positive_sums, negative_sums, bias_sums, channel_block == 0, C)


# ---- the gradients of both branches ------------------------------------------------------------------------


@jit
def _branch_gradient_kernel(grad, x, negative, matrix, constant, slope, out, height, width, positions,
                            stride_n, stride_h, stride_o, grad_stride_n, grad_stride_h, grad_stride_o, grad_stride_i,
                            C: tl.constexpr, VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
                            BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
                            CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """dx of x, where the other branch gives ``negative``, and without it dz, of a z in x's place.

    dx = [x > 0] · M·dy + [x < 0] · negative; dz = M·dy + constant + slope·z, or without a slope M·dy. ``matrix`` M,
    [channels, outputs], is the branch's half of the weight, transposed: so its rows lie as products want them.
    """
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    accumulator_type: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    grad_stride_n = index(grad_stride_n, WIDE) * GRAD_VECTOR
    grad_stride_h = index(grad_stride_h, WIDE) * GRAD_VECTOR
    grad_stride_o = index(grad_stride_o, WIDE) * GRAD_VECTOR
    grad_stride_i = index(grad_stride_i, WIDE)
    height = index(height, WIDE)
    columns = width * span
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    has_channel = channel < C
    origin = index(tl.program_id(0) // blocks, WIDE) * (BLOCK_PIXELS // span)
    position, image, row, column = pixels_of(origin, height, width, BLOCK_PIXELS // span, span, 1)
    inside = position < positions
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), accumulator_type)
    for k in range(0, C, BLOCK_OUTPUTS):
        output = k + tl.arange(0, BLOCK_OUTPUTS)
        gradient = load_pixels(grad, image, row, column, inside, output, grad_stride_n, grad_stride_h, grad_stride_o,
                               grad_stride_i, C, CHANNELS_LAST)
        factors = tl.load(matrix + channel[:, None] * C + output[None, :], has_channel[:, None] & (output < C)[None, :],
                          0.0)
        sums = tl.dot(gradient, tl.trans(factors), sums, PRECISION, out_dtype=accumulator_type)
    offset = dense_offsets(image, row, column, channel, height, columns, C, CHANNELS_LAST)
    mask = inside[:, None] & has_channel[None, :]
    if negative is not None:
        value = load_pixels(x, image, row, column, inside, channel, stride_n, stride_h, stride_o, 1, C, CHANNELS_LAST)
        joined = tl.load(negative + offset, mask, 0.0).to(accumulator_type)
        sums = tl.where(value > 0, sums, tl.where(value < 0, joined, 0.0))
    elif slope is not None:
        value = load_pixels(x, image, row, column, inside, channel, stride_n, stride_h, stride_o, 1, C, CHANNELS_LAST)
        sums += value.to(accumulator_type) * tl.load(slope + channel, has_channel, 0.0)[None, :]
        sums += tl.load(constant + channel, has_channel, 0.0)[None, :]
    tl.store(out + offset, sums.to(out.dtype.element_ty), mask)


# ---- launches ----------------------------------------------------------------------------------------------
# x ``[N, C, H, W]`` and the parameters are as ``triton_kernels.leni_folded`` takes them; z and ``negative`` have x's
# shape and no gaps in the order that ``channels_last`` says; grad may have any strides.

# A program that does several tiles reads its weights once; too few programs leave the GPU idle at the end.
_MOST_TILES = 4
_ENOUGH_PROGRAMS = 1024


def statistics_shares(z: Tensor, channels_last: bool) -> StatisticsShares:
    """Those of z's C channels, in float32 or for a float64 z in float64; an empty z has no parts."""
    channels, dtype = z.shape[1], folding_dtype(z.dtype)
    if z.numel() == 0:
        return StatisticsShares(z.new_empty(0, dtype=torch.int64),
                                *(z.new_empty(0, channels, dtype=dtype) for _ in range(2)))
    z, = _joined_rows(channels_last, z)
    target = architecture(z)
    operand = operand_of(z, target)
    config = triton_configs.tail_statistics(channels, operand, target, channels_last)
    vector, _ = vectors(z, channels_last)
    constants = _statistics_constants(channels, vector, operand, config, channels_last) | {"WIDE": wide(z)}
    tiles = ceil_div(z.numel() // channels, config.rows * constants["BLOCK_PIXELS"])
    blocks = ceil_div(channels, config.channels)
    parts, tiles_each = split(z, config.warps, tiles, blocks, ROUNDS)
    counts = z.new_empty(parts, dtype=torch.int64)
    means, squares = (z.new_empty(parts, channels, dtype=dtype) for _ in range(2))
    with on_device_of(z):
        launchable(_statistics_kernel)[(parts * blocks,)](
            z, counts, means, squares, *_extent(z, vector, channels_last), tiles, tiles_each, **constants,
            num_warps=config.warps, num_stages=1)
    return StatisticsShares(counts, means, squares)


def reborn_statistics(z: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[C]`` of z, in float32 or for a float64 z in float64."""
    statistics = triton_algebra.merged_statistics(*statistics_shares(z, channels_last)).to(folding_dtype(z.dtype))
    mean, variance, _ = statistics.split([z.shape[1]] * 2 + [1])
    return mean.clone(), variance.clone()


def reborn_tail(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, channels_last: bool,
                mean: Tensor | None = None) -> Tensor:
    """``weight · [max(x, 0); z − mean] + bias`` for weight ``[C, 2C]``, bias and mean ``[C]``, in x's dtype."""
    return tail_laid_out(x, z, weight.to(x.dtype).contiguous(), bias.contiguous(),
                         None if mean is None else mean.contiguous(), channels_last)


def tail_laid_out(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                  channels_last: bool) -> Tensor:
    """:func:`reborn_tail` for parameters as the kernel reads them: contiguous, and weight in x's dtype."""
    y = _empty_like(x, channels_last)
    if x.numel() == 0:
        return y
    x, = _joined_rows(channels_last, x)
    channels, target = x.shape[1], architecture(x)
    operand = operand_of(x, target)
    config = triton_configs.tail(channels, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    tiles = ceil_div(x.numel() // channels, config.pixels)
    constants = _constants(channels, vector, operand, config, channels_last)
    constants |= {"TILES": _MOST_TILES if tiles >= _MOST_TILES * _ENOUGH_PROGRAMS else 1, "WIDE": wide(x, y)}
    programs = ceil_div(tiles, constants["TILES"]) * ceil_div(channels, config.outputs)
    with on_device_of(x):
        launchable(_tail_kernel)[(programs,)](
            x, z, weight, bias, mean, y, *_extent(x, vector, channels_last), *strides, **constants,
            num_warps=config.warps, num_stages=config.stages)
    return y


def weight_shares(grad: Tensor, x: Tensor, z: Tensor, positive_mean: Tensor | None, negative_mean: Tensor,
                  channels_last: bool) -> Tensor:
    """The programs' shares ``[2C + 1, parts, C]`` of the columns of ``Σ grad·([max(x, 0); z] − mean)ᵀ``, and last of
    ``Σ grad``; the means, contiguous, begin with C of a branch, and no mean of a branch is 0."""
    channels, dtype = x.shape[1], folding_dtype(x.dtype)
    if x.numel() == 0:
        return x.new_empty(2 * channels + 1, 0, channels, dtype=dtype)
    x, grad = _joined_rows(channels_last, x, grad)
    target = architecture(x)
    operand = operand_of(x, target)
    config = triton_configs.tail_weight_gradient(channels, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = _constants(channels, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "WIDE": wide(x, grad, z)}
    tiles = ceil_div(x.numel() // channels, config.pixels)
    blocks = ceil_div(channels, config.channels) * ceil_div(channels, config.outputs)
    parts, tiles_each = split(x, config.warps, tiles, blocks, 2)  # two of 64 channels fit on a multiprocessor
    shares = x.new_empty(2 * channels + 1, parts, channels, dtype=dtype)
    with on_device_of(x):
        launchable(_weight_gradient_kernel)[(parts * blocks,)](
            grad, x, z, positive_mean, negative_mean, shares, *_extent(x, vector, channels_last), tiles, tiles_each,
            parts, *strides, *grad_strides, **constants, num_warps=config.warps, num_stages=config.stages)
    return shares


def reborn_weight_gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor,
                           channels_last: bool) -> tuple[Tensor, Tensor]:
    """``Σ grad·([max(x, 0); z] − mean)ᵀ`` ``[C, 2C]`` and ``Σ grad`` ``[C]``, for mean ``[2C]``, in its dtype."""
    of_positive, of_negative = mean.contiguous().chunk(2)
    return triton_algebra.summed_weight(weight_shares(grad, x, z, of_positive, of_negative, channels_last))


def reborn_negative_gradient(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None, slope: Tensor | None,
                             channels_last: bool) -> Tensor:
    """z's gradient, in z's dtype: that of ``weight · [max(x, 0); z]``, and, if given, ``constant + slope·z``."""
    added = (None, None) if slope is None else (constant.contiguous(), slope.contiguous())
    return branch_gradient(grad, z, None, _matrix(weight, 1, z.dtype), *added, channels_last)


def reborn_input_gradient(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor, channels_last: bool) -> Tensor:
    """x's gradient, in x's dtype: that of ``weight · [max(x, 0); z]``, ``negative`` where x < 0, and 0 where x = 0."""
    return branch_gradient(grad, x, negative, _matrix(weight, 0, x.dtype), None, None, channels_last)


def _matrix(weight: Tensor, branch: int, dtype: torch.dtype) -> Tensor:
    return weight.chunk(2, dim=1)[branch].to(dtype).t().contiguous()


def branch_gradient(grad: Tensor, x: Tensor, negative: Tensor | None, matrix: Tensor, constant: Tensor | None,
                    slope: Tensor | None, channels_last: bool) -> Tensor:
    """The gradient of x, or without ``negative`` of a z in its place, for the branch's ``matrix`` ``[C, C]``: its half
    of the weight transposed, in x's dtype."""
    out = _empty_like(x, channels_last)
    if x.numel() == 0:
        return out
    x, grad = _joined_rows(channels_last, x, grad)
    channels, target = x.shape[1], architecture(x)
    operand = operand_of(x, target)
    config = triton_configs.tail_gradient(channels, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = _constants(channels, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "WIDE": wide(x, grad, out)}
    programs = ceil_div(x.numel() // channels, config.pixels) * ceil_div(channels, config.channels)
    with on_device_of(x):
        launchable(_branch_gradient_kernel)[(programs,)](
            grad, x, negative, matrix, constant, slope, out, *_extent(x, vector, channels_last),
            *strides, *grad_strides, **constants, num_warps=config.warps, num_stages=config.stages)
    return out


def _empty_like(x: Tensor, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _joined_rows(channels_last: bool, x: Tensor, *grad: Tensor) -> tuple[Tensor, ...]:
    """The activations with each plane as one row, if in all of them a row begins where the one before it ends."""
    step = x.stride(3) if channels_last else 1
    steps = zip((x, *grad), (step, *(tensor.stride(3) for tensor in grad)), strict=True)
    if all(tensor.shape[2] == 1 or tensor.stride(2) == tensor.shape[3] * step for tensor, step in steps):
        return tuple(tensor.flatten(2)[:, :, None] for tensor in (x, *grad))
    return x, *grad


def _extent(x: Tensor, vector: int, channels_last: bool) -> tuple[int, int, int]:
    """The rows of the image, the positions in a row, and the positions in all; in NCHW they are vectors."""
    columns = x.shape[3] if channels_last else x.shape[3] // vector
    return x.shape[2], columns, x.shape[0] * x.shape[2] * columns


def _constants(channels: int, vector: int, operand: str, config: TailConfig, channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "VECTOR": vector, "BLOCK_PIXELS": config.pixels, "BLOCK_CHANNELS": config.channels,
        "BLOCK_OUTPUTS": config.outputs, "CHANNELS_LAST": channels_last,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


def _statistics_constants(channels: int, vector: int, operand: str, config: StatisticsConfig,
                          channels_last: bool) -> dict[str, Any]:
    positions = block_positions(config.positions, vector, operand, channels_last)
    return {
        "C": channels, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_PIXELS": positions if channels_last else positions * vector, "BLOCK_CHANNELS": config.channels,
        "CHANNELS_LAST": channels_last,
    }


# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every pass in the configurations that ``architecture`` gets, with the widest vectors C allows."""
    widths = [(channels,) for channels in (3, 16, 32, 64, 128, 256, 512)]
    for channels_last in (True, False):
        for operand, (channels,) in operands_and_sizes(architecture, widths):
            yield from _CaseOf(channels, operand, architecture, channels_last).passes()
        for case in _CaseOf(64, "fp16", architecture, channels_last).passes():
            yield case.with_wide_offsets()


class _CaseOf(NamedTuple):
    """The compile cases of one width, dtype and layout."""

    channels: int
    operand: str
    architecture: str
    channels_last: bool

    @property
    def vector(self) -> int:
        vector = full_vector(self.operand)
        while self.channels_last and self.channels % vector:
            vector //= 2
        return vector

    def passes(self) -> tuple[CompileCase, ...]:
        return (self.statistics(), self.tail(), self.weight_gradient(), self.negative_gradient(),
                self.input_gradient())

    def statistics(self) -> CompileCase:
        config = triton_configs.tail_statistics(*self)
        constants = _statistics_constants(self.channels, self.vector, self.operand, config, self.channels_last)
        loads = loads_of_rows(1, self.operand, config, self.vector, self.channels_last, self.architecture)
        return self._case("statistics", _statistics_kernel, constants, config.warps, 1, 0, loads)

    def tail(self) -> CompileCase:
        config = triton_configs.tail(*self)
        return self._of_product("tail", _tail_kernel, config, config.pixels, config.channels, {"TILES": _MOST_TILES}, 2)

    def weight_gradient(self) -> CompileCase:
        config = triton_configs.tail_weight_gradient(*self)
        return self._of_product("weight gradient", _weight_gradient_kernel, config, config.outputs, config.channels,
                                {"GRAD_VECTOR": self.vector, "grad_stride_i": 1, "positive_mean": None}, 2)

    def negative_gradient(self) -> CompileCase:
        config = triton_configs.tail_gradient(*self)
        constants = {"GRAD_VECTOR": self.vector, "grad_stride_i": 1, "negative": None}
        return self._of_product("negative gradient", _branch_gradient_kernel, config, config.pixels, config.outputs,
                                constants, 1)

    def input_gradient(self) -> CompileCase:
        config = triton_configs.tail_gradient(*self)
        constants = {"GRAD_VECTOR": self.vector, "grad_stride_i": 1, "constant": None, "slope": None}
        return self._of_product("input gradient", _branch_gradient_kernel, config, config.pixels, config.outputs,
                                constants, 1)

    def _of_product(self, name: str, kernel: Any, config: TailConfig, tile_rows: int, depth: int,
                    constants: dict[str, Any], tiles: int) -> CompileCase:
        """A kernel that in its hot loop reads ``tiles`` tiles of pixels by ``depth`` channels or more."""
        constants |= _constants(self.channels, self.vector, self.operand, config, self.channels_last)
        elements = config.pixels * depth // (config.warps * warp_size(self.architecture))
        vector = min(self.vector, max(1, elements))
        loads = vector * itemsize(self.operand) * 8, tiles * max(1, elements // vector)
        return self._case(name, kernel, constants, config.warps, config.stages, tile_rows, loads)

    def _case(self, name: str, kernel: Any, constants: dict[str, Any], warps: int, stages: int, tile_rows: int,
              loads: tuple[int, int]) -> CompileCase:
        constants |= {"WIDE": False}
        element = "fp32" if self.operand == "tf32" else self.operand
        parameter = "fp64" if self.operand == "fp64" else "fp32"
        of_x = dict.fromkeys(("grad", "x", "z", "negative", "weight", "matrix", "y", "out"), f"*{element}")
        of_channels = ("bias", "mean", "constant", "slope", "means", "squares", "shares")
        pointers = of_x | dict.fromkeys(of_channels, f"*{parameter}") | {"negative_mean": "*fp64", "counts": "*i64"}
        signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
        layout = "channels-last" if self.channels_last else "NCHW"
        return CompileCase(f"reborn {name} {layout} C={self.channels}", kernel, signature, constants, warps,
                           self.operand, tile_rows, *loads, stages)
