"""The C++ kernels of ConvReLU forward against the definition in float64."""

import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_kernel_gradients import CASES, LAYOUTS, ROOT, VIEWS_OF_X, inputs, special

from leni_kernels.common import extension
from leni_kernels.conv_relu import reference

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ISAS = extension.INSTRUCTION_SETS
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-11 + 1e-5}

# More than one block of the depth, tiles that go across images, planes of one site, tiles of part of a row.
FORWARD_CASES = {
    **CASES,
    "2d deep": ((3, 150, 7, 7), (40, 150, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "2d deep groups": ((2, 400, 4, 5), (34, 200, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    "2d one site": ((5, 700, 1, 1), (50, 700, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "1d long rows": ((2, 20, 5000), (9, 20, 3), (2,), ((1, 1),), (1,), 1),
    "2d depthwise, long rows": ((2, 19, 3, 1500), (19, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 19),
}


def forward(case, x, threshold, weight, bias):
    _, _, stride, pads, dilation, groups = case
    flat = [count for pair in pads for count in pair]
    return torch.ops.leni_kernels.conv_relu_cpp(x, weight, threshold, bias, stride, flat, dilation, groups)


def truth(case, x, threshold, weight, bias):
    bias = None if bias is None else bias.double()
    return reference.conv_relu(x.double(), weight.double(), threshold.double(), bias, *case[2:])


def limit(case, x, threshold, weight, bias, exact):
    """The error that is allowed: for bfloat16 twice that of the definition in bfloat16."""
    if x.dtype in LIMITS:
        return LIMITS[x.dtype] * exact.abs().max()
    composed = reference.conv_relu(*(tensor.bfloat16() for tensor in (x, weight, threshold, bias)), *case[2:])
    return 2 * (composed.double() - exact).abs().max()


def check(name, dtype, is_channels_last):
    case = FORWARD_CASES[name]
    x, threshold, weight, _ = inputs(case, dtype)
    bias = torch.randn(weight.shape[0], dtype=weight.dtype)
    exact = truth(case, x, threshold, weight, bias)
    y = forward(case, LAYOUTS[is_channels_last](x), threshold, weight, bias)
    assert (y.dtype, y.shape) == (dtype, exact.shape)
    # The stride of a dimension of size 1 says nothing.
    assert y.stride() == LAYOUTS[is_channels_last](exact).stride() or 1 in y.shape
    error, allowed = (y.double() - exact).abs().max(), limit(case, x, threshold, weight, bias, exact)
    assert error <= allowed, f"{name} {dtype} channels_last={is_channels_last}: {error:.1e} > {allowed:.1e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("name", FORWARD_CASES)
def test_against_the_definition(name, is_channels_last, dtype):
    check(name, dtype, is_channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("threshold_value", "activation"), [(-torch.inf, torch.Tensor.clone), (0.0, torch.relu)],
                         ids=["minus infinity", "zero"])
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("name", FORWARD_CASES)
def test_convolution_and_convolution_of_relu(name, is_channels_last, threshold_value, activation, dtype):
    case = FORWARD_CASES[name]
    _, _, stride, pads, dilation, groups = case
    x, threshold, weight, _ = inputs(case, dtype)
    bias = torch.randn(weight.shape[0], dtype=weight.dtype)
    y = forward(case, LAYOUTS[is_channels_last](x), threshold.fill_(threshold_value), weight, bias)
    convolve = CONVOLUTIONS[len(stride)]

    def convolution(x, weight, bias):
        padded = F.pad(activation(x), [count for pair in reversed(pads) for count in pair])
        return convolve(padded, weight, bias, stride, 0, dilation, groups).double()

    exact = convolution(x.double(), weight.double(), bias.double())
    allowed = 1e-12 * exact.abs().max()
    if dtype == torch.bfloat16:
        allowed = 2 * (convolution(x, weight.bfloat16(), bias.bfloat16()) - exact).abs().max()
    assert (y.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("view", VIEWS_OF_X.values(), ids=VIEWS_OF_X)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["2d", "2d narrow groups", "2d stride 2", "2d depthwise"])
def test_x_is_a_slice(name, dtype, view):
    is_channels_last, take = view
    _, *options = CASES[name]
    x = take(inputs(CASES[name], dtype)[0])
    case = (tuple(x.shape), *options)
    _, threshold, weight, _ = inputs(case, dtype)
    y = forward(case, x, threshold, weight, None)
    assert torch.equal(y, forward(case, LAYOUTS[is_channels_last](x), threshold, weight, None))
    assert y.stride() == LAYOUTS[is_channels_last](y).stride()


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["2d", "2d groups", "2d depthwise"])
def test_weight_of_any_strides(name, dtype, is_channels_last):
    case = CASES[name]
    x, threshold, weight, _ = inputs(case, dtype)
    x = LAYOUTS[is_channels_last](x)
    y = forward(case, x, threshold, weight, None)
    views = (weight.contiguous(memory_format=torch.channels_last), torch.cat([weight, weight])[:weight.shape[0]],
             torch.cat([weight, weight], dim=1)[:, :weight.shape[1]], weight.mT.contiguous().mT)
    for view in views:
        assert torch.equal(forward(case, x, threshold, view, None), y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of", ["x", "threshold"])
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("name", ["2d", "2d stride 2", "2d depthwise", "2d narrow groups", "3d"])
def test_nan_and_infinity_reach_what_they_meet_and_nothing_else(name, is_channels_last, of, dtype):
    tensors = dict(zip(("x", "threshold", "weight"), inputs(CASES[name], dtype), strict=False))
    tensors[of] = special(tensors[of], seed=1)
    y = forward(CASES[name], LAYOUTS[is_channels_last](tensors["x"]), tensors["threshold"], tensors["weight"], None)
    exact = truth(CASES[name], **tensors, bias=None)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(y), kind(exact))


def bounded(x, value, below, is_channels_last):
    """x [N, C, H, W] through one tap that hands each channel on."""
    weight, threshold = torch.eye(x.shape[1])[:, :, None], torch.full((x.shape[1], 1), value)
    return torch.ops.leni_kernels.conv_relu_taps_cpp(LAYOUTS[is_channels_last](x), weight, threshold, None, [0, 0],
                                                     [below])


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("below", [0, 1])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -1.5])
def test_every_finite_bfloat16_is_bounded(value, below, is_channels_last):
    every = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).nan_to_num(0.0)
    x = every.reshape(1, 64, 32, 32)
    exact = x.clamp(max=value) if below else x.clamp(min=value)
    y = bounded(x, value, below, is_channels_last)
    torch.testing.assert_close(y, exact, rtol=0, atol=2e-38)  # the products flush what is subnormal


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("below", [0, 1])
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5])
@pytest.mark.parametrize("bits", [0x7fc0, -0x40], ids=["NaN", "negative NaN"])
def test_a_nan_of_either_sign_stays_one(bits, value, below, is_channels_last):
    x = torch.zeros(1, 1, 5, 9, dtype=torch.bfloat16)
    x[0, 0, 2, 3] = torch.tensor([bits], dtype=torch.int16).view(torch.bfloat16)[0]
    assert torch.equal(bounded(x, value, below, is_channels_last).isnan(), x.isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
def test_taps_above_and_below(is_channels_last, dtype):
    """Any list of taps: here 4 of 5 take the minimum, two of them read the same sites."""
    x = torch.randn(2, 21, 9, 11).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, threshold, bias = (torch.randn(shape, dtype=wide) for shape in ((35, 21, 5), (21, 5), (35,)))
    offsets, below = [(0, 0), (0, 0), (-1, 2), (3, 0), (-9, 1)], [1, 0, 1, 1, 1]
    padded = F.pad(x.double(), (12, 12, 12, 12))
    exact = bias.double()[:, None, None].expand(2, 35, 9, 11)
    for t, (row, column) in enumerate(offsets):
        read = padded[:, :, 12 + row:21 + row, 12 + column:23 + column]
        bound = threshold[:, t, None, None].double()
        bounded = torch.minimum(read, bound) if below[t] else torch.maximum(read, bound)
        exact = exact + F.conv2d(bounded, weight[:, :, t, None, None].double())
    flat = [number for pair in offsets for number in pair]
    y = torch.ops.leni_kernels.conv_relu_taps_cpp(LAYOUTS[is_channels_last](x), weight, threshold, bias, flat, below)
    limit = {**LIMITS, torch.bfloat16: 1e-2}[dtype]
    assert (y.double() - exact).abs().max() <= limit * exact.abs().max()


@pytest.mark.parametrize("name", ["2d deep", "2d many images", "1d long rows", "2d depthwise", "2d narrow groups"])
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
def test_any_number_of_threads_gives_the_same_bits(name, is_channels_last):
    case = FORWARD_CASES[name]
    x, threshold, weight, _ = inputs(case, torch.float32)
    x, before = LAYOUTS[is_channels_last](x), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(forward(case, x, threshold, weight, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# ---- the operators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "is_channels_last", "dtype"), [
    ("1d strided, dilated", False, torch.float64), ("1d strided, dilated", True, torch.float32),
    ("2d same, even kernel", False, torch.float32), ("2d same, even kernel", True, torch.bfloat16),
    ("3d", False, torch.bfloat16), ("3d", True, torch.float64)], ids=str)
def test_opcheck(name, is_channels_last, dtype):
    case = CASES[name]
    _, _, stride, pads, dilation, groups = case
    x, threshold, weight, grad = inputs(case, dtype)
    x, bias = LAYOUTS[is_channels_last](x), torch.randn(weight.shape[0], dtype=weight.dtype)
    options = (stride, [count for pair in pads for count in pair], dilation, groups)
    ops = torch.ops.leni_kernels
    torch.library.opcheck(ops.conv_relu_cpp.default, (x, weight, threshold, bias, *options))
    trainable = [tensor.clone().requires_grad_() for tensor in (x, weight, threshold, bias)]
    torch.library.opcheck(ops.conv_relu_cpp.default, (*trainable, *options))
    for needs in ((True, True, True, True), (False, True, False, True), (True, False, True, False)):
        torch.library.opcheck(ops.conv_relu_backward_cpp.default, (grad, x, weight, threshold, *options, *needs))


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
def test_opcheck_of_taps(is_channels_last):
    x = LAYOUTS[is_channels_last](torch.randn(2, 3, 5, 4))
    arguments = (x, torch.randn(6, 3, 2), torch.randn(3, 2), torch.randn(6), [0, 0, 1, -1], [1, 0])
    torch.library.opcheck(torch.ops.leni_kernels.conv_relu_taps_cpp.default, arguments)


def test_what_was_in_scratch_memory_takes_no_time():
    """Lanes of a tile's last vector that are no sites: a product with a denormal takes a hundred times as long."""
    weight, threshold, x = torch.randn(64, 64, 3, 3), torch.full((64, 3, 3), -1.0), torch.randn(1, 64, 7, 5)
    options = ([1, 1], [1, 1, 1, 1], [1, 1], 1)

    def seconds(x):
        begin = time.perf_counter()
        torch.ops.leni_kernels.conv_relu_cpp(x, weight, threshold, None, *options)
        return time.perf_counter() - begin

    def seconds_after(value):
        seconds(torch.full((1, 64, 64, 64), value))
        return min(seconds(x) for _ in range(10))  # what is left there stays there; the first finds its caches cold

    assert seconds_after(1e-41) < 3 * seconds_after(1.0)


# ---- instruction sets --------------------------------------------------------------------------------------


def parity_errors() -> None:
    """Raise if the kernels of this process's instruction set are not within their tolerances."""
    torch.manual_seed(0)
    for name, dtype, is_channels_last in product(FORWARD_CASES, DTYPES, LAYOUTS):
        check(name, dtype, is_channels_last)


@pytest.mark.parametrize("isa", ISAS)
def test_parity_on_every_instruction_set(isa):
    best = extension.cpu_isa()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this process has only {best}")
    script = "import sys; sys.path.insert(0, sys.argv[1]); import test_kernel_forward as t; t.parity_errors()"
    environment = {**os.environ, "LENI_KERNELS_ISA": isa, "OMP_NUM_THREADS": "2"}
    process = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], cwd=ROOT, env=environment,
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
