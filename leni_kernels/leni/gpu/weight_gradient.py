"""The gradient of the weight that LENI's folded form multiplies by, in Triton.

T is the bytes of one activation. It reads x and dy (2T), which is the least: each element of both counts. Both branches
are recomputed from x, tile by tile; what a tile reads a second time (halos, and x and dy once for each block of
channels) comes from L1 and L2. By the model (``make predict``) the instructions bound it: it takes up to twice the time
of its bytes, and of 256 channels three to four times. The tilings are those that compile without spilling in the cases
of ``tests/test_codegen.py``; the rest are not all compiled.

It is one launch, whose programs lay out D and leave shares as those of ``statistics.py`` do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...common.gpu.packed import difference, positive_part
from ...common.gpu.support import architecture, ceil_div, itemsize, jit, launchable, on_device_of, operand_of, tl, wide
from ...common.layout import reads_channels_last
from ...two_branch.gpu.algebra import summed_weight
from ...two_branch.gpu.tiles import gradient_vectors, index, load_pixels, pixels_of, split, store_share
from ...two_branch.reference import folding_dtype
from . import configs
from .configs import Config, for_offsets, for_vectors
from .features import cover, join_rows, lay_out, minus_negative_mean, row_constants, rows_of, taps_of, units_of_rows


@jit
def leni_weight_gradient_kernel(grad, x, deconv_weight, mean, taps, shares, height, width, positions, all_tiles, tiles,
                                parts, stride_n, stride_h, stride_o, grad_stride_n, grad_stride_h, grad_stride_o,
                                grad_stride_i, C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr,
                                GRAD_VECTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
                                BLOCK_CHANNELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                                WIDE: tl.constexpr, PRECISION: tl.constexpr, BIAS_BY_PRODUCT: tl.constexpr):
    """Of each program's ``tiles`` tiles: Σ dy·(a − mean)ᵀ [C, 2C] and Σ dy [C]; taps: a [k, k, C] of its own."""
    span: tl.constexpr = 1 if CHANNELS_LAST else VECTOR
    axis: tl.constexpr = 0 if CHANNELS_LAST else 1
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    element_type: tl.constexpr = x.dtype.element_ty
    half: tl.constexpr = element_type.primitive_bitwidth == 16
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
    positive_mean = tl.zeros((BLOCK_CHANNELS,), accumulator_type)
    if mean is not None:
        positive_mean = tl.load(mean + channel, channel < C, 0.0).to(accumulator_type)
    start = minus_negative_mean(mean, channel, C, axis, accumulator_type)
    positive_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), accumulator_type)
    negative_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_CHANNELS), accumulator_type)
    # Both branches lose their means before they are rounded: what is left may be much smaller. In half precision
    # max(x, 0) loses its mean's rounded value, exactly where that is near, and the sums the rest of it at last.
    shift = positive_mean.to(element_type)
    ones = tl.full((ROWS * BLOCK_POSITIONS * span, 16), 1.0, tl.float32).to(element_type)
    bias_sums = tl.zeros((BLOCK_OUTPUTS, 16) if BIAS_BY_PRODUCT else (BLOCK_OUTPUTS,), accumulator_type)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        origin = index(tile, WIDE) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        rows, deconvolved = rows_of(x, taps, start, position, position < positions, channel, height, width,
                                    stride_n, stride_h, stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
        position, image, row, column = pixels_of(origin, height, width, BLOCK_POSITIONS, span, ROWS)
        inside = (position < positions) & (row < height)
        gradient = load_pixels(grad, image, row, column, inside, output, grad_stride_n, grad_stride_h,
                               grad_stride_o, grad_stride_i, C, CHANNELS_LAST)
        positive = positive_part(join_rows(rows, axis))
        if half:
            positive = difference(positive, tl.broadcast_to(tl.expand_dims(shift, axis), positive.shape))
        else:
            positive = (positive.to(accumulator_type) - tl.expand_dims(positive_mean, axis)).to(element_type)
        # dy is 0 outside, but a row below the image may have of z what is not finite.
        inside = tl.expand_dims(inside, 1 - axis)
        negative = tl.where(inside, join_rows(deconvolved, axis), 0.0).to(element_type)
        if BIAS_BY_PRODUCT:
            bias_sums = tl.dot(tl.trans(gradient), ones, bias_sums, PRECISION, out_dtype=accumulator_type)
        else:
            # As negative, for Triton to pass it through shared memory; as it is, it takes more registers.
            positive = tl.where(inside, positive, 0.0).to(element_type)
            bias_sums += tl.sum(gradient.to(accumulator_type), 0)
        gradient = tl.trans(gradient)
        if not CHANNELS_LAST:
            positive = tl.trans(positive)
            negative = tl.trans(negative)
        positive_sums = tl.dot(gradient, positive, positive_sums, PRECISION, out_dtype=accumulator_type)
        negative_sums = tl.dot(gradient, negative, negative_sums, PRECISION, out_dtype=accumulator_type)
    bias = tl.sum(bias_sums, 1) / 16 if BIAS_BY_PRODUCT else bias_sums
    if half:
        positive_sums -= bias[:, None] * (positive_mean - shift.to(accumulator_type))[None, :]
    store_share(shares, part, parts, output, channel, positive_sums, negative_sums, bias, channel_block == 0, C)


def weight_shares(grad: Tensor, x: Tensor, deconv_weight: Tensor, mean: Tensor | None, channels_last: bool) -> Tensor:
    """The programs' shares ``[2C + 1, parts, C]`` of the columns of ``Σ grad·(a − mean)ᵀ``, and last of ``Σ grad``.

    ``grad`` ``[N, C, H, W]`` may have any strides; ``mean``, contiguous, begins with the 2C means, or there are none.
    The rest is as in :func:`statistics_shares`.
    """
    channels, kernel_size, dtype = x.shape[1], deconv_weight.shape[-1], folding_dtype(x.dtype)
    if x.numel() == 0:
        return x.new_empty(2 * channels + 1, 0, channels, dtype=dtype)
    target = architecture(x)
    operand = operand_of(x)
    vector, strides = units_of_rows(x, channels_last)
    config = for_vectors(configs.weight_gradient(channels, kernel_size, operand, target, channels_last), vector,
                         operand, channels_last)
    is_wide = wide(x, grad)
    config = for_offsets(config, is_wide)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = row_constants(channels, kernel_size, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "WIDE": is_wide} | product_constants(operand, config, target)
    columns, positions, tiles = cover(x, constants)
    output_blocks = ceil_div(channels, config.outputs)
    blocks = ceil_div(channels, config.channels) * output_blocks
    parts, tiles_each = split(x, config.warps, tiles, blocks)
    shares = x.new_empty(2 * channels + 1, parts, channels, dtype=dtype)
    with on_device_of(x):
        launchable(leni_weight_gradient_kernel)[(parts * blocks,)](
            grad, x, deconv_weight, mean, taps_of(x, parts * output_blocks, kernel_size), shares, x.shape[2], columns,
            positions, tiles, tiles_each, parts, *strides, *grad_strides, **constants, num_warps=config.warps,
            num_stages=1)
    return shares


def leni_weight_gradient(grad: Tensor, x: Tensor, taps: Tensor,
                         mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``Σ grad·(a − mean)ᵀ`` ``[C, 2C]`` and ``Σ grad`` ``[C]``, for ``a = [max(x, 0); taps ⋆ᵀ min(x, 0)]``.

    ``grad`` ``[N, C, H, W]`` may have any strides; ``mean`` ``[2C]`` is 0 where none is given.
    """
    channels_last = reads_channels_last("leni_weight_gradient_triton", x)
    mean = None if mean is None else mean.contiguous()
    return summed_weight(weight_shares(grad, x, taps.contiguous(), mean, channels_last))


def product_constants(operand: str, config: Config, architecture: str) -> dict[str, Any]:
    # One more product of an operand that is there spares adding dy up in registers; it was counted for Hopper alone.
    by_product = itemsize(operand) == 2 and architecture.startswith("sm_9")
    return {"BLOCK_OUTPUTS": config.outputs, "PRECISION": "tf32" if operand == "tf32" else "ieee",
            "BIAS_BY_PRODUCT": by_product}
