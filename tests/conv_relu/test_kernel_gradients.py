"""The C++ kernels of ConvReLU's gradients against autograd of the definition in float64."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from leni_kernels.common import extension
from leni_kernels.conv_relu import reference

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

ISAS = extension.INSTRUCTION_SETS[:3]
"""Those with gradient kernels of their own, the least first."""
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("x", "weight", "threshold", "bias")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2**-11 + 2e-5}

# x, weight, stride, pads, dilation, groups.
CASES = {
    "1d": ((2, 5, 19), (7, 5, 3), (1,), ((1, 1),), (1,), 1),
    "1d long": ((1, 33, 700), (20, 33, 7), (1,), ((3, 3),), (1,), 1),
    "1d strided, dilated": ((3, 4, 31), (6, 2, 4), (3,), ((5, 2),), (2,), 2),
    "1d, a stride past the kernel": ((2, 3, 17), (4, 3, 2), (5,), ((0, 0),), (1,), 1),
    "2d": ((2, 17, 6, 7), (35, 17, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "2d valid": ((2, 3, 9, 8), (20, 3, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "2d one channel": ((2, 1, 9, 8), (1, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "2d wide": ((1, 3, 3, 1100), (2, 3, 3, 5), (1, 1), ((1, 1), (2, 2)), (1, 1), 1),
    "2d many images": ((70, 40, 3, 3), (33, 40, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "2d stride 2": ((2, 20, 9, 10), (18, 20, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    "2d 1x1": ((2, 37, 5, 9), (50, 37, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "2d 1x1 stride 2": ((2, 16, 5, 8), (8, 16, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    "2d asymmetric": ((3, 4, 9, 8), (6, 4, 3, 2), (2, 1), ((0, 0), (2, 2)), (1, 3), 1),
    "2d same, even kernel": ((2, 4, 6, 5), (6, 2, 4, 2), (1, 1), ((1, 2), (1, 2)), (1, 3), 2),
    "2d groups": ((2, 40, 7, 6), (30, 20, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    "2d narrow groups": ((2, 68, 5, 6), (51, 4, 3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 17),
    "2d depthwise": ((2, 21, 7, 9), (21, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 21),
    "2d depthwise, multiplied": ((2, 18, 8, 7), (54, 1, 5, 3), (2, 2), ((2, 2), (1, 1)), (1, 1), 18),
    "2d depthwise of two": ((1, 2, 4, 5), (6, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    "2d kernel as large as x": ((2, 3, 3, 4), (5, 3, 3, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "2d kernel larger than x": ((2, 3, 2, 3), (5, 3, 5, 7), (1, 1), ((2, 2), (3, 3)), (1, 1), 1),
    "2d taps that never meet x": ((2, 3, 2, 1), (4, 3, 3, 3), (2, 3), ((3, 4), (4, 4)), (2, 2), 1),
    "2d last sites unread": ((2, 3, 7, 8), (4, 3, 2, 2), (3, 3), ((0, 0), (0, 0)), (1, 1), 1),
    "3d": ((2, 5, 4, 5, 3), (6, 5, 2, 3, 1), (1, 2, 1), ((1, 1), (0, 0), (1, 1)), (1, 1, 1), 1),
    "3d groups": ((1, 6, 5, 4, 6), (4, 3, 3, 3, 3), (2, 1, 2), ((1, 1), (1, 1), (1, 1)), (1, 2, 1), 2),
    "3d depthwise": ((2, 17, 3, 4, 5), (17, 1, 3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), 17),
}


def channels_last(tensor):
    """The tensor with channels innermost, in any number of dimensions."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {False: torch.Tensor.contiguous, True: channels_last}


def inputs(case, dtype):
    """x, threshold, weight, and a gradient of y, of a case; x and the parameters are ties in part of the places."""
    x_shape, weight_shape, stride, pads, dilation, _ = case
    x = torch.randint(-3, 4, x_shape).double() / 2
    x += torch.randn(x_shape) * (torch.rand(x_shape) < 0.7)
    threshold = torch.randint(-1, 2, (x_shape[1], *weight_shape[2:])).double() / 2
    weight = torch.randn(weight_shape)
    out = [(size + sum(pad) - reference.extent(k, d)) // s + 1
           for size, pad, k, d, s in zip(x_shape[2:], pads, weight_shape[2:], dilation, stride, strict=True)]
    grad = torch.randn(x_shape[0], weight_shape[0], *out) + 0.25
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return x.to(dtype), threshold.to(wide), weight.to(wide), grad.to(dtype)


def truth(case, x, threshold, weight, grad):
    """The gradients of x, weight, threshold and bias in float64."""
    _, _, stride, pads, dilation, groups = case
    x, threshold, weight = (tensor.double().requires_grad_() for tensor in (x, threshold, weight))
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, requires_grad=True)
    y = reference.conv_relu(x, weight, threshold, bias, stride, pads, dilation, groups)
    return torch.autograd.grad(y, (x, weight, threshold, bias), grad.double())


def kernels(case, x, threshold, weight, grad, needs=(True, True, True, True)):
    """What the operator gives; what is not asked for is empty."""
    _, _, stride, pads, dilation, groups = case
    options = (stride, [count for pair in pads for count in pair], dilation, groups)
    return torch.ops.leni_kernels.conv_relu_backward_cpp(grad, x, weight, threshold, *options, *needs)


def check(name, got, exact, dtype):
    for gradient, wanted, of in zip(got, exact, NAMES, strict=True):
        assert gradient.shape == wanted.shape
        error = (gradient.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
        assert error <= TOLERANCES[dtype], f"{name}: {of}: {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_against_autograd_of_the_definition(case, is_channels_last, dtype):
    x, threshold, weight, grad = inputs(CASES[case], dtype)
    x, grad = LAYOUTS[is_channels_last](x), LAYOUTS[is_channels_last](grad)
    got = kernels(CASES[case], x, threshold, weight, grad)
    check(case, got, truth(CASES[case], x, threshold, weight, grad), dtype)
    assert got[0].stride() == LAYOUTS[is_channels_last](x).stride() or 1 in x.shape


VIEWS_OF_GRADIENT = {
    "strided": lambda grad: grad.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda grad: grad.transpose(2, 3).contiguous().transpose(2, 3),
    "channels-last": channels_last,
    "channel slice": lambda grad: torch.cat([grad, grad], dim=1)[:, grad.shape[1]:],
    "channel slice of channels-last": lambda grad: channels_last(torch.cat([grad, grad], dim=1))[:, 1:-2],
    "one number": lambda grad: grad[:1, :1, :1, :1].expand_as(grad),
    "one image": lambda grad: grad[:1].expand_as(grad),
    "one number a channel": lambda grad: grad[:, :, :1, :1].expand_as(grad),
}


@pytest.mark.parametrize("view", VIEWS_OF_GRADIENT.values(), ids=VIEWS_OF_GRADIENT)
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("case", ["2d", "2d narrow groups", "2d stride 2"])
def test_gradient_of_y_of_any_strides(case, is_channels_last, view):
    x_shape, weight_shape, *options = CASES[case]
    grad = view(inputs(CASES[case], torch.float64)[3])
    case = (x_shape, (grad.shape[1], *weight_shape[1:]), *options[:-1], options[-1])
    if grad.shape[1] % options[-1] != 0:
        pytest.skip("the groups do not divide the slice")
    x, threshold, weight, _ = inputs(case, torch.float64)
    got = kernels(case, LAYOUTS[is_channels_last](x), threshold, weight, grad)
    check("view", got, truth(case, x, threshold, weight, grad), torch.float64)


VIEWS_OF_X = {
    "images": (False, lambda x: torch.cat([x, x])[1:-1]),
    "channels": (False, lambda x: torch.cat([x, x], dim=1)[:, 1:x.shape[1] + 1]),
    "channels of channels-last": (True, lambda x: channels_last(torch.cat([x, x], dim=1))[:, 1:x.shape[1] + 1]),
    "rows and columns": (False, lambda x: x[:, :, 1:, 1:-1]),
    "every other row": (False, lambda x: x[:, :, ::2]),
    "every other column of channels-last": (True, lambda x: channels_last(x)[..., ::2]),
    "one image": (False, lambda x: x[:1].expand_as(x)),
    "one row": (False, lambda x: x[:, :, :1].expand_as(x)),
}


@pytest.mark.parametrize("view", VIEWS_OF_X.values(), ids=VIEWS_OF_X)
@pytest.mark.parametrize("name", ["2d", "2d narrow groups", "2d stride 2"])
def test_x_is_a_slice(name, view):
    is_channels_last, take = view
    _, *options = CASES[name]
    x = take(inputs(CASES[name], torch.float64)[0])
    case = (tuple(x.shape), *options)
    _, threshold, weight, grad = inputs(case, torch.float64)
    got = kernels(case, x, threshold, weight, grad)
    check("slice", got, truth(case, x, threshold, weight, grad), torch.float64)
    assert got[0].stride() == LAYOUTS[is_channels_last](x).stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weight_of_any_strides(memory_format):
    case = CASES["2d groups"]
    x, threshold, weight, grad = inputs(case, torch.float64)
    larger = torch.cat([weight, weight]).contiguous(memory_format=memory_format)
    got = kernels(case, x, threshold, larger[:weight.shape[0]], grad)
    check("weight", got, truth(case, x, threshold, weight, grad), torch.float64)


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("case", ["2d", "2d depthwise", "2d taps that never meet x"])
def test_only_what_is_asked_for_is_given(case, is_channels_last):
    x, threshold, weight, grad = inputs(CASES[case], torch.float64)
    x = LAYOUTS[is_channels_last](x)
    wanted = kernels(CASES[case], x, threshold, weight, grad)
    for needs in product((False, True), repeat=4):
        got = kernels(CASES[case], x, threshold, weight, grad, needs)
        for needed, gradient, full in zip(needs, got, wanted, strict=True):
            assert torch.equal(gradient, full) if needed else gradient.numel() == 0


# ---- ties, and what is not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 20])
def test_at_a_tie_all_goes_to_the_threshold(groups, is_channels_last):
    case = ((2, 20, 5, 6), (20, 20 // groups, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups)
    _, _, weight, grad = inputs(case, torch.float64)
    x = LAYOUTS[is_channels_last](torch.zeros(case[0], dtype=torch.float64))
    threshold = torch.zeros(20, 3, 3, dtype=torch.float64)
    dx, *others = kernels(case, x, threshold, weight, grad)
    assert not dx.any()
    check("ties", (dx, *others), truth(case, x, threshold, weight, grad), torch.float64)


SPECIAL = (torch.nan, torch.inf, -torch.inf)


def special(tensor, seed):
    """The tensor with a few NaN and infinities in it."""
    places = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(seed))
    flat = tensor.flatten()
    for value, place in zip(SPECIAL, places, strict=False):
        flat[place] = value
    return flat.reshape(tensor.shape)


@pytest.mark.parametrize("of", ["x", "threshold", "weight", "grad"])
@pytest.mark.parametrize("is_channels_last", LAYOUTS)
@pytest.mark.parametrize("case", ["2d valid", "2d stride 2", "2d depthwise", "2d narrow groups", "3d"])
def test_nan_and_infinity_reach_what_they_meet_and_nothing_else(case, is_channels_last, of):
    tensors = dict(zip(("x", "threshold", "weight", "grad"), inputs(CASES[case], torch.float64), strict=True))
    tensors[of] = special(tensors[of], seed=len(case))
    exact = truth(CASES[case], **tensors)
    tensors["x"] = LAYOUTS[is_channels_last](tensors["x"])
    got = kernels(CASES[case], **tensors)
    for gradient, wanted, name in zip(got, exact, NAMES, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11, equal_nan=True, msg=f"{of}: {name}")


# ---- threads and instruction sets ---------------------------------------------------------------------------


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", ["1d long", "2d many images", "2d groups", "2d narrow groups", "2d stride 2",
                                  "2d one channel"])
def test_any_number_of_threads_and_the_same_bits_each_time(case, threads):
    x, threshold, weight, grad = inputs(CASES[case], torch.float32)
    got = kernels(CASES[case], x, threshold, weight, grad)
    check(f"{threads} threads", got, truth(CASES[case], x, threshold, weight, grad), torch.float32)
    for first, second in zip(got, kernels(CASES[case], x, threshold, weight, grad), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
def test_sums_over_many_sites_keep_their_accuracy(is_channels_last):
    case = ((4, 16, 160, 160), (16, 16, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    x, threshold, weight, grad = inputs(case, torch.float32)
    x, grad = LAYOUTS[is_channels_last](x), LAYOUTS[is_channels_last](grad)
    got = kernels(case, x, threshold, weight, grad)
    for gradient, wanted in zip(got[1:], truth(case, x, threshold, weight, grad)[1:], strict=True):
        assert (gradient - wanted).abs().max() <= 2e-6 * wanted.abs().max()


@pytest.mark.parametrize("is_channels_last", LAYOUTS)
def test_long_sums_of_terms_of_one_sign_keep_theirs(is_channels_last):
    """4 million sites in one thread, against the kernels' own sums in float64."""
    case = ((1, 2, 2048, 2048), (2, 2, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    x, threshold, weight, grad = (tensor.abs() for tensor in inputs(case, torch.float32))
    x, grad = LAYOUTS[is_channels_last](x), LAYOUTS[is_channels_last](grad)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        got, wanted = (kernels(case, *(tensor.to(dtype) for tensor in (x, threshold, weight, grad)))
                       for dtype in (torch.float32, torch.float64))
    finally:
        torch.set_num_threads(threads)
    for gradient, exact in zip(got[1:], wanted[1:], strict=True):
        assert ((gradient - exact).abs() <= 1e-5 * exact.abs()).all()


def parity_errors() -> None:
    """Raise if the kernels of this process's instruction set are not within their tolerances."""
    torch.manual_seed(0)
    for name, (dtype, is_channels_last) in product(CASES, product(TOLERANCES, LAYOUTS)):
        x, threshold, weight, grad = inputs(CASES[name], dtype)
        exact = truth(CASES[name], x, threshold, weight, grad)
        x = LAYOUTS[is_channels_last](x)
        check(name, kernels(CASES[name], x, threshold, weight, grad), exact, dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_parity_on_every_instruction_set(isa):
    best = extension.cpu_isa()
    if best in ISAS and ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this process has only {best}")
    script = "import sys; sys.path.insert(0, sys.argv[1]); import test_kernel_gradients as t; t.parity_errors()"
    environment = {**os.environ, "LENI_KERNELS_ISA": isa, "OMP_NUM_THREADS": "2"}
    process = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], cwd=ROOT, env=environment,
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
