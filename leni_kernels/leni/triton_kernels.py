"""LENI inference in Triton: ``y = weight · ([max(x, 0); taps ⋆ᵀ min(x, 0)] − mean) + bias`` in one pass.

Reads x once from device memory, writes y once, saves nothing: 2T, where T is the bytes of one activation.
That is the least, since every element of x matters and every element of y is new; a ReLU moves as much. The
halo of a tile and the k column shifts of a row come from L1 and L2. With more output channels than one tile
has, x is read once per block of them, through L2. By the model (``make predict``) memory, L1 and the instructions that
are issued take about as long up to 64 channels; from there on the instructions bound it, and L1, which brings weights
that do not stay on the chip.

It is one launch for parameters that are laid out and rounded already (``leni_laid_out``): the algebra's launch leaves
them so, and a folded module keeps them so. ``leni_folded`` copies taps, and in half precision casts weight and
rounds a mean.

Both branches (``triton_features.py``) go through the matrix units into one accumulator, rounded to x's dtype, and
before that less their mean, if there is one: what is left may be much smaller, and so is the rounding of it. The mean
of max(x, 0) is a number of x's dtype, near the true one, so that half precision subtracts it in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..triton_packed import difference, positive_part
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
    power_of_two,
    tl,
    wide,
)
from . import reference
from .triton_algebra import bias_shares
from .triton_configs import Config, choose, for_height, for_vectors
from .triton_features import (
    NARROW_VECTORS,
    block_positions,
    join_rows,
    loads_of_rows,
    locate,
    minus_negative_mean,
    operand_of,
    rows_channels_last,
    rows_contiguous,
    units_of_rows,
    weight_tiles,
)


@jit
def branch_tiles(rows, deconvolved, mean, channel, C: tl.constexpr, AXIS: tl.constexpr):
    """Rows of x, and of z less its mean, as operands of both branches, in x's dtype; ``mean`` [2C] may be None."""
    if AXIS == 0:
        narrow = ()  # first, which frees the registers of sums; along the other axis Triton 3.6 cannot join pairs then
        for r in tl.static_range(len(deconvolved)):
            narrow = narrow + (deconvolved[r].to(rows[0].dtype),)  # noqa: RUF005 (kernels cannot unpack tuples)
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
def _channels_last_kernel(x, taps, weight, bias, mean, y, height, width, positions,
                          stride_n, stride_h, stride_w,
                          C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
                          BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                          BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, SHARES: tl.constexpr, WIDE: tl.constexpr,
                          PRECISION: tl.constexpr, EVEN_ROWS: tl.constexpr):
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
def _contiguous_kernel(x, taps, weight, bias, mean, y, height, width, positions,
                       stride_n, stride_h, stride_c,
                       C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
                       BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                       BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, SHARES: tl.constexpr, WIDE: tl.constexpr,
                       PRECISION: tl.constexpr):
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
_MOST_TILES = 4
_ENOUGH_PROGRAMS = 1024


def leni_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, channels_last: bool,
                mean: Tensor | None = None) -> Tensor:
    """Launch on x ``[N, C, H, W]`` with taps ``[C, k, k]``, weight ``[C, 2C]``, bias ``[C]``, mean ``[2C]``; returns y.

    The parameters are float32, or float64 for a float64 x. ``channels_last`` says whether x has stride 1
    along channels or along columns, and how y is laid out; no other stride of x matters, and x is not copied.
    """
    return leni_laid_out(x, *laid_out(x.dtype, taps, weight, bias, mean), channels_last)


def laid_out(dtype: torch.dtype, taps: Tensor, weight: Tensor, bias: Tensor,
             mean: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The parameters of :func:`leni_folded` as the kernel reads them for an x of this dtype."""
    weight = weight.to(dtype).contiguous()
    if mean is not None and dtype.itemsize == 2:
        positive, negative = mean.chunk(2)
        rounded = torch.cat([positive.to(dtype).to(mean.dtype), negative])
        bias, mean = reference.centred_bias(weight, bias, rounded - mean), rounded
    return (taps.permute(1, 2, 0).contiguous(), weight, bias.contiguous(), None if mean is None else mean.contiguous())


def leni_laid_out(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                  channels_last: bool) -> Tensor:
    """:func:`leni_folded` for parameters as the kernel reads them: taps ``[k, k, C]``, weight in x's dtype.

    So are the values of mean's first half, of max(x, 0). The bias may come as shares ``[shares, C]``, which are summed.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    if x.numel() == 0:
        return y
    batch, channels, height, width = x.shape
    kernel_size, target = taps.shape[0], architecture(x)
    operand = operand_of(x, target)
    vector, strides = units_of_rows(x, channels_last)
    config = for_vectors(choose(channels, kernel_size, operand, target, channels_last), vector, operand, channels_last,
                         least_rows=1)
    config = for_height(config, height, channels_last)
    columns = width if channels_last else width // vector
    positions = batch * ceil_div(height, config.rows) * columns
    constants = _constants(channels, kernel_size, vector, operand, config, channels_last)
    tiles = ceil_div(positions, constants["BLOCK_POSITIONS"])
    several = config.channels >= channels and tiles >= _MOST_TILES * _ENOUGH_PROGRAMS
    constants |= {"TILES": _MOST_TILES if several else 1, "SHARES": bias.numel() // channels, "WIDE": wide(x, y)}
    if channels_last:
        constants["EVEN_ROWS"] = _even_rows(height, operand, config)
    programs = ceil_div(tiles, constants["TILES"]) * ceil_div(channels, config.outputs)
    with on_device_of(x):
        launchable(_kernel(channels_last))[(programs,)](
            x, taps, weight, bias, mean, y, height, columns, positions, *strides, **constants, num_warps=config.warps,
            num_stages=1)
    return y


def _kernel(channels_last: bool) -> Any:
    return _channels_last_kernel if channels_last else _contiguous_kernel


def _even_rows(height: int, operand: str, config: Config) -> bool:
    """Whether tiles end where images do, where a kernel of its own is worth it: in half precision, which moves less."""
    return itemsize(operand) == 2 and bool(height % config.rows == 0)  # of a symbol a guard


def _constants(channels: int, kernel_size: int, vector: int, operand: str, config: Config,
               channels_last: bool) -> dict[str, Any]:
    return {
        "C": channels, "KERNEL": kernel_size, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_POSITIONS": block_positions(config.positions, vector, operand, channels_last),
        "BLOCK_CHANNELS": config.channels, "BLOCK_OUTPUTS": config.outputs,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every kernel in the configurations that ``architecture`` gets, with the widest vectors C allows."""
    sizes = [(channels, 3) for channels in (3, 16, 32, 64, 128, 256, 512)]
    sizes += [(64, 5), (256, 5), (16, 7), (64, 7), (128, 7), (256, 7)]
    for channels_last in (True, False):
        for operand, size in operands_and_sizes(architecture, sizes):
            yield _compile_case(*size, operand, architecture, channels_last)
        yield _compile_case(64, 3, "fp16", architecture, channels_last).with_wide_offsets()
    for operand, size in operands_and_sizes(architecture, sizes):
        if itemsize(operand) == 2:
            yield _compile_case(*size, operand, architecture, True, height=56)
    if architecture.startswith("sm_90"):
        yield _compile_case(256, 3, "bf16", architecture, True, height=7)
    for channels in (64, 256):
        yield _with_gaps(_compile_case(channels, 3, "fp16", architecture, True))
        for vector in NARROW_VECTORS:
            yield _compile_case(channels, 3, "bf16", architecture, False, vector)


def _with_gaps(case: CompileCase) -> CompileCase:
    """A case as an x has it whose pixels in a row have gaps between them, and of features that have no mean."""
    constants = case.constants | {"VECTOR": full_vector(case.operand), "mean": None, "SHARES": 1}
    signature = case.signature | {"stride_w": "i32"}
    del constants["stride_w"], signature["mean"]
    return case._replace(name=f"{case.name} with gaps", constants=constants, signature=signature)


def _compile_case(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool,
                  vector: int | None = None, height: int | None = None) -> CompileCase:
    narrow = "" if vector is None else f" vectors of {vector}"
    low = "" if height is None else f" height {height}"
    vector = vector or full_vector(operand)
    while channels_last and channels % vector:
        vector //= 2
    config = for_vectors(choose(channels, kernel_size, operand, architecture, channels_last), vector, operand,
                         channels_last, least_rows=1)
    if height is not None:
        config = for_height(config, height, channels_last)
    constants = _constants(channels, kernel_size, vector, operand, config, channels_last)
    shares = bias_shares(channels, operand == "bf16")  # as in training; float16's cases are of inference
    constants |= {"TILES": _MOST_TILES if config.channels >= channels else 1, "SHARES": shares, "WIDE": False}
    if channels_last:
        even = height is not None and _even_rows(height, operand, config)
        constants |= {"VECTOR": channels, "stride_w": 1, "EVEN_ROWS": even}
    element = "fp32" if operand == "tf32" else operand
    parameter = "fp64" if operand == "fp64" else "fp32"
    pointers = {"x": element, "taps": parameter, "weight": element, "bias": parameter, "mean": parameter,
                "y": element}
    kernel = _kernel(channels_last)
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32"
                 for name in kernel.arg_names if name not in constants}
    vector_bits, vector_loads = loads_of_rows(kernel_size, operand, config, vector, channels_last, architecture)
    pixels = power_of_two(config.rows) * constants["BLOCK_POSITIONS"]
    layout = "channels-last" if channels_last else "NCHW"
    return CompileCase(f"leni {layout} C={channels} k={kernel_size}{narrow}{low}", kernel, signature, constants,
                       config.warps, operand, pixels if channels_last else config.outputs, vector_bits,
                       vector_loads)
