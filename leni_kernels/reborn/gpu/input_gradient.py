"""The gradients of either branch of Reborn's tail in Triton: that of z, and after its deconvolution that of x.

T is the bytes of one activation. ``reborn_negative_gradient`` reads dy and z and writes dz (3T; 2T with running
statistics, which need no z); after the deconvolution of dz, which is the library's, ``reborn_input_gradient`` reads dy,
x and its result and writes dx (4T). Less would need the deconvolution in these kernels. By the model (``make predict``)
memory bounds both for 64 channels, and for more L2, which brings the weights again for every tile. Each is one launch,
of one kernel. No sum is atomic: equal shapes give equal bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.gpu.support import architecture, ceil_div, jit, launchable, on_device_of, operand_of, tl, wide
from ...common.layout import reads_channels_last
from ...two_branch.gpu.tiles import dense_offsets, gradient_vectors, index, load_pixels, pixels_of, vectors
from ...two_branch.layout import empty_as
from . import configs
from .tiles import extent_of, joined_rows, tail_constants


@jit
def reborn_branch_gradient_kernel(grad, x, negative, matrix, constant, slope, out, height, width, positions, stride_n,
                                  stride_h, stride_o, grad_stride_n, grad_stride_h, grad_stride_o, grad_stride_i,
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


def reborn_negative_gradient(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None,
                             slope: Tensor | None) -> Tensor:
    """z's gradient, in z's dtype: that of ``weight · [max(x, 0); z]``, and, if given, ``constant + slope·z``."""
    channels_last = reads_channels_last("reborn_negative_gradient_triton", z, "z")
    added = (None, None) if slope is None else (constant.contiguous(), slope.contiguous())
    return branch_gradient(grad, z, None, _matrix(weight, 1, z.dtype), *added, channels_last)


def reborn_input_gradient(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """x's gradient, in x's dtype: that of ``weight · [max(x, 0); z]``, ``negative`` where x < 0, and 0 where x = 0."""
    channels_last = reads_channels_last("reborn_input_gradient_triton", x)
    return branch_gradient(grad, x, negative, _matrix(weight, 0, x.dtype), None, None, channels_last)


def _matrix(weight: Tensor, branch: int, dtype: torch.dtype) -> Tensor:
    return weight.chunk(2, dim=1)[branch].to(dtype).t().contiguous()


def branch_gradient(grad: Tensor, x: Tensor, negative: Tensor | None, matrix: Tensor, constant: Tensor | None,
                    slope: Tensor | None, channels_last: bool) -> Tensor:
    """The gradient of x, or without ``negative`` of a z in its place, for the branch's ``matrix`` ``[C, C]``: its half
    of the weight transposed, in x's dtype."""
    out = empty_as(x, channels_last)
    if x.numel() == 0:
        return out
    x, grad = joined_rows(channels_last, x, grad)
    channels, target = x.shape[1], architecture(x)
    operand = operand_of(x)
    config = configs.branch_gradient(channels, operand, target, channels_last)
    vector, strides = vectors(x, channels_last)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = tail_constants(channels, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "WIDE": wide(x, grad, out)}
    programs = ceil_div(x.numel() // channels, config.pixels) * ceil_div(channels, config.channels)
    with on_device_of(x):
        launchable(reborn_branch_gradient_kernel)[(programs,)](
            grad, x, negative, matrix, constant, slope, out, *extent_of(x, vector, channels_last),
            *strides, *grad_strides, **constants, num_warps=config.warps, num_stages=config.stages)
    return out
