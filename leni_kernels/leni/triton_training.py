"""LENI's training passes in Triton: the statistics of both branches, and the gradient of the folded form's weight.

T is the bytes of one activation. ``leni_statistics`` reads x (1T), ``leni_weight_gradient`` reads x and dy (2T); x's
gradient is in ``triton_input_gradient.py`` (7T): with the folded kernel's 2T that is 3T forward and 9T backward, and
only x is kept. The norms' statistics depend on all of x, and their gradients on all of dy. Both branches are
recomputed from x, tile by tile. What a tile reads a second time (halos, and x and dy once for each block of channels)
comes from L1 and L2. By the model (``make predict``) the instructions bound both passes: the statistics take two to
four times the time of their bytes, the weight's gradient up to twice, and of 256 channels three to four times. The
tilings are those that compile without spilling in the cases of ``tests/test_codegen.py``; the rest are not all
compiled.

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

from ..triton_packed import difference, positive_part, widened
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
from .triton_configs import Config, for_offsets, for_vectors
from .triton_features import (
    NARROW_VECTORS,
    ROUNDS,
    StatisticsShares,
    about_means,
    add_deviations,
    block_positions,
    gradient_vectors,
    index,
    join_rows,
    lay_out,
    load_pixels,
    loads_of_rows,
    locate,
    merge_lanes,
    minus_negative_mean,
    operand_of,
    pixels_of,
    rows_of,
    split,
    store_share,
    units_of_rows,
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
    accumulator_type: tl.constexpr = taps.dtype.element_ty
    stride_n = index(stride_n, WIDE) * VECTOR
    stride_h = index(stride_h, WIDE) * VECTOR
    stride_o = index(stride_o, WIDE) * VECTOR
    blocks: tl.constexpr = ceil_div(C, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    taps += index(part, True) * (KERNEL * KERNEL * C)
    lay_out(deconv_weight, taps, channel, C, KERNEL)
    # Of each lane's first value, of either branch, all others' deviations are summed.
    first = index(part * tiles, WIDE) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    first_rows, first_deconvolved = rows_of(
        x, taps, tl.zeros((1, 1), accumulator_type), first, first < positions, channel, height, width,
        stride_n, stride_h, stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
    positive_pivot = widened(positive_part(first_rows[0]), accumulator_type)
    negative_pivot = first_deconvolved[0]
    count = tl.expand_dims(tl.zeros((lanes,), tl.int32), 1 - axis)
    positive_sums = tl.zeros_like(positive_pivot)
    positive_squares = tl.zeros_like(positive_pivot)
    negative_sums = tl.zeros_like(positive_pivot)
    negative_squares = tl.zeros_like(positive_pivot)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        origin = index(tile, WIDE) * BLOCK_POSITIONS
        position = origin + tl.arange(0, BLOCK_POSITIONS)
        rows, deconvolved = rows_of(x, taps, -negative_pivot, position, position < positions, channel, height, width,
                                    stride_n, stride_h, stride_o, C, KERNEL, span, ROWS, CHANNELS_LAST)
        position = origin + tl.arange(0, lanes) // span
        _, row, _ = locate(position, width, height, ROWS)
        inside = tl.where(position < positions, tl.minimum(height - row, ROWS), 0).to(tl.int32)
        inside = tl.expand_dims(inside, 1 - axis)
        positive = ()
        for r in tl.static_range(ROWS):
            positive = positive + (widened(positive_part(rows[r]), accumulator_type) - positive_pivot,)
        positive_sums, positive_squares = add_deviations(positive, inside, positive_sums, positive_squares)
        negative_sums, negative_squares = add_deviations(deconvolved, inside, negative_sums, negative_squares)
        count += inside
    tl.store(counts + part, tl.sum(tl.sum(count, 1), 0))
    feature = index(part, True) * (2 * C) + channel
    mean, deviations = about_means(count, positive_pivot, positive_sums, positive_squares)
    mean, deviations = merge_lanes(count, mean, deviations, axis)
    tl.store(means + feature, mean, channel < C)
    tl.store(squares + feature, deviations, channel < C)
    mean, deviations = about_means(count, negative_pivot, negative_sums, negative_squares)
    mean, deviations = merge_lanes(count, mean, deviations, axis)
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
                            PRECISION: tl.constexpr, BIAS_BY_PRODUCT: tl.constexpr):
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
    vector, strides = units_of_rows(x, channels_last)
    config = for_vectors(triton_configs.statistics(channels, kernel_size, operand, target, channels_last), vector,
                         operand, channels_last)
    constants = _row_constants(channels, kernel_size, vector, operand, config, channels_last) | {"WIDE": wide(x)}
    columns, positions, tiles = _cover(x, constants)
    blocks = ceil_div(channels, config.channels)
    # In channels-last a program's lanes have more channels each to merge in the end, which takes as long as a tile.
    parts, tiles_each = split(x, config.warps, tiles, blocks, 2 if channels_last else ROUNDS)
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
    vector, strides = units_of_rows(x, channels_last)
    config = for_vectors(triton_configs.weight_gradient(channels, kernel_size, operand, target, channels_last), vector,
                         operand, channels_last)
    is_wide = wide(x, grad)
    config = for_offsets(config, is_wide)
    grad_vector, grad_strides = gradient_vectors(grad, channels_last)
    constants = _row_constants(channels, kernel_size, vector, operand, config, channels_last)
    constants |= {"GRAD_VECTOR": grad_vector, "WIDE": is_wide} | _product_constants(operand, config, target)
    columns, positions, tiles = _cover(x, constants)
    output_blocks = ceil_div(channels, config.outputs)
    blocks = ceil_div(channels, config.channels) * output_blocks
    parts, tiles_each = split(x, config.warps, tiles, blocks)
    shares = x.new_empty(2 * channels + 1, parts, channels, dtype=dtype)
    with on_device_of(x):
        launchable(_weight_gradient_kernel)[(parts * blocks,)](
            grad, x, deconv_weight, mean, _taps_of(x, parts * output_blocks, kernel_size), shares, x.shape[2], columns,
            positions, tiles, tiles_each, parts, *strides, *grad_strides, **constants, num_warps=config.warps,
            num_stages=1)
    return shares


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


def _product_constants(operand: str, config: Config, architecture: str) -> dict[str, Any]:
    # One more product of an operand that is there spares adding dy up in registers; it was counted for Hopper alone.
    by_product = itemsize(operand) == 2 and architecture.startswith("sm_9")
    return {"BLOCK_OUTPUTS": config.outputs, "PRECISION": "tf32" if operand == "tf32" else "ieee",
            "BIAS_BY_PRODUCT": by_product}


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
        for operand, size in operands_and_sizes(architecture, sizes):
            yield from _CaseOf(*size, operand, architecture, channels_last).passes()
        yield from _CaseOf(64, 3, "fp16", architecture, channels_last, wide=True).passes()
    for channels in (64, 256):
        for vector in NARROW_VECTORS:
            yield from _CaseOf(channels, 3, "bf16", architecture, False, vector).passes()


class _CaseOf(NamedTuple):
    """The compile cases of one size, dtype and layout."""

    channels: int
    kernel_size: int
    operand: str
    architecture: str
    channels_last: bool
    narrow: int = 0
    """The length of NCHW's vectors, if it is not the full one."""
    wide: bool = False
    """Whether offsets have 64 bits."""

    @property
    def vector(self) -> int:
        vector = self.narrow or full_vector(self.operand)
        while self.channels_last and self.channels % vector:
            vector //= 2
        return vector

    def passes(self) -> tuple[CompileCase, ...]:
        return self.statistics(), self.weight_gradient()

    def statistics(self) -> CompileCase:
        config = self._chosen(triton_configs.statistics)
        constants = self._row_constants(config)
        return self._case("statistics", _statistics_kernel, constants, config.warps, 0, self._loads_of_rows(config))

    def weight_gradient(self) -> CompileCase:
        config = for_offsets(self._chosen(triton_configs.weight_gradient), self.wide)
        constants = self._row_constants(config)
        constants |= _product_constants(self.operand, config, self.architecture)
        return self._case("weight gradient", _weight_gradient_kernel, constants, config.warps, config.outputs,
                          self._loads_of_rows(config))

    def _chosen(self, choose: Any) -> Any:
        return for_vectors(choose(*self[:5]), self.vector, self.operand, self.channels_last)

    def _row_constants(self, config: Any) -> dict[str, Any]:
        constants = _row_constants(self.channels, self.kernel_size, self.vector, self.operand, config,
                                   self.channels_last)
        return constants | ({"VECTOR": self.channels, "stride_o": 1} if self.channels_last else {})

    def _loads_of_rows(self, config: Any) -> tuple[int, int]:
        return loads_of_rows(self.kernel_size, self.operand, config, self.vector, self.channels_last,
                             self.architecture)

    def _case(self, name: str, kernel: Any, constants: dict[str, Any], warps: int, tile_rows: int,
              loads: tuple[int, int]) -> CompileCase:
        if tile_rows:
            constants |= {"GRAD_VECTOR": self.vector, "grad_stride_i": 1}
        constants |= {"WIDE": self.wide}
        element = "fp32" if self.operand == "tf32" else self.operand
        parameter = "fp64" if self.operand == "fp64" else "fp32"
        of_x = dict.fromkeys(("grad", "x"), f"*{element}")
        vectors = ("deconv_weight", "taps", "means", "squares", "shares")
        pointers = of_x | dict.fromkeys(vectors, f"*{parameter}") | {"mean": "*fp64", "counts": "*i64"}
        signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
        layout = "channels-last" if self.channels_last else "NCHW"
        kind = (f" vectors of {self.narrow}" if self.narrow else "") + (" wide" if self.wide else "")
        return CompileCase(f"leni {name} {layout} C={self.channels} k={self.kernel_size}{kind}", kernel, signature,
                           constants, warps, self.operand, tile_rows, *loads)
