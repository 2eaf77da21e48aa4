"""What is compiled ahead of time of ConvReLU's kernels; ``benchmarks/codegen.py`` and tests find ``compile_cases``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...common.gpu.architectures import operand_types, warp_size
from ...common.gpu.support import CompileCase, itemsize
from .configs import Config, choose
from .forward import conv_relu_forward_kernel, forward_kernel_for
from .input_gradient import conv_relu_input_gradient_kernel, input_constants
from .layout import CHANNELS, LAID_OUT, SITES, WARPS, conv_relu_lay_out_kernel, conv_relu_to_channels_last_kernel
from .problem import convolution, empty_activation, three_dimensional
from .weight_gradient import (
    LANES,
    SUMMED,
    bias_constants,
    conv_relu_bias_gradient_kernel,
    conv_relu_sum_kernel,
    weight_kernel_for,
)

# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """The kernels on a choice of layers, in the configurations that ``architecture`` gets; one half type on all."""
    found = operand_types(architecture)
    most = "bf16" if "bf16" in found else "fp16"
    layers = [(most, layer) for layer in (*_TYPICAL_LAYERS, *_OTHER_LAYERS)]
    layers += [(operand, layer) for operand in found if operand != most for layer in _TYPICAL_LAYERS]
    for kernel in ("forward", "input", "weight"):
        for channels_last in (True, False):
            for operand, layer in layers:
                yield _compile_case(kernel, layer, operand, architecture, channels_last)
            yield _compile_case(kernel, _TYPICAL_LAYERS[0], "fp16", architecture, channels_last, is_wide=True)
    yield _compile_case("weight", _TYPICAL_LAYERS[2], "fp16", architecture, True, is_wide=True)
    for channels_last in (True, False):
        for operand in found:
            yield _case_of_bias(operand, architecture, channels_last)
        yield _case_of_bias("fp16", architecture, channels_last).with_wide_offsets()
    yield _compile_case("forward", _TYPICAL_LAYERS[1], "fp16", architecture, True, is_wide=True)
    for operand in found:
        yield _compile_case("forward", _UNEVEN_LAYER, operand, architecture, False)
        yield from _cases_of_parameters(operand)
        yield _case_of_copy(operand)
    yield _case_of_copy("fp16").with_wide_offsets()


class _Layer(NamedTuple):
    """A layer that is compiled ahead of time."""

    channels: int
    outputs: int
    kernel: tuple[int, ...] = (3, 3)
    stride: int = 1
    groups: int = 1
    size: int = 64
    """Of x in each dimension."""

    def __str__(self) -> str:
        text = f"{self.channels}→{self.outputs} k={'×'.join(map(str, self.kernel))}"
        text += f" stride={self.stride}" * (self.stride > 1) + f" groups={self.groups}" * (self.groups > 1)
        return text + f" size={self.size}" * (self.size != 64)


_TYPICAL_LAYERS = (_Layer(64, 64), _Layer(256, 256), _Layer(64, 64, groups=64))
_OTHER_LAYERS = (
    _Layer(3, 64, (7, 7), 2), _Layer(16, 16), _Layer(32, 32), _Layer(128, 128), _Layer(64, 128, stride=2),
    _Layer(64, 256, (1, 1)), _Layer(256, 64, (1, 1)), _Layer(128, 128, (5,)), _Layer(32, 64, (3, 3, 3)),
    _Layer(64, 64, (67,)),
)
_UNEVEN_LAYER = _Layer(256, 256, size=7)
"""Whose planes in NCHW are not made of whole vectors."""


def _compile_case(kernel: str, layer: _Layer, operand: str, architecture: str, channels_last: bool,
                  is_wide: bool = False) -> CompileCase:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}.get(operand, torch.float32)
    like = torch.empty(0, dtype=dtype, device="meta")
    x = empty_activation((1, layer.channels, *[layer.size] * len(layer.kernel)), like, channels_last)
    weight = x.new_empty(layer.outputs, layer.channels // layer.groups, *layer.kernel)
    dimensions = len(layer.kernel)
    pads = [count for size in layer.kernel for count in (size // 2, size // 2)]
    problem = convolution(x, weight, (layer.stride,) * dimensions, pads, (1,) * dimensions, layer.groups,
                          channels_last)
    config = choose(kernel, problem.channels, problem.outputs, len(problem.taps), operand, architecture, channels_last)
    grad = empty_activation((1, layer.outputs, *problem.out_size), x, channels_last)
    if problem.converts:
        problem = problem.with_copy(three_dimensional(empty_activation(x.shape, like, True)))
        grad = empty_activation(grad.shape, like, True)
    unit = "step_c" if problem.channels_last else "step_w"
    if kernel == "forward":
        function, constants = forward_kernel_for(problem, config, operand, architecture)
        constants[unit] = 1
    else:
        grad = three_dimensional(grad)
        if kernel == "input":
            function = conv_relu_input_gradient_kernel
            constants = input_constants(problem, config, operand, architecture, grad)
        else:
            function, constants = weight_kernel_for(problem, config, operand, architecture, grad, is_wide)
        constants |= {unit: 1, f"grad_{unit}": 1}
        # Triton takes sizes of 1 as constants.
        sizes = {"in": problem.x.shape[2:], "out": problem.out_size}
        constants |= {f"{which}_{axis}": 1 for which, size in sizes.items()
                      for axis, number in zip("dhw", size, strict=True) if number == 1}
    constants["WIDE"] = False
    element = "fp32" if operand == "tf32" else operand
    exact = "fp64" if operand == "fp64" else "fp32"
    pointers = {"x": element, "weight": element, "threshold": element, "grad": element, "y": element, "dx": element,
                "bias": exact, "weight_shares": exact, "threshold_shares": exact}
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32"
                 for name in function.arg_names if name not in constants}
    width = config.channels if kernel == "input" else config.outputs
    rows = config.channels if kernel == "weight" else width if constants.get("SWAPPED") else config.sites
    unrolled = len(problem.taps) if function is conv_relu_forward_kernel and constants["GRID"] is None else 1
    vector_bits, vector_loads = _loads(kernel, config, constants["VECTOR"], unrolled, operand, architecture)
    layout = "channels-last" if channels_last else "NCHW"
    case = CompileCase(f"conv_relu {kernel} {layout} {layer}", function, signature, constants, config.warps,
                       operand, rows if problem.matrix else 0, vector_bits, vector_loads, config.stages)
    return case.with_wide_offsets() if is_wide else case


def _case_of_bias(operand: str, architecture: str, channels_last: bool) -> CompileCase:
    exact, element = "fp64" if operand == "fp64" else "fp32", "fp32" if operand == "tf32" else operand
    config = choose("weight", 1, 64, 1, operand, architecture, channels_last)
    vector = 16 // itemsize(operand) if channels_last else 1
    constants = bias_constants(config, 64, vector, channels_last) | {
        "out_d": 1, f"grad_step_{'c' if channels_last else 'w'}": 1, "WIDE": False}
    signature = {name: {"grad": f"*{element}", "bias_shares": f"*{exact}"}.get(name, "i32")
                 for name in conv_relu_bias_gradient_kernel.arg_names if name not in constants}
    loads = config.sites * config.outputs // (config.warps * warp_size(architecture) * vector)
    layout = "channels-last" if channels_last else "NCHW"
    return CompileCase(f"conv_relu bias {layout}", conv_relu_bias_gradient_kernel, signature, constants, config.warps,
                       operand, 0, vector * itemsize(operand) * 8, loads)


def _cases_of_parameters(operand: str) -> Iterator[CompileCase]:
    exact, element = "fp64" if operand == "fp64" else "fp32", "fp32" if operand == "tf32" else operand
    constants = {"TAPS": 9, "CHANNELS": 64, "OUTPUTS": 64, "GROUPS": 1, "BLOCK": SUMMED, "LANES": LANES}
    parameters = ("weight", "threshold", "bias")
    signature = {f"{name}_shares": f"*{exact}" for name in parameters}
    signature |= {f"d{name}": f"*{element}" for name in parameters} | {f"{name}_rows": "i32" for name in parameters}
    yield CompileCase("conv_relu sum", conv_relu_sum_kernel, signature, constants, 4, operand, 0, 32, 0)
    constants = {"TAPS": 9, "BELOW": (), "CHANNELS": 64, "OUTPUTS": 64, "GROUPS": 1, "WIDTH": 64, "TRANSPOSED": True,
                 "BLOCK": LAID_OUT}
    signature = dict.fromkeys(("weight", "threshold", "weight_by_tap", "threshold_by_tap"), f"*{element}")
    yield CompileCase("conv_relu layout", conv_relu_lay_out_kernel, signature, constants, 4, operand, 0, 32, 0)


def _loads(kernel: str, config: Config, vector: int, taps: int, operand: str, architecture: str) -> tuple[int, int]:
    """The bits of a load of an activation, and how many of them a thread should make in the hot loop, for so many taps.
    """
    channels = config.outputs if kernel == "input" else config.channels
    per_thread = max(1, config.sites * channels // (config.warps * warp_size(architecture)))
    vector = min(vector, per_thread)
    return vector * itemsize(operand) * 8, taps * per_thread // vector


def _case_of_copy(operand: str) -> CompileCase:
    """Of a plane of whole vectors."""
    element = "fp32" if operand == "tf32" else operand
    constants = {"size_d": 1, "size_h": 1, "step_w": 1, "CHANNELS": 256, "VECTOR": 16 // itemsize(operand),
                 "WIDE": False, "BLOCK_SITES": SITES, "BLOCK_CHANNELS": CHANNELS}
    signature = {name: f"*{element}" if name in ("x", "copy") else "i32"
                 for name in conv_relu_to_channels_last_kernel.arg_names if name not in constants}
    loads = SITES * CHANNELS // (WARPS * 32) * itemsize(operand) // 16
    return CompileCase("conv_relu to channels-last NCHW", conv_relu_to_channels_last_kernel, signature, constants,
                       WARPS, operand, 0, 128, loads)
