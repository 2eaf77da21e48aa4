"""How AdaReLU, FullyParametricReLU and CReLU read tensors in Triton.

A tensor is taken as [rows, columns] in the order of y's memory. A parameter belongs to a row, as in NCHW, or to a
column, as in channels-last; sums run along the other axis. Strided tensors are read in place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...common.gpu.support import jit, power_of_two, tl, vector_length
from ..reference import memory_order

MOST_DIMENSIONS = 5


# ---- kernels -----------------------------------------------------------------------------------------------


@jit
def locate_element(element, DENSE: tl.constexpr, n1, n2, n3, n4, s0, s1, s2, s3, s4):
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
def origin_of(rows, columns, BY_ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
              TILES: tl.constexpr):
    """The first row and column of this program, whose tiles lie along the axis of the sums, and its part of that."""
    ROWS: tl.constexpr = BLOCK_ROWS * (1 if BY_ROWS else TILES)
    COLUMNS: tl.constexpr = BLOCK_COLUMNS * (TILES if BY_ROWS else 1)
    across = tl.cdiv(columns, COLUMNS)
    program = tl.cast(tl.program_id(0), columns.dtype)
    return program // across * ROWS, program % across * COLUMNS


@jit
def load_parameter(pointer, row, column, rows, columns, period, BY_ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """The values for a tile in x's dtype, as they broadcast over it."""
    if BY_ROWS:
        return tl.load(pointer + row % period, row < rows, 0.0)[:, None].to(DTYPE)
    else:
        return tl.load(pointer + column, column < columns, 0.0)[None, :].to(DTYPE)


# ---- layouts -----------------------------------------------------------------------------------------------


class View(NamedTuple):
    """[rows, columns] in y's order; row r, or column c, has parameter r % period, or c."""

    rows: int
    columns: int
    period: int
    by_rows: bool
    order: list[int]
    """The dimensions, outermost in memory first."""


def view_of(x: Tensor, y: Tensor, parameter: Tensor) -> View:
    order = memory_order(y)
    if parameter.numel() == 1:
        return View(1, x.numel(), 1, True, order)
    split = order.index(1 if parameter.dim() == 1 else 0)
    before, after = (math.prod(x.shape[d] for d in part) for part in (order[:split], order[split + 1:]))
    if parameter.dim() > 1:
        return View(x.shape[0], after, after, False, order)
    if after == 1:
        return View(before, x.shape[1], x.shape[1], False, order)
    return View(before * x.shape[1], after, x.shape[1], True, order)


def halves(x: Tensor, order: list[int]) -> View:
    """As CReLU divides its output: the channels and what lies within them make a row."""
    columns = math.prod(x.shape[d] for d in order[order.index(1):])
    return View(x.numel() // columns, columns, 1, True, order)


def is_dense(tensor: Tensor, order: list[int]) -> bool:
    step = 1
    for d in reversed(order):
        if tensor.shape[d] > 1 and tensor.stride(d) != step:
            return False
        step *= tensor.shape[d]
    return True


def sizes_in(tensor: Tensor, order: list[int]) -> list[int]:
    return [1] * (MOST_DIMENSIONS - len(order)) + [tensor.shape[d] for d in order]


def strides_in(tensor: Tensor, order: list[int]) -> list[int]:
    return [0] * (MOST_DIMENSIONS - len(order)) + [tensor.stride(d) for d in order]


def in_order(parameter: Tensor, view: View) -> Tensor:
    """A parameter as the kernels read it; one per element of a sample is brought to the order of y's memory."""
    if parameter.dim() > 1:
        parameter = parameter.permute([d - 1 for d in view.order if d != 0])
    return parameter.contiguous()


def out_of_order(flat: Tensor, parameter: Tensor, view: View) -> Tensor:
    """The inverse of :func:`in_order`, for gradients."""
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
WARPS = 4


def warps_for(dense: bool, wide: bool) -> int:
    """Of a program: twice as many for strides in 64 bits, which take a thread most of its registers."""
    return 2 * WARPS if wide and not dense else WARPS


def blocks_of(view: View) -> dict[str, int]:
    columns = min(power_of_two(view.columns), _BLOCK if view.by_rows else _BLOCK_COLUMNS)
    return {"BLOCK_ROWS": min(power_of_two(view.rows), _BLOCK // columns), "BLOCK_COLUMNS": columns}


def vector_of(x: Tensor, view: View) -> int:
    return vector_length(x.dtype.itemsize, view.columns)
