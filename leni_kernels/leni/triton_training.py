"""LENI's training passes in Triton: the statistics of both branches, and the gradients of the folded form.

T is the bytes of one activation. ``leni_statistics`` reads x (1T), ``leni_weight_gradient`` reads x and dy (2T),
``leni_input_gradient`` reads x and dy and writes dx (3T): with the folded kernel's 2T that is 3T forward and 5T
backward. Less would need a kept activation: the norms' statistics depend on all of x, and their gradients on all
of dy. Both branches are recomputed from x, tile by tile; only x is kept. What a tile reads a second time (halos,
and x and dy once for each block of channels) comes from L1 and L2.

dx needs g_z, the gradient of z, on a halo, and Triton cannot shift a tile on the chip: a shift goes through memory.
Writing g_z out and reading it back, with x and dy, is 7T; the halo's product for each of the k column shifts is more
than k products. So a program walks down its images with a ring of the last rows' g_p and g_z, a buffer of its own that
it keeps writing over and L2 can hold: 3T of device memory, and 4T through L2. What lies just before a program's
first tile and after its last is its neighbours', and computed twice. A barrier of the program orders the ring's
writes before its reads; programs share nothing, and no sum is atomic: equal shapes give equal bits. The tilings are
those that compile without spilling in the cases of ``tests/test_codegen.py``; the rest are not all compiled.

Each pass is one launch. D it reads as it lies: every program first lays out its channels' share of it, as tiles read
it, in a place of its own. What the programs leave of sums are shares, which the algebra's launches take; where a pass
is called alone, one more launch sums them.
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import operand_types
from ..triton_packed import negative_part, positive_part
from ..triton_support import (
    CompileCase,
    architecture,
    ceil_div,
    full_vector,
    jit,
    launchable,
    on_device_of,
    tl,
    wide,
)
from . import triton_algebra, triton_configs
from .reference import folding_dtype
from .triton_configs import Config, InputGradientConfig
from .triton_features import (
    StatisticsShares,
    block_positions,
    centred,
    dense_offsets,
    gradient_vectors,
    index,
    join_rows,
    lay_out,
    load_pixels,
    loads_of_rows,
    locate,
    merge_lanes,
    merge_rows,
    operand_of,
    pixels_of,
    rows_of,
    split,
    store_share,
    vectors,
    weight_tiles,
)

# ---- statistics --------------------------------------------------------------------------------------------


@jit
def _statistics_kernel(x, deconv_weight, taps, counts, means, squares, height, width, positions, all_tiles, tiles,
                       stride_n, stride_h, stride_o,
                       C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
                       BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                       WIDE: tl.constexpr):
    """Of each program's ``tiles`` tiles: its count of pixels, and means and squares [2C]; taps: a [k, k, C] each."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    lanes: tl.constexpr = BLOCK_POSITIONS * span
    shape: tl.constexpr = (lanes, BLOCK_CHANNELS) if CHANNELS_LAST else (BLOCK_CHANNELS, lanes)
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    taps += index(part, True) * (KERNEL * KERNEL * C)
    lay_out(deconv_weight, taps, channel, C, KERNEL)
    count = tl.expand_dims(tl.zeros((lanes,), tl.int32), 1 - axis)
    positive_mean = tl.zeros(shape, taps.dtype.element_ty)
    positive_squares = tl.zeros(shape, taps.dtype.element_ty)
    negative_mean = tl.zeros(shape, taps.dtype.element_ty)
    negative_squares = tl.zeros(shape, taps.dtype.element_ty)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        origin = index(tile, WIDE) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        rows, deconvolved = rows_of(x, taps, position, position < positions, channel, height, width,
                                    stride_n, stride_h, stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
        position = origin + tl.arange(0, lanes) // span
        _, row, _ = locate(position, width, height, ROWS)
        inside = tl.where(position < positions, tl.minimum(height - row, ROWS), 0).to(tl.int32)
        inside = tl.expand_dims(inside, 1 - axis)
        positive = ()
        for r in tl.static_range(ROWS):
            positive = positive + (positive_part(rows[r]),)
        positive_mean, positive_squares = merge_rows(positive, inside, count, positive_mean, positive_squares)
        negative_mean, negative_squares = merge_rows(deconvolved, inside, count, negative_mean, negative_squares)
        count += inside
    tl.store(counts + part, tl.sum(tl.sum(count, 1), 0))
    feature = index(part, True) * (2 * C) + channel
    mean, deviations = merge_lanes(count, positive_mean, positive_squares, axis)
    tl.store(means + feature, mean, channel < C)
    tl.store(squares + feature, deviations, channel < C)
    mean, deviations = merge_lanes(count, negative_mean, negative_squares, axis)
    tl.store(means + feature + C, mean, channel < C)
    tl.store(squares + feature + C, deviations, channel < C)


# ---- the gradient of weight and bias -----------------------------------------------------------------------


@jit
def _weight_gradient_kernel(grad, x, deconv_weight, mean, taps, shares, height, width, positions, all_tiles, tiles,
                            parts, stride_n, stride_h, stride_o,
                            grad_stride_n, grad_stride_h, grad_stride_o, grad_stride_i,
                            C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
                            ROWS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                            BLOCK_OUTPUTS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
                            PRECISION: tl.constexpr):
    """Of each program's ``tiles`` tiles: Σ dy·(a − mean)ᵀ [C, 2C] and Σ dy [C]; taps: a [k, k, C] of its own."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    grad_stride_n = index(grad_stride_n, WIDE) * GRAD_VECTOR
    grad_stride_h = index(grad_stride_h, WIDE) * GRAD_VECTOR
    grad_stride_o = index(grad_stride_o, WIDE) * GRAD_VECTOR
    grad_stride_i = index(grad_stride_i, WIDE)
    channel_blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    output_blocks: tl.constexpr = ceil_div(C, BLOCK_OUTPUTS)
    channel_block = tl.program_id(0) % channel_blocks
    part = tl.program_id(0) // (channel_blocks * output_blocks)
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    output = tl.program_id(0) // channel_blocks % output_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    # Of their own even where programs of several blocks of outputs read the same channels.
    taps += index(tl.program_id(0) // channel_blocks, True) * (KERNEL * KERNEL * C)
    lay_out(deconv_weight, taps, channel, C, KERNEL)
    if mean is None:
        positive_mean = tl.zeros((BLOCK_CHANNELS,), accumulator_type)
        negative_mean = positive_mean
    else:
        positive_mean = tl.load(mean + channel, channel < C, 0.0).to(accumulator_type)
        negative_mean = tl.load(mean + C + channel, channel < C, 0.0).to(accumulator_type)
    positive_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), accumulator_type)
    negative_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), accumulator_type)
    bias_sums = tl.zeros((BLOCK_OUTPUTS,), accumulator_type)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        origin = index(tile, WIDE) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        rows, deconvolved = rows_of(x, taps, position, position < positions, channel, height, width,
                                    stride_n, stride_h, stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
        position, image, row, column = pixels_of(origin, height, width, BLOCK_POSITIONS, span, ROWS)
        inside = (position < positions) & (row < height)
        gradient = load_pixels(grad, image, row, column, inside, output, grad_stride_n, grad_stride_h,
                               grad_stride_o, grad_stride_i, C, CHANNELS_LAST)
        inside = tl.expand_dims(inside, 1 - axis)
        positive = centred(positive_part(join_rows(rows, axis)), positive_mean, inside, axis).to(x.dtype.element_ty)
        negative = centred(join_rows(deconvolved, axis), negative_mean, inside, axis).to(x.dtype.element_ty)
        if channel_block == 0:
            bias_sums += tl.sum(gradient.to(accumulator_type), 0)
        if not CHANNELS_LAST:
            positive = tl.trans(positive)
            negative = tl.trans(negative)
        gradient = tl.trans(gradient)
        positive_sums = tl.dot(gradient, positive, positive_sums, PRECISION, out_dtype=accumulator_type)
        negative_sums = tl.dot(gradient, negative, negative_sums, PRECISION, out_dtype=accumulator_type)
    store_share(shares, part, parts, output, channel, positive_sums, negative_sums, bias_sums, channel_block == 0, C)


# ---- the gradient of x and taps ----------------------------------------------------------------------------


@jit
def _branch_gradients(grad, weight, positive_weight, negative_weight, origin, height, width, positions, channel,
                      stride_n, stride_h, stride_o, stride_i, C: tl.constexpr, PIXELS: tl.constexpr,
                      BLOCK_OUTPUTS: tl.constexpr, SPAN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                      ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr):
    """weightᵀ·dy at a tile, of both branches: [PIXELS, K] each; weights that do not fit at once are read here."""
    position, image, row, column = pixels_of(origin, height, width, PIXELS // SPAN, SPAN, 1)
    inside = (position >= 0) & (position < positions)
    positive = tl.zeros((PIXELS, channel.shape[0]), ACCUMULATOR)
    negative = tl.zeros((PIXELS, channel.shape[0]), ACCUMULATOR)
    for k in range(0, C, BLOCK_OUTPUTS):
        output = k + tl.arange(0, BLOCK_OUTPUTS)
        gradient = load_pixels(grad, image, row, column, inside, output, stride_n, stride_h, stride_o, stride_i,
                               C, CHANNELS_LAST)
        if BLOCK_OUTPUTS < C:
            positive_weight, negative_weight = weight_tiles(weight, output, channel, C)
        positive = tl.dot(gradient, positive_weight, positive, PRECISION, out_dtype=ACCUMULATOR)
        negative = tl.dot(gradient, negative_weight, negative, PRECISION, out_dtype=ACCUMULATOR)
    return positive, negative


@jit
def _wrapped(slot, slots):
    """Consecutive slots of a ring of ``slots``, a multiple of any vector's length."""
    slot = tl.where(slot < 0, slot + slots, tl.where(slot < slots, slot, slot - slots))
    # Not where the ring wraps; but no aligned vector lies across that.
    return tl.max_contiguous(slot, slot.shape[0])


@jit
def _correlate(ring, tap_sums, x, taps, slot, slots, slot_stride, lane_offset, row, column, inside, height, columns,
               KERNEL: tl.constexpr):
    """taps ⋆ g_z at some pixels, [P, K], and the taps' gradients' sums with min(x, 0)·shift(g_z) added."""
    half: tl.constexpr = KERNEL // 2
    correlated = tl.zeros(x.shape, taps[0].dtype)
    negative = negative_part(x, taps[0].dtype)
    sums = ()
    for tap in tl.static_range(KERNEL * KERNEL):
        down = tap // KERNEL - half
        right = tap % KERNEL - half
        in_image = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < columns)
        place = _wrapped(slot + down * columns + right, slots) * slot_stride
        reached = in_image[:, None] & inside
        shifted = tl.load(ring + place[:, None] + lane_offset, reached, 0.0).to(taps[0].dtype)
        correlated += taps[tap] * shifted
        # Where there is no g_z, −Inf times its 0 would be a NaN.
        sums = sums + (tap_sums[tap] + tl.where(reached, negative, 0.0) * shifted,)
    return correlated, sums


@jit
def _input_gradient_kernel(grad, x, deconv_weight, weight, constant, slope, taps, ring, dx, taps_parts,
                           height, width, positions, all_tiles, tiles, ahead,
                           stride_n, stride_h, stride_o, grad_stride_n, grad_stride_h, grad_stride_o, grad_stride_i,
                           C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, GRAD_VECTOR: tl.constexpr,
                           BLOCK_PIXELS: tl.constexpr, STEP: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                           BLOCK_OUTPUTS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
                           PRECISION: tl.constexpr):
    """dx, and Σ min(x, 0)·shift(g_z) [k, k, C] of each program's ``tiles`` tiles; taps: a [k, k, C] of its own.

    A tile is BLOCK_PIXELS pixels in a row and on into the next rows and images. Its g_p and g_z go to the ring;
    ``ahead`` tiles later all that the tile's dx reads is there, and it is finished STEP pixels at a time.
    """
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    element_type: tl.constexpr = x.dtype.element_ty
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    grad_stride_n = index(grad_stride_n, WIDE) * GRAD_VECTOR
    grad_stride_h = index(grad_stride_h, WIDE) * GRAD_VECTOR
    grad_stride_o = index(grad_stride_o, WIDE) * GRAD_VECTOR
    grad_stride_i = index(grad_stride_i, WIDE)
    columns = width * span
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    lane = tl.arange(0, BLOCK_CHANNELS)
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + lane
    has_channel = channel < C
    taps += index(part, True) * (KERNEL * KERNEL * C)
    lay_out(deconv_weight, taps, channel, C, KERNEL)
    ring_tiles = 2 * ahead + 2
    slots = ring_tiles * BLOCK_PIXELS
    slot_stride = BLOCK_CHANNELS if CHANNELS_LAST else 1
    lane_offset = (lane * (1 if CHANNELS_LAST else slots))[None, :]
    positive_ring = ring + index(tl.program_id(0), True) * (2 * slots * BLOCK_CHANNELS)
    negative_ring = positive_ring + slots * BLOCK_CHANNELS
    positive_weight, negative_weight = weight_tiles(weight, tl.arange(0, BLOCK_OUTPUTS), channel, C)
    tap_tiles = ()
    tap_sums = ()
    for tap in tl.static_range(KERNEL * KERNEL):
        tap_tiles = tap_tiles + (tl.load(taps + tap * C + channel, has_channel, 0.0)[None, :],)
        tap_sums = tap_sums + (tl.zeros((STEP, BLOCK_CHANNELS), accumulator_type),)
    first = part * tiles
    for tile in range(first - ahead, tl.minimum(first + tiles, all_tiles) + ahead):
        # g = weightᵀ·dy + constant + slope·a; g_p's constant and slope follow when x is read again.
        origin = index(tile, WIDE) * (BLOCK_PIXELS // span)
        positive, negative = _branch_gradients(
            grad, weight, positive_weight, negative_weight, origin, height, width, positions, channel,
            grad_stride_n, grad_stride_h, grad_stride_o, grad_stride_i, C, BLOCK_PIXELS, BLOCK_OUTPUTS, span,
            CHANNELS_LAST, accumulator_type, PRECISION)
        if slope is not None:
            position = origin + tl.arange(0, BLOCK_PIXELS // span)
            _, deconvolved = rows_of(x, taps, position, (position >= 0) & (position < positions), channel, height,
                                     width, stride_n, stride_h, stride_o, C, KERNEL, span, 1, CHANNELS_LAST)
            branch = deconvolved[0] if CHANNELS_LAST else tl.trans(deconvolved[0])
            negative += branch * tl.load(slope + C + channel, has_channel, 0.0)[None, :]
            negative += tl.load(constant + C + channel, has_channel, 0.0)[None, :]
        slot = (tile + ahead) % ring_tiles * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        place = (slot * slot_stride)[:, None] + lane_offset
        tl.store(positive_ring + place, positive.to(element_type))
        tl.store(negative_ring + place, negative.to(element_type))
        # The ring has a tile to spare: one warp may write the next tile while another still reads for this one.
        tl.debug_barrier()
        if tile >= first + ahead:
            for step in range(0, BLOCK_PIXELS, STEP):
                finished = index(tile - ahead, WIDE) * (BLOCK_PIXELS // span) + step // span
                pixel, image, row, column = pixels_of(finished, height, width, STEP // span, span, 1)
                inside = (pixel < positions)[:, None] & has_channel[None, :]
                offset = image * stride_n + row * stride_h + column * (stride_o if CHANNELS_LAST else 1)
                offset = offset[:, None] + (channel * (1 if CHANNELS_LAST else stride_o))[None, :]
                value = tl.load(x + offset, inside, 0.0)
                read = tile % ring_tiles * BLOCK_PIXELS + step + tl.arange(0, STEP)
                correlated, tap_sums = _correlate(negative_ring, tap_sums, value, tap_tiles, read, slots, slot_stride,
                                                  lane_offset, row, column, inside, height, columns, KERNEL)
                passed = tl.load(positive_ring + (read * slot_stride)[:, None] + lane_offset).to(accumulator_type)
                if slope is not None:
                    passed += value.to(accumulator_type) * tl.load(slope + channel, has_channel, 0.0)[None, :]
                    passed += tl.load(constant + channel, has_channel, 0.0)[None, :]
                gradient = tl.where(value > 0, passed, tl.where(value < 0, correlated, 0.0))
                offset = dense_offsets(image, row, column, channel, index(height, WIDE), columns, C, CHANNELS_LAST)
                tl.store(dx + offset, gradient.to(element_type), inside)
    for tap in tl.static_range(KERNEL * KERNEL):
        pointer = taps_parts + (index(part, True) * (KERNEL * KERNEL) + tap) * C + channel
        tl.store(pointer, tl.sum(tap_sums[tap], 0), has_channel)


# ---- launches ----------------------------------------------------------------------------------------------

def statistics_shares(x: Tensor, deconv_weight: Tensor, channels_last: bool) -> StatisticsShares:
    """Those of ``a = [max(x, 0); D ⋆ᵀ min(x, 0)]`` ``[2C]``, in float32 or for a float64 x in float64.

    ``x`` ``[N, C, H, W]`` is as :func:`triton_kernels.leni_folded` takes it; D, contiguous, of any floating dtype and
    of k·k elements a channel. An empty x has no parts.
    """
    channels, kernel_size, dtype = x.shape[1], deconv_weight.shape[-1], folding_dtype(x.dtype)
    if x.numel() == 0:
        return StatisticsShares(x.new_empty(0, dtype=torch.int64),
                                *(x.new_empty(0, 2 * channels, dtype=dtype) for _ in range(2)))
    target = architecture(x)
    operand = operand_of(x, target)
    config = triton_configs.statistics(channels, kernel_size, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    constants = _row_constants(channels, kernel_size, vector, operand, config, channels_last) | {"WIDE": wide(x)}
    columns, positions, tiles = _cover(x, constants)
    blocks = ceil_div(channels, config.channels)
    parts, tiles_each = split(tiles, blocks)
    counts = x.new_empty(parts, dtype=torch.int64)
    means, squares = (x.new_empty(parts, 2 * channels, dtype=dtype) for _ in range(2))
    with on_device_of(x):
        launchable(_statistics_kernel)[(parts * blocks,)](
            x, deconv_weight, _taps_of(x, parts, kernel_size), counts, means, squares, x.shape[2], columns, positions,
            tiles, tiles_each, *strides, **constants, num_warps=config.warps, num_stages=1)
    return StatisticsShares(counts, means, squares)


def weight_shares(grad: Tensor, x: Tensor, deconv_weight: Tensor, mean: Tensor | None, channels_last: bool) -> Tensor:
    """The programs' shares ``[2C + 1, parts, C]`` of the columns of ``Σ grad·(a − mean)ᵀ``, and last of ``Σ grad``.

    ``grad`` ``[N, C, H, W]`` may have any strides; ``mean``, contiguous, begins with the 2C means, or there are none.
    The rest is as in :func:`statistics_shares`.
    """
    channels, kernel_size, dtype = x.shape[1], deconv_weight.shape[-1], folding_dtype(x.dtype)
    if x.numel() == 0:
        return x.new_empty(2 * channels + 1, 0, channels, dtype=dtype)
    target = architecture(x)
    operand = operand_of(x, target)
    config = triton_configs.weight_gradient(channels, kernel_size, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = _row_constants(channels, kernel_size, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "BLOCK_OUTPUTS": config.outputs, "WIDE": wide(x, grad),
                  "PRECISION": "tf32" if operand == "tf32" else "ieee"}
    columns, positions, tiles = _cover(x, constants)
    output_blocks = ceil_div(channels, config.outputs)
    blocks = ceil_div(channels, config.channels) * output_blocks
    parts, tiles_each = split(tiles, blocks)
    shares = x.new_empty(2 * channels + 1, parts, channels, dtype=dtype)
    with on_device_of(x):
        launchable(_weight_gradient_kernel)[(parts * blocks,)](
            grad, x, deconv_weight, mean, _taps_of(x, parts * output_blocks, kernel_size), shares, x.shape[2], columns,
            positions, tiles, tiles_each, parts, *strides, *grad_strides, **constants, num_warps=config.warps,
            num_stages=1)
    return shares


def input_gradient_shares(grad: Tensor, x: Tensor, deconv_weight: Tensor, weight: Tensor, constant: Tensor | None,
                          slope: Tensor | None, channels_last: bool) -> tuple[Tensor, Tensor]:
    """x's gradient as :func:`leni_input_gradient` has it, and the programs' shares ``[parts, k, k, C]`` of D's.

    ``weight`` ``[C, 2C]`` has x's dtype, ``constant`` and ``slope`` are float32 or for a float64 x float64; all three
    and D are contiguous, and D is of any floating dtype.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    channels, kernel_size = x.shape[1], deconv_weight.shape[-1]
    if x.numel() == 0:
        return dx, _taps_of(x, 0, kernel_size)
    target = architecture(x)
    operand = operand_of(x, target)
    config = triton_configs.input_gradient(channels, kernel_size, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = _input_constants(channels, kernel_size, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "WIDE": wide(x, grad, dx)}
    batch, _, height, width = x.shape
    columns = width if channels_last else width // vector
    tiles = ceil_div(batch * height * width, config.pixels)
    ahead = ceil_div(kernel_size // 2 * (width + 1), config.pixels)
    blocks = ceil_div(channels, config.channels)
    # A program computes 2·ahead tiles of the ring that are others': at most half as many as are its own.
    parts, tiles_each = split(tiles, blocks, least=4 * ahead)
    ring = x.new_empty(parts * blocks * 2 * (2 * ahead + 2) * config.pixels * config.channels)
    taps_parts = _taps_of(x, parts, kernel_size)
    with on_device_of(x):
        launchable(_input_gradient_kernel)[(parts * blocks,)](
            grad, x, deconv_weight, weight, constant, slope, torch.empty_like(taps_parts), ring, dx, taps_parts, height,
            columns, batch * height * columns, tiles, tiles_each, ahead, *strides, *grad_strides, **constants,
            num_warps=config.warps, num_stages=1)
    return dx, taps_parts


def leni_statistics(x: Tensor, taps: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[2C]`` of ``[max(x, 0); taps ⋆ᵀ min(x, 0)]``, in taps' dtype.

    ``x`` ``[N, C, H, W]`` and taps ``[C, k, k]`` are as :func:`triton_kernels.leni_folded` takes them.
    """
    shares = statistics_shares(x, taps.contiguous(), channels_last)
    mean, variance, _ = triton_algebra.merged_statistics(*shares).to(taps.dtype).split([2 * x.shape[1]] * 2 + [1])
    return mean.clone(), variance.clone()


def leni_weight_gradient(grad: Tensor, x: Tensor, taps: Tensor, channels_last: bool,
                         mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``Σ grad·(a − mean)ᵀ`` ``[C, 2C]`` and ``Σ grad`` ``[C]``, for ``a = [max(x, 0); taps ⋆ᵀ min(x, 0)]``.

    ``grad`` ``[N, C, H, W]`` may have any strides; ``mean`` ``[2C]`` is 0 where none is given.
    """
    mean = None if mean is None else mean.contiguous()
    return triton_algebra.summed_weight(weight_shares(grad, x, taps.contiguous(), mean, channels_last))


def leni_input_gradient(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None,
                        slope: Tensor | None, channels_last: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x, in x's dtype and order, and of taps ``[C, k, k]``, for a gradient of the folded form.

    ``grad`` ``[N, C, H, W]`` may have any strides. ``constant`` and ``slope`` ``[2C]``, or neither, are added to
    the gradient of ``a = [max(x, 0); taps ⋆ᵀ min(x, 0)]`` as ``constant + slope·a``.
    """
    added = (None, None) if slope is None else (constant.contiguous(), slope.contiguous())
    dx, shares = input_gradient_shares(grad, x, taps.contiguous(), weight.to(x.dtype).contiguous(), *added,
                                       channels_last)
    return dx, triton_algebra.summed_taps(shares, taps)


def _taps_of(x: Tensor, parts: int, kernel_size: int) -> Tensor:
    """Room for D ``[k, k, C]`` of each of several programs, in the dtype that z is formed in."""
    return x.new_empty(parts, kernel_size, kernel_size, x.shape[1], dtype=folding_dtype(x.dtype))


def _row_constants(channels: int, kernel_size: int, vector: int, operand: str, config: Any,
                   channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "KERNEL": kernel_size, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_POSITIONS": block_positions(config.positions, vector, operand, channels_last),
        "BLOCK_CHANNELS": config.channels, "CHANNELS_LAST": channels_last,
    }


def _input_constants(channels: int, kernel_size: int, vector: int, operand: str, config: InputGradientConfig,
                     channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "KERNEL": kernel_size, "VECTOR": vector, "BLOCK_PIXELS": config.pixels, "STEP": config.step,
        "BLOCK_CHANNELS": config.channels, "BLOCK_OUTPUTS": config.outputs, "CHANNELS_LAST": channels_last,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


def _cover(x: Tensor, constants: dict[str, Any]) -> tuple[int, int, int]:
    """The positions in a row of the image, the positions in all, and the tiles that cover them."""
    batch, _, height, width = x.shape
    columns = width if constants["CHANNELS_LAST"] else width // constants["VECTOR"]
    positions = batch * ceil_div(height, constants["ROWS"]) * columns
    return columns, positions, ceil_div(positions, constants["BLOCK_POSITIONS"])


# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every pass in the configurations that ``architecture`` gets, with the widest vectors C allows."""
    sizes = [(channels, 3) for channels in (3, 16, 32, 64, 128, 256)] + [(64, 5), (64, 7)]
    for channels_last in (True, False):
        for operand in operand_types(architecture):
            for channels, kernel_size in sizes:
                yield from _CaseOf(channels, kernel_size, operand, architecture, channels_last).passes()
        for case in _CaseOf(64, 3, "fp16", architecture, channels_last).passes():
            yield case.with_wide_offsets()


class _CaseOf(NamedTuple):
    """The compile cases of one size, dtype and layout."""

    channels: int
    kernel_size: int
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
        return self.statistics(), self.weight_gradient(), self.input_gradient()

    def statistics(self) -> CompileCase:
        config = triton_configs.statistics(*self)
        constants = _row_constants(self.channels, self.kernel_size, self.vector, self.operand, config,
                                   self.channels_last)
        return self._case("statistics", _statistics_kernel, constants, config.warps, 0, self._loads_of_rows(config))

    def weight_gradient(self) -> CompileCase:
        config = triton_configs.weight_gradient(*self)
        constants = _row_constants(self.channels, self.kernel_size, self.vector, self.operand, config,
                                   self.channels_last)
        constants |= {"BLOCK_OUTPUTS": config.outputs, "PRECISION": "tf32" if self.operand == "tf32" else "ieee"}
        return self._case("weight gradient", _weight_gradient_kernel, constants, config.warps, config.outputs,
                          self._loads_of_rows(config))

    def input_gradient(self) -> CompileCase:
        config = triton_configs.input_gradient(*self)
        constants = _input_constants(self.channels, self.kernel_size, self.vector, self.operand, config,
                                     self.channels_last)
        # A tile of x as the rows of the other passes are read: one row, of as many positions.
        positions = config.pixels // (1 if self.channels_last else full_vector(self.operand))
        rows = Config(1, positions, config.channels, config.outputs, config.warps)
        return self._case("input gradient", _input_gradient_kernel, constants, config.warps, config.pixels,
                          self._loads_of_rows(rows))

    def _loads_of_rows(self, config: Any) -> tuple[int, int]:
        return loads_of_rows(self.kernel_size, self.operand, config, self.vector, self.channels_last,
                             self.architecture)

    def _case(self, name: str, kernel: Any, constants: dict[str, Any], warps: int, tile_rows: int,
              loads: tuple[int, int]) -> CompileCase:
        if tile_rows:
            constants |= {"GRAD_VECTOR": self.vector, "grad_stride_i": 1}
        constants |= {"WIDE": False}
        element = "fp32" if self.operand == "tf32" else self.operand
        parameter = "fp64" if self.operand == "fp64" else "fp32"
        of_x = dict.fromkeys(("grad", "x", "weight", "ring", "dx"), f"*{element}")
        vectors = ("deconv_weight", "taps", "constant", "slope", "means", "squares", "shares", "taps_parts")
        pointers = of_x | dict.fromkeys(vectors, f"*{parameter}") | {"mean": "*fp64", "counts": "*i64"}
        signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
        layout = "channels-last" if self.channels_last else "NCHW"
        return CompileCase(f"leni {name} {layout} C={self.channels} k={self.kernel_size}", kernel, signature,
                           constants, warps, self.operand, tile_rows, *loads)
