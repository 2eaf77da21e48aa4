"""Elementwise steps that NVIDIA GPUs do for two half-precision numbers in one instruction, for any kernel.

Triton's compilers do such steps one by one; 3.6 even widens bfloat16 to float32 before a maximum. So these are PTX
where the target has it (sm_80 or newer, the only ones that kernels run on) and x is of half precision. For other
dtypes, on other vendors' GPUs and in the interpreter they are the same in Triton's own words.
"""

from __future__ import annotations

from typing import Any

from .triton_support import interpreting, jit, tl

if tl is None or interpreting:

    def _in_pairs(x: Any) -> bool:
        return False
else:

    @tl.core.builtin
    def _in_pairs(x: Any, _semantic: Any = None) -> Any:
        """Whether what is compiled for has instructions on pairs of x's elements; a constant to the kernel."""
        return tl.constexpr(_semantic.builder.options.backend_name == "cuda" and x.dtype in (tl.float16, tl.bfloat16))


@jit
def maximum(x, y):
    """max(x, y) of two tensors of a dtype, in that dtype; a NaN in either stays a NaN."""
    if _in_pairs(x):
        code: tl.constexpr = f"max.NaN.{'bf16x2' if x.dtype == tl.bfloat16 else 'f16x2'} $0, $1, $2;"
        return tl.inline_asm_elementwise(code, "=r,r,r", [x, y], x.dtype, is_pure=True, pack=2)
    else:
        return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)


@jit
def minimum(x, y):
    """min(x, y), as :func:`maximum`."""
    if _in_pairs(x):
        code: tl.constexpr = f"min.NaN.{'bf16x2' if x.dtype == tl.bfloat16 else 'f16x2'} $0, $1, $2;"
        return tl.inline_asm_elementwise(code, "=r,r,r", [x, y], x.dtype, is_pure=True, pack=2)
    else:
        return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)


@jit
def widened(x, DTYPE: tl.constexpr):
    """x in a dtype at least as wide; bfloat16 is the upper half of a float32."""
    if _in_pairs(x) and x.dtype == tl.bfloat16 and tl.float32 == DTYPE:
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
