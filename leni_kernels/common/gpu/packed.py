"""Elementwise steps that NVIDIA GPUs do for two half-precision numbers in one instruction, for any kernel.

Triton's compilers do such steps one by one; 3.6 even widens bfloat16 to float32 before a maximum. So these are PTX
on NVIDIA's GPUs (sm_80 or newer, the only ones that kernels run on) where x is of half precision. For other dtypes, on
other vendors' GPUs and in the interpreter they are the same in Triton's own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .support import constexpr_function, interpreting, jit, tl

# A constant of this module, and no question to the compiler: torch.compile copies kernels, and what they call, into
# files of their own, where it knows of jitted functions and constants alone.
_IN_PAIRS = tl and tl.constexpr(torch.version.hip is None and not interpreting)


@contextmanager
def compiled_for(nvidia: bool) -> Iterator[None]:
    """Inside, kernels are compiled ahead of time for NVIDIA's GPUs or for others, whichever PyTorch is built for."""
    global _IN_PAIRS
    before, _IN_PAIRS = _IN_PAIRS, tl.constexpr(nvidia)
    try:
        yield
    finally:
        _IN_PAIRS = before


@constexpr_function
def _is_half(dtype):
    return dtype.primitive_bitwidth == 16


@jit
def maximum(x, y):
    """max(x, y) of two tensors of a dtype, in that dtype; a NaN in either stays a NaN."""
    if _IN_PAIRS and _is_half(x.dtype):
        code: tl.constexpr = f"max.NaN.{'bf16x2' if x.dtype == tl.bfloat16 else 'f16x2'} $0, $1, $2;"
        return tl.inline_asm_elementwise(code, "=r,r,r", [x, y], x.dtype, is_pure=True, pack=2)
    else:
        return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)


@jit
def minimum(x, y):
    """min(x, y), as :func:`maximum`."""
    if _IN_PAIRS and _is_half(x.dtype):
        code: tl.constexpr = f"min.NaN.{'bf16x2' if x.dtype == tl.bfloat16 else 'f16x2'} $0, $1, $2;"
        return tl.inline_asm_elementwise(code, "=r,r,r", [x, y], x.dtype, is_pure=True, pack=2)
    else:
        return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)


@jit
def at_most(x, y, IN_PAIRS: tl.constexpr):
    """1 where x ≤ y, else 0, in their dtype; IN_PAIRS says whether pairs are compared (:mod:`architectures`)."""
    if _IN_PAIRS and IN_PAIRS:
        kind: tl.constexpr = "bf16x2" if x.dtype == tl.bfloat16 else "f16x2"
        code: tl.constexpr = f"set.le.{kind}.{kind} $0, $1, $2;"
        return tl.inline_asm_elementwise(code, "=r,r,r", [x, y], x.dtype, is_pure=True, pack=2)
    else:
        return (x <= y).to(x.dtype)


@jit
def add_where_above(sums, terms, x, y, IN_PAIRS: tl.constexpr):
    """``sums`` plus ``terms`` where x ≤ y does not hold, as of a NaN; one step, for which x keeps the sums' layout."""
    if _IN_PAIRS and IN_PAIRS:
        kind: tl.constexpr = "bf16x2" if x.dtype == tl.bfloat16 else "f16x2"
        code: tl.constexpr = f"""{{
            .reg .pred p, q;
            setp.gtu.{kind} p|q, $6, $7;
            mov.b32 $0, $2;
            mov.b32 $1, $3;
            @p add.f32 $0, $2, $4;
            @q add.f32 $1, $3, $5;
        }}"""
        return tl.inline_asm_elementwise(code, "=&r,=&r,r,r,r,r,r,r", [sums, terms, x, y], tl.float32, is_pure=True,
                                         pack=2)
    else:
        return sums + tl.where(x <= y, 0.0, terms)


@jit
def difference(x, y):
    """x - y of two tensors of a dtype, in that dtype."""
    if _IN_PAIRS and _is_half(x.dtype):
        # y times minus one, which is written twice, plus x: sm_80 has no subtraction of bfloat16.
        kind: tl.constexpr = "bf16x2" if x.dtype == tl.bfloat16 else "f16x2"
        ones: tl.constexpr = "0xbf80bf80" if x.dtype == tl.bfloat16 else "0xbc00bc00"
        code: tl.constexpr = f"{{ .reg .b32 ones; mov.b32 ones, {ones}; fma.rn.{kind} $0, $2, ones, $1; }}"
        return tl.inline_asm_elementwise(code, "=r,r,r", [x, y], x.dtype, is_pure=True, pack=2)
    elif _is_half(x.dtype):
        return (x.to(tl.float32) - y.to(tl.float32)).to(x.dtype)
    else:
        return x - y


@jit
def widened(x, DTYPE: tl.constexpr):
    """x in a dtype at least as wide; bfloat16 is the upper half of a float32."""
    if _IN_PAIRS and x.dtype == tl.bfloat16 and tl.float32 == DTYPE:
        both: tl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
        return tl.inline_asm_elementwise(both, "=&r,=r,r", [x], tl.float32, is_pure=True, pack=2)
    else:
        return x.to(DTYPE)


@jit
def positive_part(x):
    """max(x, 0) in x's dtype; a NaN stays a NaN."""
    return maximum(x, tl.zeros_like(x))


@jit
def negative_part(x, ACCUMULATOR: tl.constexpr):
    """min(x, 0) in the accumulator's dtype, which is no narrower; a NaN stays a NaN."""
    return widened(minimum(x, tl.zeros_like(x)), ACCUMULATOR)
