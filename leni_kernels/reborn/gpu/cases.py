"""What is compiled ahead of time of Reborn's kernels; ``benchmarks/codegen.py`` and tests find ``compile_cases``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ...common.gpu.architectures import warp_size
from ...common.gpu.support import CompileCase, full_vector, itemsize, operands_and_sizes
from ...two_branch.gpu.cases import FOLD, GIVEN, NO_SHARES, UPDATE, AlgebraCase
from ...two_branch.gpu.tiles import loads_of_rows
from . import configs
from .algebra import reborn_fold_backward_kernel, reborn_fold_kernel, reborn_update_kernel
from .configs import TailConfig
from .forward import MOST_TILES, reborn_tail_kernel
from .input_gradient import reborn_branch_gradient_kernel
from .statistics import reborn_statistics_kernel, statistics_constants
from .tiles import tail_constants
from .weight_gradient import reborn_weight_gradient_kernel


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every pass in the configurations that ``architecture`` gets, with the widest vectors C allows."""
    widths = [(channels,) for channels in (3, 16, 32, 64, 128, 256, 512)]
    for channels_last in (True, False):
        for operand, (channels,) in operands_and_sizes(architecture, widths):
            yield from _CaseOf(channels, operand, architecture, channels_last).passes()
        for case in _CaseOf(64, "fp16", architecture, channels_last).passes():
            yield case.with_wide_offsets()
    yield from _algebra_cases(architecture)


class _CaseOf(NamedTuple):
    """The compile cases of one width, dtype and layout."""

    channels: int
    operand: str
    architecture: str
    channels_last: bool

    @property
    def vector(self) -> int:
        vector = full_vector(self.operand)
        while self.channels_last and self.channels % vector:
            vector //= 2
        return vector

    def passes(self) -> tuple[CompileCase, ...]:
        return (self.statistics(), self.tail(), self.weight_gradient(), self.negative_gradient(),
                self.input_gradient())

    def statistics(self) -> CompileCase:
        config = configs.statistics(*self)
        constants = statistics_constants(self.channels, self.vector, self.operand, config, self.channels_last)
        loads = loads_of_rows(1, self.operand, config, self.vector, self.channels_last, self.architecture)
        return self._case("statistics", reborn_statistics_kernel, constants, config.warps, 1, 0, loads)

    def tail(self) -> CompileCase:
        config = configs.tail(*self)
        return self._of_product("tail", reborn_tail_kernel, config, config.pixels, config.channels,
                                {"TILES": MOST_TILES}, 2)

    def weight_gradient(self) -> CompileCase:
        config = configs.weight_gradient(*self)
        constants = {"GRAD_VECTOR": self.vector, "grad_stride_i": 1, "positive_mean": None}
        return self._of_product("weight gradient", reborn_weight_gradient_kernel, config, config.outputs,
                                config.channels, constants, 2)

    def negative_gradient(self) -> CompileCase:
        config = configs.branch_gradient(*self)
        constants = {"GRAD_VECTOR": self.vector, "grad_stride_i": 1, "negative": None}
        return self._of_product("negative gradient", reborn_branch_gradient_kernel, config, config.pixels,
                                config.outputs, constants, 1)

    def input_gradient(self) -> CompileCase:
        config = configs.branch_gradient(*self)
        constants = {"GRAD_VECTOR": self.vector, "grad_stride_i": 1, "constant": None, "slope": None}
        return self._of_product("input gradient", reborn_branch_gradient_kernel, config, config.pixels,
                                config.outputs, constants, 1)

    def _of_product(self, name: str, kernel: Any, config: TailConfig, tile_rows: int, depth: int,
                    constants: dict[str, Any], tiles: int) -> CompileCase:
        """A kernel that in its hot loop reads ``tiles`` tiles of pixels by ``depth`` channels or more."""
        constants |= tail_constants(self.channels, self.vector, self.operand, config, self.channels_last)
        elements = config.pixels * depth // (config.warps * warp_size(self.architecture))
        vector = min(self.vector, max(1, elements))
        loads = vector * itemsize(self.operand) * 8, tiles * max(1, elements // vector)
        return self._case(name, kernel, constants, config.warps, config.stages, tile_rows, loads)

    def _case(self, name: str, kernel: Any, constants: dict[str, Any], warps: int, stages: int, tile_rows: int,
              loads: tuple[int, int]) -> CompileCase:
        constants |= {"WIDE": False}
        element = "fp32" if self.operand == "tf32" else self.operand
        parameter = "fp64" if self.operand == "fp64" else "fp32"
        of_x = dict.fromkeys(("grad", "x", "z", "negative", "weight", "matrix", "y", "out"), f"*{element}")
        of_channels = ("bias", "mean", "constant", "slope", "means", "squares", "shares")
        pointers = of_x | dict.fromkeys(of_channels, f"*{parameter}") | {"negative_mean": "*fp64", "counts": "*i64"}
        signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
        layout = "channels-last" if self.channels_last else "NCHW"
        return CompileCase(f"reborn {name} {layout} C={self.channels}", kernel, signature, constants, warps,
                           self.operand, tile_rows, *loads, stages)


def _algebra_cases(architecture: str) -> Iterator[CompileCase]:
    eps = {"EPS": 1e-5}
    for algebra in AlgebraCase.sizes(architecture):
        columns, warps = algebra.columns()
        backward = eps | columns | {"HALF": algebra.half}
        yield algebra.compile("reborn running", reborn_update_kernel, UPDATE | {"MOMENTUM": 0.1})
        yield algebra.compile("reborn fold", reborn_fold_kernel, eps | FOLD)
        yield algebra.compile("reborn fold of given", reborn_fold_kernel, eps | FOLD | NO_SHARES)
        yield algebra.compile("reborn fold backward", reborn_fold_backward_kernel, backward, warps)
        yield algebra.compile("reborn fold backward of given", reborn_fold_backward_kernel, backward | GIVEN, warps)
