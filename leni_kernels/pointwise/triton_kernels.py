"""AdaReLU, FullyParametricReLU and CReLU in Triton, forward and backward, each in one pass.

T is the bytes of one activation. The forward passes read x and write y (2T; CReLU, whose y is 2T, 3T). The backward
passes read x and dy and write dx (3T; CReLU 4T), and sum the gradients of the parameters meanwhile: one partial sum
per program, which PyTorch adds up in a fixed order. Saved for backward: x. That is the least, since each element is
new: a ReLU moves as much. Memory bounds every pass, by the model (``make predict``) three times over.

Launches: forward 1; backward 1, and for each parameter PyTorch's sum, in half precision also a cast of it. A threshold
per element of a channels-last x is copied into that order, and so is its gradient back.

A tensor is taken as [rows, columns] in the order of y's memory. A parameter belongs to a row, as in NCHW, or to a
column, as in channels-last; sums run along the other axis. Strided tensors are read in place.
"""


from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import operand_types, warp_size
from ..triton_support import (
    CompileCase,
    ceil_div,
    full_vector,
    itemsize,
    jit,
    launchable,
    on_device_of,
    power_of_two,
    tl,
    vector_length,
    wide,
)
from .reference import empty_crelu, memory_order

MOST_DIMENSIONS = 5

# ---- kernels -----------------------------------------------------------------------------------------------


@jit
def _place(element, DENSE: tl.constexpr, n1, n2, n3, n4, s0, s1, s2, s3, s4):
    """The offset of an element, counted in y's order, in a tensor of sizes [., n1, …, n4] and strides s0, …, s4."""
    if DENSE:
        return element
    else:
        place = element % n4 * s4
        element = element // n4
        place += element % n3 * s3
        element = element // n3
        place += element % n2 * s2
        element = element // n2
        return place + element % n1 * s1 + element // n1 * s0


@jit
def _origin(rows, columns, BY_ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
            TILES: tl.constexpr):
    """The first row and column of this program, whose tiles lie along the axis of the sums, and its part of that."""
    ROWS: tl.constexpr = BLOCK_ROWS * (1 if BY_ROWS else TILES)
    COLUMNS: tl.constexpr = BLOCK_COLUMNS * (TILES if BY_ROWS else 1)
    across = tl.cdiv(columns, COLUMNS)
    program = tl.cast(tl.program_id(0), columns.dtype)
    return program // across * ROWS, program % across * COLUMNS


@jit
def _parameter(pointer, row, column, rows, columns, period, BY_ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """The values for a tile in x's dtype, as they broadcast over it."""
    if BY_ROWS:
        return tl.load(pointer + row % period, row < rows, 0.0)[:, None].to(DTYPE)
    else:
        return tl.load(pointer + column, column < columns, 0.0)[None, :].to(DTYPE)


@jit
def _forward_kernel(x, first, second, y, rows, columns, period, n1, n2, n3, n4, x0, x1, x2, x3, x4,
                    SLOPES: tl.constexpr, BY_ROWS: tl.constexpr, DENSE: tl.constexpr, VECTOR: tl.constexpr,
                    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """``first`` is the threshold, or the positive slope; ``columns`` counts vectors of VECTOR elements."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    dtype: tl.constexpr = x.dtype.element_ty
    accumulator_type: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = _origin(rows, columns, BY_ROWS, BLOCK_ROWS, BLOCK_COLUMNS, 1)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    element = row[:, None] * columns + column[None, :]
    values = tl.load(x + _place(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
    chosen = _parameter(first, row, column, rows, columns, period, BY_ROWS, dtype)
    if SLOPES:
        other = _parameter(second, row, column, rows, columns, period, BY_ROWS, dtype)
        slope = tl.where(values > 0, chosen, other).to(accumulator_type)
        result = (values.to(accumulator_type) * slope).to(dtype)
    else:
        result = tl.where(values <= chosen, chosen, values)
    tl.store(y + element, result, inside)


@jit
def _backward_kernel(grad, x, first, second, dx, partial, rows, columns, period, n1, n2, n3, n4,
                     g0, g1, g2, g3, g4, x0, x1, x2, x3, x4,
                     SLOPES: tl.constexpr, BY_ROWS: tl.constexpr, DENSE: tl.constexpr, GRAD_DENSE: tl.constexpr,
                     NEEDS_INPUT: tl.constexpr, NEEDS_PARAMETERS: tl.constexpr, VECTOR: tl.constexpr,
                     BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, TILES: tl.constexpr,
                     WIDE: tl.constexpr):
    """``partial`` is [parameters, blocks of columns, rows] by rows, [parameters, blocks of rows, columns] else."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    dtype: tl.constexpr = x.dtype.element_ty
    accumulator_type: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = _origin(rows, columns, BY_ROWS, BLOCK_ROWS, BLOCK_COLUMNS, TILES)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    chosen = _parameter(first, row, column, rows, columns, period, BY_ROWS, dtype)
    if SLOPES:
        other = _parameter(second, row, column, rows, columns, period, BY_ROWS, dtype)
    first_sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), accumulator_type)
    second_sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), accumulator_type)
    for _ in range(TILES):
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        element = row[:, None] * columns + column[None, :]
        values = tl.load(x + _place(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
        given = tl.load(grad + _place(element, GRAD_DENSE, n1, n2, n3, n4, g0, g1, g2, g3, g4), inside, 0.0)
        wide = given.to(accumulator_type)
        if SLOPES:
            above = values > 0
            product = wide * values.to(accumulator_type)
            first_sums += tl.where(above, product, 0.0)
            second_sums += tl.where(above, 0.0, product)
            result = (wide * tl.where(above, chosen, other).to(accumulator_type)).to(dtype)
        else:
            below = values <= chosen
            first_sums += tl.where(below, wide, 0.0)
            result = tl.where(below, 0.0, given).to(dtype)
        if NEEDS_INPUT:
            tl.store(dx + element, result, inside)
        if BY_ROWS:
            column += BLOCK_COLUMNS
        else:
            row += BLOCK_ROWS
    if NEEDS_PARAMETERS:
        if BY_ROWS:
            blocks = tl.cdiv(columns, BLOCK_COLUMNS * TILES)
            sums = partial + first_column // (BLOCK_COLUMNS * TILES) * rows + row
            tl.store(sums, tl.sum(first_sums, 1), row < rows)
            if SLOPES:
                tl.store(sums + blocks * rows, tl.sum(second_sums, 1), row < rows)
        else:
            blocks = tl.cdiv(rows, BLOCK_ROWS * TILES)
            sums = partial + first_row // (BLOCK_ROWS * TILES) * columns + column
            tl.store(sums, tl.sum(first_sums, 0), column < columns)
            if SLOPES:
                tl.store(sums + blocks * columns, tl.sum(second_sums, 0), column < columns)


@jit
def _crelu_kernel(x, y, rows, columns, n1, n2, n3, n4, x0, x1, x2, x3, x4, DENSE: tl.constexpr,
                  VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """y is [rows, 2, columns]."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = _origin(rows, columns, True, BLOCK_ROWS, BLOCK_COLUMNS, 1)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    element = row[:, None] * columns + column[None, :]
    values = tl.load(x + _place(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
    half = y + (2 * row)[:, None] * columns + column[None, :]
    tl.store(half, tl.where(values <= 0, 0.0, values).to(values.dtype), inside)
    tl.store(half + columns, tl.where(values >= 0, 0.0, -values).to(values.dtype), inside)


@jit
def _crelu_backward_kernel(grad, x, dx, rows, columns, n1, n2, n3, n4, x0, x1, x2, x3, x4,
                           m1, m2, m3, m4, g0, g1, g2, g3, g4, DENSE: tl.constexpr, GRAD_DENSE: tl.constexpr,
                           VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
                           WIDE: tl.constexpr):
    """grad is [rows, 2, columns], of sizes [., m1, …, m4]."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = _origin(rows, columns, True, BLOCK_ROWS, BLOCK_COLUMNS, 1)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    element = row[:, None] * columns + column[None, :]
    values = tl.load(x + _place(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
    half = (2 * row)[:, None] * columns + column[None, :]
    positive = tl.load(grad + _place(half, GRAD_DENSE, m1, m2, m3, m4, g0, g1, g2, g3, g4), inside, 0.0)
    negative = tl.load(grad + _place(half + columns, GRAD_DENSE, m1, m2, m3, m4, g0, g1, g2, g3, g4), inside, 0.0)
    # A NaN passes both gradients, as torch.relu's does.
    result = tl.where(values <= 0, 0.0, positive) - tl.where(values >= 0, 0.0, negative)
    tl.store(dx + element, result.to(values.dtype), inside)


# ---- layouts -----------------------------------------------------------------------------------------------


class _View(NamedTuple):
    """[rows, columns] in y's order; row r, or column c, has parameter r % period, or c."""

    rows: int
    columns: int
    period: int
    by_rows: bool
    order: list[int]
    """The dimensions, outermost in memory first."""


def _view(x: Tensor, y: Tensor, parameter: Tensor) -> _View:
    order = memory_order(y)
    if parameter.numel() == 1:
        return _View(1, x.numel(), 1, True, order)
    split = order.index(1 if parameter.dim() == 1 else 0)
    before, after = (math.prod(x.shape[d] for d in part) for part in (order[:split], order[split + 1:]))
    if parameter.dim() > 1:
        return _View(x.shape[0], after, after, False, order)
    if after == 1:
        return _View(before, x.shape[1], x.shape[1], False, order)
    return _View(before * x.shape[1], after, x.shape[1], True, order)


def _halves(x: Tensor, order: list[int]) -> _View:
    """As CReLU divides its output: the channels and what lies within them make a row."""
    columns = math.prod(x.shape[d] for d in order[order.index(1):])
    return _View(x.numel() // columns, columns, 1, True, order)


def _is_dense(tensor: Tensor, order: list[int]) -> bool:
    step = 1
    for d in reversed(order):
        if tensor.shape[d] > 1 and tensor.stride(d) != step:
            return False
        step *= tensor.shape[d]
    return True


def _sizes(tensor: Tensor, order: list[int]) -> list[int]:
    return [1] * (MOST_DIMENSIONS - len(order)) + [tensor.shape[d] for d in order]


def _strides(tensor: Tensor, order: list[int]) -> list[int]:
    return [0] * (MOST_DIMENSIONS - len(order)) + [tensor.stride(d) for d in order]


def _in_order(parameter: Tensor, view: _View) -> Tensor:
    """A parameter as the kernels read it; one per element of a sample is brought to the order of y's memory."""
    if parameter.dim() > 1:
        parameter = parameter.permute([d - 1 for d in view.order if d != 0])
    return parameter.contiguous()


def _out_of_order(flat: Tensor, parameter: Tensor, view: _View) -> Tensor:
    """The inverse of :func:`_in_order`, for gradients."""
    if parameter.dim() > 1:
        order = [d - 1 for d in view.order if d != 0]
        flat = flat.view([parameter.shape[d] for d in order]).permute([order.index(d) for d in range(len(order))])
    return flat.reshape(parameter.shape).to(parameter.dtype).contiguous()


def why_not(x: Tensor, parameter: Tensor | None = None, *_: Tensor) -> str | None:
    """The reason the kernels cannot serve a call, or None."""
    if x.dim() > MOST_DIMENSIONS:
        return f"x has {x.dim()} dimensions; the Triton kernels take up to {MOST_DIMENSIONS}"
    per_element = parameter is not None and parameter.dim() > 1 and parameter.numel() > 1
    if per_element and x.dim() > 1 and x.numel() > 0 and not _samples_are_outermost(x):
        return "there is a threshold per element, and samples are not outermost in x's memory"
    return None


def _samples_are_outermost(x: Tensor) -> bool:
    order = memory_order(torch.empty_like(x, device="meta"))
    return all(x.shape[d] == 1 for d in order[:order.index(0)])


# ---- launches ----------------------------------------------------------------------------------------------

_BLOCK, _BLOCK_COLUMNS = 2048, 256
"""Elements of a tile, and its columns where sums run along rows."""
_WARPS = 4
_MOST_TILES = 8
_ENOUGH_PROGRAMS = 1024


def _warps(dense: bool, wide: bool) -> int:
    """Of a program: twice as many for strides in 64 bits, which take a thread most of its registers."""
    return 2 * _WARPS if wide and not dense else _WARPS


def _blocks(view: _View) -> dict[str, int]:
    columns = min(power_of_two(view.columns), _BLOCK if view.by_rows else _BLOCK_COLUMNS)
    return {"BLOCK_ROWS": min(power_of_two(view.rows), _BLOCK // columns), "BLOCK_COLUMNS": columns}


def _tiles(view: _View, blocks: dict[str, int]) -> int:
    """How many tiles a program adds up: several, where that leaves enough programs to fill a GPU."""
    whole = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    along = (ceil_div(view.columns, blocks["BLOCK_COLUMNS"]) if view.by_rows
             else ceil_div(view.rows, blocks["BLOCK_ROWS"]))
    return _MOST_TILES if along >= _MOST_TILES and whole >= _MOST_TILES * _ENOUGH_PROGRAMS else 1


def _vector(x: Tensor, view: _View) -> int:
    return vector_length(x.dtype.itemsize, view.columns)


def _run_forward(x: Tensor, slopes: bool, *parameters: Tensor) -> Tensor:
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    view = _view(x, y, parameters[0])
    blocks, vector = _blocks(view), _vector(x, view)
    dense, is_wide = _is_dense(x, view.order), wide(x, y)
    ordered = [_in_order(parameter, view) for parameter in parameters]
    programs = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    with on_device_of(x):
        launchable(_forward_kernel)[(programs,)](
            x, ordered[0], ordered[-1], y, view.rows, view.columns // vector, view.period,
            *_sizes(x, view.order)[1:], *_strides(x, view.order), SLOPES=slopes, BY_ROWS=view.by_rows,
            DENSE=dense, VECTOR=vector, **blocks, WIDE=is_wide, num_warps=_warps(dense, is_wide))
    return y


def _run_backward(grad: Tensor, x: Tensor, slopes: bool, parameters: tuple[Tensor, ...], needs_input: bool,
                  needs_parameters: bool) -> tuple[Tensor, ...]:
    like_x = torch.empty_like(x)
    dx = like_x if needs_input else x.new_empty(0)
    if x.numel() == 0 or not (needs_input or needs_parameters):
        return dx, *(parameter.new_zeros(parameter.shape if needs_parameters else 0) for parameter in parameters)
    view = _view(x, like_x, parameters[0])
    blocks, vector = _blocks(view), _vector(x, view)
    tiles = _tiles(view, blocks)
    dense, grad_dense, is_wide = _is_dense(x, view.order), _is_dense(grad, view.order), wide(x, grad, like_x)
    ordered = [_in_order(parameter, view) for parameter in parameters]
    rows = ceil_div(view.rows, blocks["BLOCK_ROWS"] * (1 if view.by_rows else tiles))
    columns = ceil_div(view.columns, blocks["BLOCK_COLUMNS"] * (tiles if view.by_rows else 1))
    shape = (len(parameters), columns, view.rows) if view.by_rows else (len(parameters), rows, view.columns)
    partial = x.new_empty(shape if needs_parameters else 0,
                          dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    with on_device_of(x):
        launchable(_backward_kernel)[(rows * columns,)](
            grad, x, ordered[0], ordered[-1], dx, partial, view.rows, view.columns // vector, view.period,
            *_sizes(x, view.order)[1:], *_strides(grad, view.order), *_strides(x, view.order), SLOPES=slopes,
            BY_ROWS=view.by_rows, DENSE=dense, GRAD_DENSE=grad_dense, NEEDS_INPUT=needs_input,
            NEEDS_PARAMETERS=needs_parameters, VECTOR=vector, **blocks, TILES=tiles, WIDE=is_wide,
            num_warps=_warps(dense and grad_dense, is_wide))
    if not needs_parameters:
        return dx, *(parameter.new_empty(0) for parameter in parameters)
    sums = (each.view(-1, view.period).sum(0) for each in partial)
    return dx, *(_out_of_order(total, parameter, view) for total, parameter in zip(sums, parameters, strict=True))


def ada_relu(x: Tensor, threshold: Tensor) -> Tensor:
    """y of x ``[N, C, *spatial]`` with any strides, in x's memory format."""
    return _run_forward(x, False, threshold)


def ada_relu_backward(grad: Tensor, x: Tensor, threshold: Tensor, needs_input: bool,
                      needs_parameters: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and threshold for that of y, which may have any strides; empty if not asked for."""
    dx, dthreshold = _run_backward(grad, x, False, (threshold,), needs_input, needs_parameters)
    return dx, dthreshold


def fully_parametric_relu(x: Tensor, positive_slope: Tensor, negative_slope: Tensor) -> Tensor:
    """y of x ``[N, C, *spatial]`` with any strides, in x's memory format."""
    return _run_forward(x, True, positive_slope, negative_slope)


def fully_parametric_relu_backward(grad: Tensor, x: Tensor, positive_slope: Tensor, negative_slope: Tensor,
                                   needs_input: bool, needs_parameters: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and the slopes for that of y, which may have any strides; empty if not asked for."""
    dx, dpositive, dnegative = _run_backward(grad, x, True, (positive_slope, negative_slope), needs_input,
                                             needs_parameters)
    return dx, dpositive, dnegative


def crelu(x: Tensor) -> Tensor:
    """y ``[N, 2C, *spatial]`` of x ``[N, C, *spatial]`` with any strides, in x's memory format."""
    y = empty_crelu(x)
    if x.numel() == 0:
        return y
    view = _halves(x, memory_order(torch.empty_like(x)))
    blocks, vector = _blocks(view), _vector(x, view)
    dense, is_wide = _is_dense(x, view.order), wide(x, y)
    programs = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    with on_device_of(x):
        launchable(_crelu_kernel)[(programs,)](
            x, y, view.rows, view.columns // vector, *_sizes(x, view.order)[1:], *_strides(x, view.order),
            DENSE=dense, VECTOR=vector, **blocks, WIDE=is_wide, num_warps=_warps(dense, is_wide))
    return y


def crelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of x for that of y, which may have any strides."""
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx
    view = _halves(x, memory_order(dx))
    blocks, vector = _blocks(view), _vector(x, view)
    dense, grad_dense, is_wide = _is_dense(x, view.order), _is_dense(grad, view.order), wide(grad, x, dx)
    programs = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    with on_device_of(x):
        launchable(_crelu_backward_kernel)[(programs,)](
            grad, x, dx, view.rows, view.columns // vector, *_sizes(x, view.order)[1:], *_strides(x, view.order),
            *_sizes(grad, view.order)[1:], *_strides(grad, view.order), DENSE=dense, GRAD_DENSE=grad_dense,
            VECTOR=vector, **blocks, WIDE=is_wide, num_warps=_warps(dense and grad_dense, is_wide))
    return dx


LAUNCHES = (ada_relu, ada_relu_backward, fully_parametric_relu, fully_parametric_relu_backward, crelu, crelu_backward)
"""The launches that are operators, by the names of those."""


# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every kernel for dense tensors of a 64-channel network in both layouts, and one that is read by strides."""
    for operand in operand_types(architecture):
        if operand != "tf32":
            yield from _cases_of(operand, warp_size(architecture) * _WARPS)
    for case in _cases_of("fp16", warp_size(architecture) * _WARPS):
        yield case.with_wide_offsets()._replace(warps=_warps(case.constants["DENSE"], True))


def _cases_of(operand: str, threads: int) -> Iterator[CompileCase]:
    pixels, channels = 4096, 64
    by_rows = _View(pixels, pixels, channels, True, [])
    by_columns = _View(pixels * pixels, channels, channels, False, [])
    for layout, view in (("NCHW", by_rows), ("channels-last", by_columns)):
        for slopes, name in ((False, "ada_relu"), (True, "fully_parametric_relu")):
            common = {"SLOPES": slopes, "BY_ROWS": view.by_rows}
            backward = {"TILES": _tiles(view, _blocks(view)), "NEEDS_INPUT": True, "NEEDS_PARAMETERS": True}
            yield _compile_case(f"{name} {layout}", _forward_kernel, view, operand, threads, 1, common)
            yield _compile_case(f"{name} backward {layout}", _backward_kernel, view, operand, threads, 2,
                                {**common, **backward, "GRAD_DENSE": True})
        halves = view._replace(by_rows=True)
        yield _compile_case(f"crelu {layout}", _crelu_kernel, halves, operand, threads, 1, {})
        yield _compile_case(f"crelu backward {layout}", _crelu_backward_kernel, halves, operand, threads, 3,
                            {"GRAD_DENSE": True})
    yield _compile_case("ada_relu backward of strided", _backward_kernel, by_rows, operand, threads, 0,
                        {"SLOPES": False, "BY_ROWS": True, "TILES": 1, "NEEDS_INPUT": True,
                         "NEEDS_PARAMETERS": True, "DENSE": False, "GRAD_DENSE": False})


def _compile_case(name: str, kernel: Any, view: _View, operand: str, threads: int, tensors_read: int,
                  constants: dict[str, Any]) -> CompileCase:
    vector = full_vector(operand)
    constants = {"DENSE": True, "VECTOR": vector, **_blocks(view), "WIDE": False} | constants
    parameter = "fp64" if operand == "fp64" else "fp32"
    pointers = {"x": operand, "y": operand, "grad": operand, "dx": operand, "first": operand, "second": operand,
                "partial": parameter}
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32"
                 for name in kernel.arg_names if name not in constants}
    loads = tensors_read * constants["BLOCK_ROWS"] * constants["BLOCK_COLUMNS"] // (threads * vector)
    return CompileCase(name, kernel, signature, constants, _WARPS, operand, 0, vector * itemsize(operand) * 8, loads)
