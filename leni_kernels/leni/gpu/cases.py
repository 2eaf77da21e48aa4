"""What is compiled ahead of time of LENI's kernels; ``benchmarks/codegen.py`` and tests find ``compile_cases``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ...common.gpu.support import (
    CompileCase,
    full_vector,
    itemsize,
    operands_and_sizes,
    power_of_two,
)
from ...two_branch.gpu.algebra import COLUMNS, LANES
from ...two_branch.gpu.cases import FOLD, GIVEN, NO_SHARES, UPDATE, AlgebraCase
from ...two_branch.gpu.tiles import loads_of_rows
from . import configs
from .algebra import (
    bias_shares,
    leni_fold_backward_kernel,
    leni_fold_kernel,
    leni_fold_running_kernel,
    leni_sum_taps_kernel,
    leni_update_kernel,
)
from .configs import for_height, for_offsets, for_vectors
from .features import NARROW_VECTORS, row_constants
from .forward import MOST_TILES, even_rows, folded_constants, kernel_for
from .input_gradient import input_gradient_constants, leni_input_gradient_kernel, leni_negative_gradient_kernel
from .statistics import leni_statistics_kernel
from .weight_gradient import leni_weight_gradient_kernel, product_constants


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """Every kernel in the configurations that ``architecture`` gets, with the widest vectors C allows."""
    yield from _folded_cases(architecture)
    yield from _training_cases(architecture)
    yield from _input_gradient_cases(architecture)
    yield from _algebra_cases(architecture)


# ---- forward -----------------------------------------------------------------------------------------------


def _folded_cases(architecture: str) -> Iterator[CompileCase]:
    sizes = [(channels, 3) for channels in (3, 16, 32, 64, 128, 256, 512)]
    sizes += [(64, 5), (256, 5), (16, 7), (64, 7), (128, 7), (256, 7)]
    for channels_last in (True, False):
        for operand, size in operands_and_sizes(architecture, sizes):
            yield _folded_case(*size, operand, architecture, channels_last)
        yield _folded_case(64, 3, "fp16", architecture, channels_last).with_wide_offsets()
    for operand, size in operands_and_sizes(architecture, sizes):
        if itemsize(operand) == 2:
            yield _folded_case(*size, operand, architecture, True, height=56)
    if architecture.startswith("sm_90"):
        yield _folded_case(256, 3, "bf16", architecture, True, height=7)
    for channels in (64, 256):
        yield _with_gaps(_folded_case(channels, 3, "fp16", architecture, True))
        for vector in NARROW_VECTORS:
            yield _folded_case(channels, 3, "bf16", architecture, False, vector)


def _with_gaps(case: CompileCase) -> CompileCase:
    """A case as an x has it whose pixels in a row have gaps between them, and of features that have no mean."""
    constants = case.constants | {"VECTOR": full_vector(case.operand), "mean": None, "SHARES": 1}
    signature = case.signature | {"stride_w": "i32"}
    del constants["stride_w"], signature["mean"]
    return case._replace(name=f"{case.name} with gaps", constants=constants, signature=signature)


def _folded_case(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool,
                 vector: int | None = None, height: int | None = None) -> CompileCase:
    narrow = "" if vector is None else f" vectors of {vector}"
    low = "" if height is None else f" height {height}"
    vector = vector or full_vector(operand)
    while channels_last and channels % vector:
        vector //= 2
    config = for_vectors(configs.folded(channels, kernel_size, operand, architecture, channels_last), vector, operand,
                         channels_last, least_rows=1)
    if height is not None:
        config = for_height(config, height, channels_last)
    constants = folded_constants(channels, kernel_size, vector, operand, config, channels_last)
    shares = bias_shares(channels, operand == "bf16")  # as in training; float16's cases are of inference
    constants |= {"TILES": MOST_TILES if config.channels >= channels else 1, "SHARES": shares, "WIDE": False}
    if channels_last:
        even = height is not None and even_rows(height, operand, config)
        constants |= {"VECTOR": channels, "stride_w": 1, "EVEN_ROWS": even}
    element = "fp32" if operand == "tf32" else operand
    parameter = "fp64" if operand == "fp64" else "fp32"
    pointers = {"x": element, "taps": parameter, "weight": element, "bias": parameter, "mean": parameter,
                "y": element}
    kernel = kernel_for(channels_last)
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32"
                 for name in kernel.arg_names if name not in constants}
    vector_bits, vector_loads = loads_of_rows(kernel_size, operand, config, vector, channels_last, architecture)
    pixels = power_of_two(config.rows) * constants["BLOCK_POSITIONS"]
    layout = "channels-last" if channels_last else "NCHW"
    return CompileCase(f"leni {layout} C={channels} k={kernel_size}{narrow}{low}", kernel, signature, constants,
                       config.warps, operand, pixels if channels_last else config.outputs, vector_bits,
                       vector_loads)


# ---- statistics, and the gradient of weight and bias ---------------------------------------------------------


def _training_cases(architecture: str) -> Iterator[CompileCase]:
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
        config = self._chosen(configs.statistics)
        constants = self._row_constants(config)
        return self._case("statistics", leni_statistics_kernel, constants, config.warps, 0, self._loads_of_rows(config))

    def weight_gradient(self) -> CompileCase:
        config = for_offsets(self._chosen(configs.weight_gradient), self.wide)
        constants = self._row_constants(config)
        constants |= product_constants(self.operand, config, self.architecture)
        return self._case("weight gradient", leni_weight_gradient_kernel, constants, config.warps, config.outputs,
                          self._loads_of_rows(config))

    def _chosen(self, choose: Any) -> Any:
        return for_vectors(choose(*self[:5]), self.vector, self.operand, self.channels_last)

    def _row_constants(self, config: Any) -> dict[str, Any]:
        constants = row_constants(self.channels, self.kernel_size, self.vector, self.operand, config,
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


# ---- the gradients of z and x ------------------------------------------------------------------------------


def _input_gradient_cases(architecture: str) -> Iterator[CompileCase]:
    sizes = [(channels, 3) for channels in (3, 16, 32, 64, 128, 256)] + [(64, 5), (64, 7)]
    for channels_last in (True, False):
        for operand, size in operands_and_sizes(architecture, sizes):
            yield from _passes(*size, operand, architecture, channels_last)
        for case in _passes(64, 3, "fp16", architecture, channels_last):
            yield case.with_wide_offsets()
        for operand, size in operands_and_sizes(architecture, [(64, 3), (256, 3)]):
            if size == (64, 3) or itemsize(operand) == 2:
                case = next(_passes(*size, operand, architecture, channels_last, given=True))
                yield case._replace(name=f"{case.name} of given")
    for vector in NARROW_VECTORS:
        for case in _passes(64, 3, "bf16", architecture, False, vector):
            yield case._replace(name=f"{case.name} vectors of {vector}")


def _passes(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool,
            vector: int | None = None, given: bool = False) -> Iterator[CompileCase]:
    """Both; ``given``: to the gradient of z, in place of z, what a matrix makes of it."""
    if vector is None:
        vector = full_vector(operand)
        while channels_last and channels % vector:
            vector //= 2
    where = channels, kernel_size, operand, architecture, channels_last
    element = "fp32" if operand == "tf32" else operand
    parameter = "fp64" if operand == "fp64" else "fp32"
    pointers = dict.fromkeys(("grad", "x", "weight", "grad_z", "dx"), f"*{element}")
    pointers |= dict.fromkeys(("deconv_weight", "taps", "constant", "slope", "taps_parts"), f"*{parameter}")
    for name, kernel, choose in (
            ("negative gradient", leni_negative_gradient_kernel, configs.negative_gradient),
            ("input gradient", leni_input_gradient_kernel, configs.input_gradient)):
        config = for_vectors(choose(*where), vector, operand, channels_last)
        constants = input_gradient_constants(channels, kernel_size, vector, operand, config, channels_last)
        constants |= {"GRAD_VECTOR": vector, "grad_stride_i": 1, "WIDE": False}
        if kernel is leni_negative_gradient_kernel:
            constants["GIVEN"] = given
        signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
        accumulator_rows = config.rows * config.positions if channels_last else config.channels
        loads = loads_of_rows(1 if given else kernel_size, operand, config, vector, channels_last, architecture)
        layout = "channels-last" if channels_last else "NCHW"
        yield CompileCase(f"leni {name} {layout} C={channels} k={kernel_size}", kernel, signature, constants,
                          config.warps, operand, accumulator_rows, *loads)


# ---- the norms' algebra ------------------------------------------------------------------------------------


def _algebra_cases(architecture: str) -> Iterator[CompileCase]:
    eps = {"NEGATIVE_EPS": 1e-5, "FUSION_EPS": 1e-3}
    for algebra in AlgebraCase.sizes(architecture):
        columns, warps = algebra.columns()
        fold = eps | FOLD | {"SHARES": bias_shares(algebra.channels, algebra.half)}
        backward = eps | columns | {"HALF": algebra.half}
        yield algebra.compile("leni fold", leni_fold_kernel, fold)
        yield algebra.compile("leni fold of given", leni_fold_kernel, fold | NO_SHARES)
        yield algebra.compile("leni fold of running", leni_fold_running_kernel, eps | FOLD)
        yield algebra.compile("leni fold backward", leni_fold_backward_kernel, backward, warps)
        yield algebra.compile("leni fold backward of given", leni_fold_backward_kernel, backward | GIVEN, warps)
        yield algebra.compile("leni running", leni_update_kernel,
                              eps | UPDATE | {"NEGATIVE_MOMENTUM": 0.1, "FUSION_MOMENTUM": None})
        yield algebra.compile("leni sum of taps", leni_sum_taps_kernel,
                              {"SIZE": 9, "CHANNELS": COLUMNS, "LANES": 2 * LANES})
