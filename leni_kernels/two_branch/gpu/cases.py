"""What is compiled ahead of time of the norms' algebra; ``benchmarks/codegen.py`` and tests find ``compile_cases``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ...common.gpu.architectures import operand_types
from ...common.gpu.support import CompileCase
from .algebra import COLUMNS, LANES, ROWS, VECTOR, WIDTH, norms_merge_kernel, norms_sum_weight_kernel, tile_of_columns

MERGE = {"COLUMNS": COLUMNS, "LANES": LANES}
FOLD = {**MERGE, "ROWS": ROWS, "WIDTH": WIDTH}
UPDATE = {"BLOCK": VECTOR}
NO_SHARES = dict.fromkeys(("counts", "means", "squares"))
"""Of a fold of statistics that are given."""
GIVEN = dict.fromkeys(("shares", "grad_negative", "grad_negative_shift", "grad_fusion", "grad_scale", "grad_shift",
                       "grad_compress", "grad_bias"))
"""Of a backward for gradients of the statistics that are given."""


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """The kernels that LENI and Reborn share."""
    for algebra in AlgebraCase.sizes(architecture):
        columns, warps = algebra.columns()
        yield algebra.compile("norms merge", norms_merge_kernel, MERGE)
        yield algebra.compile("norms sum of weight", norms_sum_weight_kernel, columns, warps)


class AlgebraCase(NamedTuple):
    """The compile cases of one width, and of parameters of one dtype, which is x's."""

    channels: int
    operand: str

    @classmethod
    def sizes(cls, architecture: str) -> Iterator[AlgebraCase]:
        """What is compiled for ``architecture``."""
        for operand in operand_types(architecture):
            for channels in (3, 64, 256) if operand in ("bf16", "fp32") else (64,):
                yield cls(channels, operand)

    @property
    def half(self) -> bool:
        return self.operand in ("fp16", "bf16")

    def columns(self) -> tuple[dict[str, int], int]:
        """The tile of a program that has columns of the weight, and its warps."""
        tile = tile_of_columns(self.channels)
        return tile, tile.pop("num_warps")

    def compile(self, name: str, kernel: Any, constants: dict[str, Any], warps: int = 4) -> CompileCase:
        """The case of one kernel; what its operands are called says of which type they are."""
        arguments = kernel.arg_names
        constants = {"C": self.channels, "KERNEL": 3, "FEATURES": 2 * self.channels} | constants
        constants = {name: value for name, value in constants.items() if name in arguments}
        element = "fp32" if self.operand == "tf32" else self.operand
        sums = "fp64" if self.operand == "fp64" else "fp32"
        types = dict.fromkeys(("means", "squares", "shares", "taps", "bias", "mean", "constant", "slope"), f"*{sums}")
        types |= dict.fromkeys(("statistics", "grad_statistics"), "*fp64") | dict.fromkeys(
            ("counts", "batches", "negative_batches", "fusion_batches"), "*i64")
        types |= dict.fromkeys(("parts", "values"), "i32")
        signature = {argument: types.get(argument, f"*{element}") for argument in arguments
                     if argument not in constants}
        return CompileCase(f"{name} C={self.channels}", kernel, signature, constants, warps, self.operand, 0, 32, 0)
