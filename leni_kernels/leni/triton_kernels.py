"""LENI inference in Triton: ``y = weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias`` in one pass.

Reads x once from device memory, writes y once, saves nothing: 2T, where T is the bytes of one activation.
That is the least, since every element of x matters and every element of y is new; a ReLU moves as much. The
halo of a tile and the k column shifts of a row come from L1 and L2. With more output channels than one tile
has, x is read once per block of them, through L2.

A stride-1 transposed convolution is a correlation with flipped taps. A tile is a set of *positions*: a
position is ``ROWS`` output pixels under each other (in NCHW, ``VECTOR`` times as many, side by side), so
that one load of x serves up to k output rows; positions are numbered across rows and images, so that narrow
images fill a tile too. Both branches go through the matrix units into one accumulator: z is formed in
float32 (float64 for float64) and rounded to x's dtype, in which max(x, 0) is exact.
"""
# ruff: noqa: RUF005 (kernels cannot unpack tuples)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..triton_support import (
    CompileCase,
    architecture,
    ceil_div,
    float32_operand,
    full_vector,
    itemsize,
    jit,
    launchable,
    on_device_of,
    tl,
    vector_length,
)
from .triton_configs import Config, choose

# ---- what both kernels share -------------------------------------------------------------------------------


@jit
def _positive(x):
    """max(x, 0) in x's dtype; a NaN stays a NaN."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)


@jit
def _negative(x, ACCUMULATOR: tl.constexpr):
    """min(x, 0) in the accumulator's dtype; a NaN stays a NaN."""
    return tl.minimum(x.to(ACCUMULATOR), 0.0, propagate_nan=tl.PropagateNan.ALL)


@jit
def _zeros(COUNT: tl.constexpr, like):
    """A tuple of COUNT zero tensors."""
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros_like(like),)
    return zeros


@jit
def _add_tap_row(sums, x, taps, INPUT_ROW: tl.constexpr):
    """Add one input row's share to every output row it reaches: ``sums[r] += taps[INPUT_ROW - r] · x``."""
    added = ()
    for r in tl.static_range(len(sums)):
        if r <= INPUT_ROW and INPUT_ROW - r < len(taps):
            added = added + (sums[r] + x * taps[INPUT_ROW - r],)
        else:
            added = added + (sums[r],)
    return added


@jit
def _locate(position, width, height, ROWS: tl.constexpr):
    """The (image, first row, column) of a position, where ``width`` positions stand side by side in a row."""
    band = position // width
    bands = tl.cdiv(height, ROWS)
    return band // bands, band % bands * ROWS, position % width


@jit
def _weights(weight, output, channel, C: tl.constexpr):
    """The two [outputs, channels] tiles of the [C, 2C] weight: positive branch, negative branch."""
    pointer = weight + output[:, None] * (2 * C) + channel[None, :]
    mask = (output < C)[:, None] & (channel < C)[None, :]
    return tl.load(pointer, mask, 0.0), tl.load(pointer + C, mask, 0.0)


@jit
def _concatenate(tiles, AXIS: tl.constexpr):
    """A tuple of [A, B] tiles (a power of two of them) as one tile, along AXIS."""
    if len(tiles) == 1:
        return tiles[0]
    else:
        half: tl.constexpr = len(tiles) // 2
        first = _concatenate(tiles[:half], AXIS)
        second = _concatenate(tiles[half:], AXIS)
        both = tl.permute(tl.join(first, second), (2, 0, 1) if AXIS == 0 else (0, 2, 1))
        return tl.reshape(both, (first.shape[0] * (2 - AXIS), first.shape[1] * (1 + AXIS)))


@jit
def _operand(rows, AXIS: tl.constexpr):
    """A tuple of output rows, [A, B] each, concatenated along AXIS as an operand for the matrix units.

    No data moves between threads. Even and odd elements are concatenated apart: that leaves neighbours along
    B in neighbouring registers, and so lets Triton store the operand to shared memory 128 bits at a time.
    """
    if AXIS == 1 and rows[0].dtype == tl.float32:
        # Hopper's TF32 products want channels side by side, across B; and where no cast follows, as here,
        # Triton (3.6 and 3.8) aborts on pairs.
        return _concatenate(rows, AXIS)
    else:
        even = ()
        odd = ()
        for r in tl.static_range(len(rows)):
            pairs = tl.reshape(rows[r], (rows[r].shape[0], rows[r].shape[1] // 2, 2))
            first, second = tl.split(pairs)
            even = even + (first,)
            odd = odd + (second,)
        both = tl.join(_concatenate(even, AXIS), _concatenate(odd, AXIS))
        return tl.reshape(both, (both.shape[0], both.shape[1] * 2))


# ---- channels last -----------------------------------------------------------------------------------------


@jit
def _branches_channels_last(x, taps, row, column, inside, channel, height, width, stride_h, stride_w,
                            C: tl.constexpr, KERNEL: tl.constexpr, ROWS: tl.constexpr):
    """Both branches, [ROWS·P, K] each, of K channels at P positions; ``x`` [P, K] points at first rows."""
    half: tl.constexpr = KERNEL // 2
    centre = ()
    sums = _zeros(ROWS, tl.zeros(x.shape, taps.dtype.element_ty))
    has_channel = channel < C
    # Stepping, rather than an offset for each tap: the offsets would be kept in registers through the tiles.
    corner = x - half * (stride_h + stride_w)
    # Columns outside, rows inside: only one column of the taps is held in registers at a time.
    for j in tl.static_range(KERNEL):
        tap_column = ()
        for i in tl.static_range(KERNEL):
            flipped = taps + (KERNEL * KERNEL - 1 - i * KERNEL - j) * C
            tap_column = tap_column + (tl.load(flipped + channel, has_channel, 0.0)[None, :],)
        inside_column = inside & (column >= half - j) & (column < width + half - j)
        pointer = corner + j * stride_w
        for i in tl.static_range(ROWS + KERNEL - 1):
            inside_row = inside_column & (row >= half - i) & (row < height + half - i)
            values = tl.load(pointer, inside_row[:, None] & has_channel[None, :], 0.0)
            pointer += stride_h
            sums = _add_tap_row(sums, _negative(values, taps.dtype.element_ty), tap_column, i)
            if j == half and i >= half and i < half + ROWS:
                centre = centre + (values,)
    return _positive(_operand(centre, 0)), _operand(sums, 0).to(x.dtype.element_ty)


@jit
def _channels_last_kernel(x, taps, weight, bias, y, height, width, positions,
                          stride_n, stride_h, stride_w,
                          C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
                          BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                          BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr,
                          PRECISION: tl.constexpr):
    """x, y: [N, H, W, C] in memory; the strides of x count vectors of VECTOR elements; taps: [k, k, C]."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    stride_n = tl.cast(stride_n, index_type) * VECTOR
    stride_h = tl.cast(stride_h, index_type) * VECTOR
    stride_w = tl.cast(stride_w, index_type) * VECTOR
    output_blocks: tl.constexpr = tl.cdiv(C, BLOCK_OUTPUTS)
    output = tl.program_id(0) % output_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    if BLOCK_CHANNELS >= C:
        positive_weight, negative_weight = _weights(weight, output, channel, C)
    first_tile = tl.program_id(0) // output_blocks * TILES
    for tile in range(TILES):
        origin = tl.cast(first_tile + tile, index_type) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        image, row, column = _locate(position, width, height, ROWS)
        first = image * stride_n + row * stride_h + column * stride_w
        base = x + first[:, None] + channel[None, :]
        sums = tl.zeros((ROWS * BLOCK_POSITIONS, BLOCK_OUTPUTS), accumulator_type)
        for k in range(0, C, BLOCK_CHANNELS):
            positive, negative = _branches_channels_last(
                base + k, taps, row, column, position < positions, k + channel, height, width,
                stride_h, stride_w, C, KERNEL, ROWS)
            if BLOCK_CHANNELS < C:
                positive_weight, negative_weight = _weights(weight, output, k + channel, C)
            sums = tl.dot(positive, tl.trans(positive_weight), sums, PRECISION, out_dtype=accumulator_type)
            sums = tl.dot(negative, tl.trans(negative_weight), sums, PRECISION, out_dtype=accumulator_type)
        sums += tl.load(bias + output, output < C, 0.0)[None, :]
        pixel = tl.arange(0, ROWS * BLOCK_POSITIONS)
        position = origin + pixel % BLOCK_POSITIONS
        image, row, column = _locate(position, width, height, ROWS)
        row += pixel // BLOCK_POSITIONS
        pointer = y + (((image * height + row) * width + column) * C)[:, None] + output[None, :]
        mask = ((position < positions) & (row < height))[:, None] & (output < C)[None, :]
        tl.store(pointer, sums.to(y.dtype.element_ty), mask)


# ---- NCHW --------------------------------------------------------------------------------------------------


@jit
def _split_vector(vectors):
    """[K, P, VECTOR] as a tuple of VECTOR [K, P] tiles."""
    if vectors.shape[2] == 1:
        return (tl.reshape(vectors, (vectors.shape[0], vectors.shape[1])),)
    else:
        pairs = tl.reshape(vectors, (vectors.shape[0], vectors.shape[1], vectors.shape[2] // 2, 2))
        even, odd = tl.split(pairs)
        if vectors.shape[2] == 2:
            return (tl.reshape(even, (vectors.shape[0], vectors.shape[1])),
                    tl.reshape(odd, (vectors.shape[0], vectors.shape[1])))
        else:
            return _interleave(_split_vector(even), _split_vector(odd))


@jit
def _interleave(even, odd):
    elements = ()
    for e in tl.static_range(len(even)):
        elements = elements + (even[e], odd[e])
    return elements


@jit
def _join_vector(elements):
    """A tuple of VECTOR [K, P] tiles as [K, P, VECTOR]."""
    if len(elements) == 1:
        return tl.expand_dims(elements[0], 2)
    elif len(elements) == 2:
        return tl.join(elements[0], elements[1])
    else:
        both = tl.join(_join_vector(elements[::2]), _join_vector(elements[1::2]))
        return tl.reshape(both, (both.shape[0], both.shape[1], both.shape[2] * 2))


@jit
def _load_negative(pointer, mask, ACCUMULATOR: tl.constexpr):
    return _negative(tl.load(pointer, mask, 0.0), ACCUMULATOR)


@jit
def _branches_contiguous(x, taps, row, column, inside, channel, height, width, stride_h,
                         C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr):
    """Both branches, [K, ROWS·P·VECTOR] each, of K channels at P positions; ``x`` [K, P] points at firsts."""
    half: tl.constexpr = KERNEL // 2
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    centre = ()
    sums = _zeros(ROWS, tl.zeros((x.shape[0], x.shape[1], VECTOR), accumulator_type))
    has_channel = channel < C
    vector = tl.arange(0, VECTOR)[None, None, :]
    flipped = ()
    for i in tl.static_range(KERNEL * KERNEL):
        tap = tl.load(taps + (KERNEL * KERNEL - 1 - i) * C + channel, has_channel, 0.0)
        flipped = flipped + (tap[:, None, None],)
    pointer = x - half * stride_h
    for i in tl.static_range(ROWS + KERNEL - 1):
        inside_row = has_channel[:, None] & (inside & (row >= half - i) & (row < height + half - i))[None, :]
        values = tl.load(tl.expand_dims(pointer, 2) + vector, tl.expand_dims(inside_row, 2), 0.0)
        if i >= half and i < half + ROWS:
            centre = centre + (tl.reshape(values, (x.shape[0], x.shape[1] * VECTOR)),)
        # The vector and its halo, element by element: column shifts are then a choice of registers.
        line = ()
        for j in tl.static_range(half):
            inside_halo = inside_row & (column >= half - j)[None, :]
            line = line + (_load_negative(pointer + (j - half), inside_halo, accumulator_type),)
        line = line + _split_vector(_negative(values, accumulator_type))
        for j in tl.static_range(half):
            inside_halo = inside_row & (column + VECTOR + j < width)[None, :]
            line = line + (_load_negative(pointer + (VECTOR + j), inside_halo, accumulator_type),)
        for j in tl.static_range(KERNEL):
            sums = _add_tap_row(sums, _join_vector(line[j:j + VECTOR]), flipped[j::KERNEL], i)
        pointer += stride_h
    negative = ()
    for r in tl.static_range(ROWS):
        negative = negative + (tl.reshape(sums[r], (x.shape[0], x.shape[1] * VECTOR)),)
    return _positive(_operand(centre, 1)), _operand(negative, 1).to(x.dtype.element_ty)


@jit
def _contiguous_kernel(x, taps, weight, bias, y, height, width, positions,
                       stride_n, stride_h, stride_c,
                       C: tl.constexpr, KERNEL: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
                       BLOCK_POSITIONS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
                       BLOCK_OUTPUTS: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr,
                       PRECISION: tl.constexpr):
    """x, y: [N, C, H, W] in memory; width and x's strides count vectors of VECTOR; taps: [k, k, C]."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    stride_n = tl.cast(stride_n, index_type) * VECTOR
    stride_h = tl.cast(stride_h, index_type) * VECTOR
    stride_c = tl.cast(stride_c, index_type) * VECTOR
    plane = tl.cast(height, index_type) * width * VECTOR
    output_blocks: tl.constexpr = tl.cdiv(C, BLOCK_OUTPUTS)
    output = tl.program_id(0) % output_blocks * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    if BLOCK_CHANNELS >= C:
        positive_weight, negative_weight = _weights(weight, output, channel, C)
    first_tile = tl.program_id(0) // output_blocks * TILES
    for tile in range(TILES):
        origin = tl.cast(first_tile + tile, index_type) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        image, row, column = _locate(position, width, height, ROWS)
        first = image * stride_n + row * stride_h + column * VECTOR
        base = x + first[None, :] + (channel * stride_c)[:, None]
        sums = tl.zeros((BLOCK_OUTPUTS, ROWS * BLOCK_POSITIONS * VECTOR), accumulator_type)
        for k in range(0, C, BLOCK_CHANNELS):
            positive, negative = _branches_contiguous(
                base + k * stride_c, taps, row, column * VECTOR, position < positions, k + channel, height,
                width * VECTOR, stride_h, C, KERNEL, VECTOR, ROWS)
            if BLOCK_CHANNELS < C:
                positive_weight, negative_weight = _weights(weight, output, k + channel, C)
            sums = tl.dot(positive_weight, positive, sums, PRECISION, out_dtype=accumulator_type)
            sums = tl.dot(negative_weight, negative, sums, PRECISION, out_dtype=accumulator_type)
        sums += tl.load(bias + output, output < C, 0.0)[:, None]
        pixel = tl.arange(0, ROWS * BLOCK_POSITIONS * VECTOR)
        position = origin + pixel // VECTOR % BLOCK_POSITIONS
        image, row, column = _locate(position, width, height, ROWS)
        row += pixel // (BLOCK_POSITIONS * VECTOR)
        offset = image * (C * plane) + (row * width + column) * VECTOR + pixel % VECTOR
        pointer = y + offset[None, :] + (output * plane)[:, None]
        mask = ((position < positions) & (row < height))[None, :] & (output < C)[:, None]
        tl.store(pointer, sums.to(y.dtype.element_ty), mask)


# ---- launches ----------------------------------------------------------------------------------------------

# A program that does several tiles reads its weights once; too few programs leave the GPU idle at the end.
_MOST_TILES = 4
_ENOUGH_PROGRAMS = 1024
_OPERANDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


def leni_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, channels_last: bool) -> Tensor:
    """Launch on x ``[N, C, H, W]`` with taps ``[C, k, k]``, weight ``[C, 2C]`` and bias ``[C]``; returns y.

    The parameters are float32, or float64 for a float64 x. ``channels_last`` says whether x has stride 1
    along channels or along columns, and how y is laid out; no other stride of x matters, and x is not copied.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    if x.numel() == 0:
        return y
    batch, channels, height, width = x.shape
    target = architecture(x)
    operand = _OPERANDS.get(x.dtype) or float32_operand(target)
    config = choose(channels, taps.shape[-1], operand, target, channels_last)
    vector, strides = _vectors(x, channels_last)
    columns = width if channels_last else width // vector
    positions = batch * ceil_div(height, config.rows) * columns
    constants = _constants(channels, taps.shape[-1], vector, operand, config, channels_last)
    tiles = ceil_div(positions, constants["BLOCK_POSITIONS"])
    constants |= {"TILES": _MOST_TILES if tiles >= _MOST_TILES * _ENOUGH_PROGRAMS else 1, "WIDE": _wide(x, y)}
    programs = ceil_div(tiles, constants["TILES"]) * ceil_div(channels, config.outputs)
    with on_device_of(x):
        launchable(_kernel(channels_last))[(programs,)](
            x, taps.permute(1, 2, 0).contiguous(), weight.to(x.dtype).contiguous(), bias.contiguous(), y,
            height, columns, positions, *strides, **constants, num_warps=config.warps, num_stages=1)
    return y


def _kernel(channels_last: bool) -> Any:
    return _channels_last_kernel if channels_last else _contiguous_kernel


def _constants(channels: int, kernel_size: int, vector: int, operand: str, config: Config,
               channels_last: bool) -> dict[str, Any]:
    # A configuration counts NCHW positions in full vectors; narrower ones take more for as many pixels.
    positions = config.positions if channels_last else config.positions * full_vector(operand) // vector
    return {
        "C": channels, "KERNEL": kernel_size, "VECTOR": vector, "ROWS": config.rows,
        "BLOCK_POSITIONS": positions, "BLOCK_CHANNELS": config.channels, "BLOCK_OUTPUTS": config.outputs,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


def _vectors(x: Tensor, channels_last: bool) -> tuple[int, tuple[int, int, int]]:
    """The length of an aligned vector along x's stride-1 dimension, and the other strides in vectors."""
    inner, others = (1, (0, 2, 3)) if channels_last else (3, (0, 2, 1))
    steps = [x.stride(dimension) for dimension in others if x.shape[dimension] > 1]
    length = vector_length(x.dtype.itemsize, x.shape[inner], *steps)
    return length, tuple(x.stride(dimension) // length for dimension in others)


def _wide(x: Tensor, y: Tensor) -> bool:
    """Whether offsets into x or y may not fit in 32 bits; some room is left for positions past the last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return max(last, y.numel()) >= 2**31 - 2**16


# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every kernel in the configurations that ``architecture`` gets, with the widest vectors C allows."""
    sizes = [(channels, 3) for channels in (3, 16, 32, 64, 128, 256, 512)]
    sizes += [(64, 5), (256, 5), (16, 7), (64, 7), (128, 7), (256, 7)]
    for channels_last in (True, False):
        for operand in ("fp16", "bf16", "tf32", "fp32", "fp64"):
            if operand == "tf32" and architecture.startswith("gfx"):
                continue
            for channels, kernel_size in sizes:
                yield _compile_case(channels, kernel_size, operand, architecture, channels_last)


def _compile_case(channels: int, kernel_size: int, operand: str, architecture: str,
                  channels_last: bool) -> CompileCase:
    config = choose(channels, kernel_size, operand, architecture, channels_last)
    vector = full_vector(operand)
    while channels_last and channels % vector:
        vector //= 2
    constants = _constants(channels, kernel_size, vector, operand, config, channels_last)
    constants |= {"TILES": _MOST_TILES, "WIDE": False}
    element = "fp32" if operand == "tf32" else operand
    parameter = "fp64" if operand == "fp64" else "fp32"
    pointers = {"x": element, "taps": parameter, "weight": element, "bias": parameter, "y": element}
    kernel = _kernel(channels_last)
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32"
                 for name in kernel.arg_names if name not in constants}
    vector_bits, vector_loads = _loads(kernel_size, operand, config, vector, channels_last, architecture)
    pixels = config.rows * constants["BLOCK_POSITIONS"]
    layout = "channels-last" if channels_last else "NCHW"
    return CompileCase(f"leni {layout} C={channels} k={kernel_size}", kernel, signature, constants,
                       config.warps, operand, pixels if channels_last else config.outputs, vector_bits,
                       vector_loads)


def _loads(kernel_size: int, operand: str, config: Config, vector: int, channels_last: bool,
           architecture: str) -> tuple[int, int]:
    """The bits of a load of x, and how many such loads a thread should make for one block of channels."""
    threads = config.warps * (64 if architecture.startswith("gfx") else 32)
    elements = config.positions * config.channels * (1 if channels_last else full_vector(operand))
    vector = min(vector, max(1, elements // threads))
    shifts = kernel_size if channels_last else 1
    loads = (config.rows + kernel_size - 1) * shifts * max(1, elements // (threads * vector))
    return vector * itemsize(operand) * 8, loads
