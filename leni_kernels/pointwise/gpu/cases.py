"""What is compiled ahead of time of the pointwise kernels; ``benchmarks/codegen.py`` and tests find it here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...common.gpu.architectures import operand_types, warp_size
from ...common.gpu.support import CompileCase, full_vector, itemsize
from .backward import crelu_backward_kernel, pointwise_backward_kernel, tiles_of
from .forward import crelu_forward_kernel, pointwise_forward_kernel
from .view import WARPS, View, blocks_of, warps_for


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every kernel for dense tensors of a 64-channel network in both layouts, and one that is read by strides."""
    for operand in operand_types(architecture):
        if operand != "tf32":
            yield from _cases_of(operand, warp_size(architecture) * WARPS)
    for case in _cases_of("fp16", warp_size(architecture) * WARPS):
        yield case.with_wide_offsets()._replace(warps=warps_for(case.constants["DENSE"], True))


def _cases_of(operand: str, threads: int) -> Iterator[CompileCase]:
    pixels, channels = 4096, 64
    by_rows = View(pixels, pixels, channels, True, [])
    by_columns = View(pixels * pixels, channels, channels, False, [])
    for layout, view in (("NCHW", by_rows), ("channels-last", by_columns)):
        for slopes, name in ((False, "ada_relu"), (True, "fully_parametric_relu")):
            common = {"SLOPES": slopes, "BY_ROWS": view.by_rows}
            backward = {"TILES": tiles_of(view, blocks_of(view)), "NEEDS_INPUT": True, "NEEDS_PARAMETERS": True}
            yield _compile_case(f"{name} {layout}", pointwise_forward_kernel, view, operand, threads, 1, common)
            yield _compile_case(f"{name} backward {layout}", pointwise_backward_kernel, view, operand, threads, 2,
                                {**common, **backward, "GRAD_DENSE": True})
        halves = view._replace(by_rows=True)
        yield _compile_case(f"crelu {layout}", crelu_forward_kernel, halves, operand, threads, 1, {})
        yield _compile_case(f"crelu backward {layout}", crelu_backward_kernel, halves, operand, threads, 3,
                            {"GRAD_DENSE": True})
    yield _compile_case("ada_relu backward of strided", pointwise_backward_kernel, by_rows, operand, threads, 0,
                        {"SLOPES": False, "BY_ROWS": True, "TILES": 1, "NEEDS_INPUT": True,
                         "NEEDS_PARAMETERS": True, "DENSE": False, "GRAD_DENSE": False})


def _compile_case(name: str, kernel: Any, view: View, operand: str, threads: int, tensors_read: int,
                  constants: dict[str, Any]) -> CompileCase:
    vector = full_vector(operand)
    constants = {"DENSE": True, "VECTOR": vector, **blocks_of(view), "WIDE": False} | constants
    parameter = "fp64" if operand == "fp64" else "fp32"
    pointers = {"x": operand, "y": operand, "grad": operand, "dx": operand, "first": operand, "second": operand,
                "partial": parameter}
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32"
                 for name in kernel.arg_names if name not in constants}
    loads = tensors_read * constants["BLOCK_ROWS"] * constants["BLOCK_COLUMNS"] // (threads * vector)
    return CompileCase(name, kernel, signature, constants, WARPS, operand, 0, vector * itemsize(operand) * 8, loads)
