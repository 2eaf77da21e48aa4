"""AdaReLU, FullyParametricReLU and CReLU forward in Triton, each in one pass and one launch.

T is the bytes of one activation. They read x and write y (2T; CReLU, whose y is 2T, 3T). Saved for backward: x. That is
the least, since each element is new: a ReLU moves as much. Memory bounds them, by the model (``make predict``) three
times over. A threshold per element of a channels-last x is copied into that order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.gpu.support import ceil_div, jit, launchable, on_device_of, tl, wide
from ..reference import empty_crelu, memory_order
from .view import (
    blocks_of,
    halves,
    in_order,
    is_dense,
    load_parameter,
    locate_element,
    origin_of,
    sizes_in,
    strides_in,
    vector_of,
    view_of,
    warps_for,
)


@jit
def pointwise_forward_kernel(x, first, second, y, rows, columns, period, n1, n2, n3, n4, x0, x1, x2, x3, x4,
                             SLOPES: tl.constexpr, BY_ROWS: tl.constexpr, DENSE: tl.constexpr, VECTOR: tl.constexpr,
                             BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """``first`` is the threshold, or the positive slope; ``columns`` counts vectors of VECTOR elements."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    dtype: tl.constexpr = x.dtype.element_ty
    accumulator_type: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = origin_of(rows, columns, BY_ROWS, BLOCK_ROWS, BLOCK_COLUMNS, 1)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    element = row[:, None] * columns + column[None, :]
    values = tl.load(x + locate_element(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
    chosen = load_parameter(first, row, column, rows, columns, period, BY_ROWS, dtype)
    if SLOPES:
        other = load_parameter(second, row, column, rows, columns, period, BY_ROWS, dtype)
        slope = tl.where(values > 0, chosen, other).to(accumulator_type)
        result = (values.to(accumulator_type) * slope).to(dtype)
    else:
        result = tl.where(values <= chosen, chosen, values)
    tl.store(y + element, result, inside)


@jit
def crelu_forward_kernel(x, y, rows, columns, n1, n2, n3, n4, x0, x1, x2, x3, x4, DENSE: tl.constexpr,
                         VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
                         WIDE: tl.constexpr):
    """y is [rows, 2, columns]."""
    index_type: tl.constexpr = tl.int64 if WIDE else tl.int32
    columns = tl.cast(columns, index_type) * VECTOR
    first_row, first_column = origin_of(rows, columns, True, BLOCK_ROWS, BLOCK_COLUMNS, 1)
    row = first_row + tl.arange(0, BLOCK_ROWS)
    column = first_column + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    element = row[:, None] * columns + column[None, :]
    values = tl.load(x + locate_element(element, DENSE, n1, n2, n3, n4, x0, x1, x2, x3, x4), inside, 0.0)
    half = y + (2 * row)[:, None] * columns + column[None, :]
    tl.store(half, tl.where(values <= 0, 0.0, values).to(values.dtype), inside)
    tl.store(half + columns, tl.where(values >= 0, 0.0, -values).to(values.dtype), inside)


def _run_forward(x: Tensor, slopes: bool, *parameters: Tensor) -> Tensor:
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    view = view_of(x, y, parameters[0])
    blocks, vector = blocks_of(view), vector_of(x, view)
    dense, is_wide = is_dense(x, view.order), wide(x, y)
    ordered = [in_order(parameter, view) for parameter in parameters]
    programs = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    with on_device_of(x):
        launchable(pointwise_forward_kernel)[(programs,)](
            x, ordered[0], ordered[-1], y, view.rows, view.columns // vector, view.period,
            *sizes_in(x, view.order)[1:], *strides_in(x, view.order), SLOPES=slopes, BY_ROWS=view.by_rows,
            DENSE=dense, VECTOR=vector, **blocks, WIDE=is_wide, num_warps=warps_for(dense, is_wide))
    return y


def ada_relu(x: Tensor, threshold: Tensor) -> Tensor:
    """y of x ``[N, C, *spatial]`` with any strides, in x's memory format."""
    return _run_forward(x, False, threshold)


def fully_parametric_relu(x: Tensor, positive_slope: Tensor, negative_slope: Tensor) -> Tensor:
    """y of x ``[N, C, *spatial]`` with any strides, in x's memory format."""
    return _run_forward(x, True, positive_slope, negative_slope)


def crelu(x: Tensor) -> Tensor:
    """y ``[N, 2C, *spatial]`` of x ``[N, C, *spatial]`` with any strides, in x's memory format."""
    y = empty_crelu(x)
    if x.numel() == 0:
        return y
    view = halves(x, memory_order(torch.empty_like(x)))
    blocks, vector = blocks_of(view), vector_of(x, view)
    dense, is_wide = is_dense(x, view.order), wide(x, y)
    programs = ceil_div(view.rows, blocks["BLOCK_ROWS"]) * ceil_div(view.columns, blocks["BLOCK_COLUMNS"])
    with on_device_of(x):
        launchable(crelu_forward_kernel)[(programs,)](
            x, y, view.rows, view.columns // vector, *sizes_in(x, view.order)[1:], *strides_in(x, view.order),
            DENSE=dense, VECTOR=vector, **blocks, WIDE=is_wide, num_warps=warps_for(dense, is_wide))
    return y
