"""The gradients of AdaReLU, FullyParametricReLU and CReLU in Triton, each in one pass.

T is the bytes of one activation. They read x and dy and write dx (3T; CReLU 4T), which is the least, and sum the
gradients of the parameters meanwhile: one partial sum per program, which PyTorch adds up in a fixed order. Memory
bounds them, by the model (``make predict``) three times over.

Launches: 1, and for each parameter PyTorch's sum, in half precision also a cast of it. The gradient of a threshold per
element of a channels-last x is copied back from that order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.gpu.support import ceil_div, jit, launchable, on_device_of, tl, wide
from ..reference import memory_order
from .view import (
    View,
    blocks_of,
    halves,
    in_order,
    is_dense,
    load_parameter,
    locate_element,
    origin_of,
    out_of_order,
    sizes_in,
    strides_in,
    vector_of,
    view_of,
    warps_for,
)


@jit
def pointwise_backward_kernel(grad, x, first, second, dx, partial, rows, columns, period, n1, n2, n3, n4, g0, g1, g2,
                              g3, g4, x0, x1, x2, x3, x4, SLOPES: tl.constexpr, BY_ROWS: tl.constexpr,
                              DENSE: tl.constexpr, GRAD_DENSE: tl.constexpr, NEEDS_INPUT: tl.constexpr,
                              NEEDS_PARAMETERS: tl.constexpr, VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr,
                              BLOCK_COLUMNS: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr):
    """``partial`` is [parameters, blocks of columns, rows] by rows, [parameters, blocks of rows, columns] else."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    dtype: tl.constexpr = x.dtype.element_ty
    accumulator_type: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = origin_of(rows, columns, BY_ROWS, BLOCK_ROWS, BLOCK_COLUMNS, TILES)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    chosen = load_parameter(first, row, column, rows, columns, period, BY_ROWS, dtype)
    if SLOPES:
        other = load_parameter(second, row, column, rows, columns, period, BY_ROWS, dtype)
    first_sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), accumulator_type)
    second_sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), accumulator_type)
    for _ in range(TILES):
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        element = row[:, None] * columns + column[None, :]
        values = tl.load(x + locate_element(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
        given = tl.load(grad + locate_element(element, GRAD_DENSE, n1, n2, n3, n4, g0, g1, g2, g3, g4), inside, 0.0)
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
def crelu_backward_kernel(grad, x, dx, rows, columns, n1, n2, n3, n4, x0, x1, x2, x3, x4, m1, m2, m3, m4, g0, g1, g2,
                          g3, g4, DENSE: tl.constexpr, GRAD_DENSE: tl.constexpr, VECTOR: tl.constexpr,
                          BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """grad is [rows, 2, columns], of sizes [., m1, …, m4]."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = origin_of(rows, columns, True, BLOCK_ROWS, BLOCK_COLUMNS, 1)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    element = row[:, None] * columns + column[None, :]
    values = tl.load(x + locate_element(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
    half = (2 * row)[:, None] * columns + column[None, :]
    positive = tl.load(grad + locate_element(half, GRAD_DENSE, m1, m2, m3, m4, g0, g1, g2, g3, g4), inside, 0.0)
    further = locate_element(half + columns, GRAD_DENSE, m1, m2, m3, m4, g0, g1, g2, g3, g4)
    negative = tl.load(grad + further, inside, 0.0)
    # A NaN passes both gradients, as torch.relu's does.
    result = tl.where(values <= 0, 0.0, positive) - tl.where(values >= 0, 0.0, negative)
    tl.store(dx + element, result.to(values.dtype), inside)


_MOST_TILES = 8
_ENOUGH_PROGRAMS = 1024


def tiles_of(view: View, blocks: dict[str, int]) -> int:
    """How many tiles a program adds up: several, where that leaves enough programs to fill a GPU."""
    whole = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    along = (ceil_div(view.columns, blocks["BLOCK_COLUMNS"]) if view.by_rows
             else ceil_div(view.rows, blocks["BLOCK_ROWS"]))
    return _MOST_TILES if along >= _MOST_TILES and whole >= _MOST_TILES * _ENOUGH_PROGRAMS else 1


def _run_backward(grad: Tensor, x: Tensor, slopes: bool, parameters: tuple[Tensor, ...], needs_input: bool,
                  needs_parameters: bool) -> tuple[Tensor, ...]:
    like_x = torch.empty_like(x)
    dx = like_x if needs_input else x.new_empty(0)
    if x.numel() == 0 or not (needs_input or needs_parameters):
        return dx, *(parameter.new_zeros(parameter.shape if needs_parameters else 0) for parameter in parameters)
    view = view_of(x, like_x, parameters[0])
    blocks, vector = blocks_of(view), vector_of(x, view)
    tiles = tiles_of(view, blocks)
    dense, grad_dense, is_wide = is_dense(x, view.order), is_dense(grad, view.order), wide(x, grad, like_x)
    ordered = [in_order(parameter, view) for parameter in parameters]
    rows = ceil_div(view.rows, blocks["BLOCK_ROWS"] * (1 if view.by_rows else tiles))
    columns = ceil_div(view.columns, blocks["BLOCK_COLUMNS"] * (tiles if view.by_rows else 1))
    shape = (len(parameters), columns, view.rows) if view.by_rows else (len(parameters), rows, view.columns)
    partial = x.new_empty(shape if needs_parameters else 0,
                          dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    with on_device_of(x):
        launchable(pointwise_backward_kernel)[(rows * columns,)](
            grad, x, ordered[0], ordered[-1], dx, partial, view.rows, view.columns // vector, view.period,
            *sizes_in(x, view.order)[1:], *strides_in(grad, view.order), *strides_in(x, view.order), SLOPES=slopes,
            BY_ROWS=view.by_rows, DENSE=dense, GRAD_DENSE=grad_dense, NEEDS_INPUT=needs_input,
            NEEDS_PARAMETERS=needs_parameters, VECTOR=vector, **blocks, TILES=tiles, WIDE=is_wide,
            num_warps=warps_for(dense and grad_dense, is_wide))
    if not needs_parameters:
        return dx, *(parameter.new_empty(0) for parameter in parameters)
    sums = (each.view(-1, view.period).sum(0) for each in partial)
    return dx, *(out_of_order(total, parameter, view) for total, parameter in zip(sums, parameters, strict=True))


def ada_relu_backward(grad: Tensor, x: Tensor, threshold: Tensor, needs_input: bool,
                      needs_parameters: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and threshold for that of y, which may have any strides; empty if not asked for."""
    dx, dthreshold = _run_backward(grad, x, False, (threshold,), needs_input, needs_parameters)
    return dx, dthreshold


def fully_parametric_relu_backward(grad: Tensor, x: Tensor, positive_slope: Tensor, negative_slope: Tensor,
                                   needs_input: bool, needs_parameters: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and the slopes for that of y, which may have any strides; empty if not asked for."""
    dx, dpositive, dnegative = _run_backward(grad, x, True, (positive_slope, negative_slope), needs_input,
                                             needs_parameters)
    return dx, dpositive, dnegative


def crelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of x for that of y, which may have any strides."""
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx
    view = halves(x, memory_order(dx))
    blocks, vector = blocks_of(view), vector_of(x, view)
    dense, grad_dense, is_wide = is_dense(x, view.order), is_dense(grad, view.order), wide(grad, x, dx)
    programs = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    with on_device_of(x):
        launchable(crelu_backward_kernel)[(programs,)](
            grad, x, dx, view.rows, view.columns // vector, *sizes_in(x, view.order)[1:], *strides_in(x, view.order),
            *sizes_in(grad, view.order)[1:], *strides_in(grad, view.order), DENSE=dense, GRAD_DENSE=grad_dense,
            VECTOR=vector, **blocks, WIDE=is_wide, num_warps=warps_for(dense and grad_dense, is_wide))
    return dx
