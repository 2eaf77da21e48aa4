"""ConvReLU's Triton kernels compute the definition: on a GPU where there is one, else in Triton's interpreter.

``on_triton.py`` says how.
"""

from __future__ import annotations

import on_triton
import pytest
import rooms
import torch
import torch.nn.functional as F
from launches import Launches
from on_triton import DEVICE, GPU, needs_gpu, runs_kernels
from torch import Tensor

import leni_kernels as lk
from leni_kernels.common.gpu import support
from leni_kernels.conv_relu import reference
from leni_kernels.conv_relu.gpu import backward, forward, weight_gradient
from leni_kernels.conv_relu.gpu.configs import Config, choose
from leni_kernels.conv_relu.gpu.layout import to_channels_last
from leni_kernels.reborn import ops as reborn_ops
from leni_kernels.reborn.reference import reborn_folded

test_in_the_interpreter = on_triton.in_the_interpreter(__file__)


# ---- material ----------------------------------------------------------------------------------------------

# x, weight, stride, pads, dilation, groups.
CASES = {
    "1d": ((2, 3, 9), (5, 3, 4), (1,), ((1, 2),), (1,), 1),
    "2d": ((2, 5, 4, 5), (7, 5, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "2d strided": ((2, 3, 5, 4), (4, 3, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    "2d uneven": ((1, 4, 5, 7), (6, 2, 2, 3), (1, 2), ((1, 2), (0, 1)), (1, 2), 2),
    "2d, a stride past the kernel": ((1, 3, 5, 6), (4, 3, 1, 2), (2, 3), ((0, 0), (1, 0)), (1, 1), 1),
    "2d kernel larger than x": ((1, 2, 1, 2), (3, 2, 3, 4), (1, 1), ((1, 1), (2, 2)), (1, 1), 1),
    "2d 1x1": ((2, 18, 3, 3), (20, 18, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "2d depthwise": ((2, 5, 4, 4), (5, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 5),
    "2d depthwise, multiplied": ((1, 3, 5, 4), (6, 1, 3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 3),
    "2d one channel": ((1, 1, 4, 4), (3, 1, 2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "3d": ((1, 4, 2, 3, 2), (2, 2, 2, 2, 1), (1, 2, 1), ((1, 0), (1, 1), (0, 0)), (1, 1, 1), 2),
}
NAMES = ("x", "weight", "threshold", "bias")


def in_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    """The tensor dense with channels or columns innermost, in any number of dimensions."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else tensor.contiguous()


def inputs(case: str | tuple, dtype: torch.dtype, channels_last: bool) -> tuple[list[Tensor], tuple]:
    """x, weight, threshold and bias; and the options of :func:`reference.conv_relu`."""
    x_shape, weight_shape, *options = CASES[case] if isinstance(case, str) else case
    torch.manual_seed(1)
    fan_in = torch.Size(weight_shape[1:]).numel()
    shapes = (x_shape, weight_shape, (x_shape[1], *weight_shape[2:]), weight_shape[:1])
    x, weight, threshold, bias = (torch.randn(shape, dtype=torch.float64, device=DEVICE) for shape in shapes)
    tensors = (in_layout(x, channels_last), weight / fan_in**0.5, threshold / 2, bias)
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], tuple(options)


def run(tensors: list[Tensor], options: tuple) -> Tensor:
    stride, pads, dilation, groups = options
    flat = [count for pair in pads for count in pair]
    return torch.ops.leni_kernels.conv_relu_triton(*tensors, stride, flat, dilation, groups)


def in_double(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def error(value: Tensor, wanted: Tensor) -> float:
    assert value.isfinite().all()
    return float((value.double() - wanted).detach().norm() / wanted.detach().norm())


def assert_right(case: str | tuple, dtype: torch.dtype, channels_last: bool) -> None:
    """y and all gradients agree with the definition in float64, and are laid out as promised."""
    tensors, options = inputs(case, dtype, channels_last)
    exact = in_double(tensors)
    wanted = reference.conv_relu(*exact, *options)
    grad = in_layout(torch.randn_like(wanted).to(dtype), channels_last)
    y = run(tensors, options)
    gradients = torch.autograd.grad(y, tensors, grad)
    wanted_gradients = torch.autograd.grad(wanted, exact, grad.double())
    last = channels_last and tensors[0].shape[1] > 1  # of one channel x is in NCHW
    assert y.stride() == in_layout(y, last).stride()
    assert gradients[0].stride() == in_layout(gradients[0], last).stride()
    if dtype in (torch.float64, torch.float32):
        limits = [1e-12] * 5 if dtype == torch.float64 else [1e-5] + [2e-5] * 4
    else:
        composed = [tensor.detach().requires_grad_() for tensor in tensors]
        values = reference.conv_relu(*composed, *options)
        composed_gradients = torch.autograd.grad(values, composed, grad)
        limits = [2 * error(a, b) for a, b in zip((values, *composed_gradients), (wanted, *wanted_gradients),
                                                  strict=True)]
    for name, value, truth, limit in zip(("y", *NAMES), (y, *gradients), (wanted, *wanted_gradients), limits,
                                         strict=True):
        assert value.dtype == dtype
        assert error(value, truth) <= limit, name


def use_tiling(monkeypatch, config: Config) -> None:
    rooms.replace(monkeypatch, "conv_relu", "choose", lambda *_: config)


layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "nchw"])
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(
        not GPU, reason="Triton's interpreter is wrong for bfloat16; needs a GPU")),
]


# ---- the same numbers as the definition --------------------------------------------------------------------


@runs_kernels
@layouts
@pytest.mark.parametrize("case", CASES)
def test_right_in_float64(case, channels_last):
    assert_right(case, torch.float64, channels_last)


@runs_kernels
@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["2d uneven", "2d depthwise"])
def test_right_in_each_dtype(case, dtype, channels_last):
    assert_right(case, dtype, channels_last)


@runs_kernels
@layouts
def test_right_over_several_blocks(channels_last, monkeypatch):
    """Several blocks of sites, channels and outputs, the last of each not full."""
    use_tiling(monkeypatch, Config(16, 16, 16, 4))
    options = (1, 1), ((0, 0), (0, 1)), (1, 1)
    assert_right(((1, 36, 3, 6), (40, 18, 1, 2), *options, 2), torch.float64, channels_last)
    assert_right(((1, 18, 1, 18), (36, 1, 1, 2), *options, 18), torch.float64, channels_last)


@runs_kernels
@layouts
@pytest.mark.parametrize("case", ["1d", "2d strided", "2d uneven", "2d 1x1", "3d"])
def test_right_where_blocks_of_channels_share_the_gradient(case, channels_last, monkeypatch):
    """As in weight's and the threshold's; the channels of a tap may lie in two blocks, and the last may be empty."""
    use_tiling(monkeypatch, Config(16, 16, 16, 4, 1, 3))
    assert_right(case, torch.float64, channels_last)


@runs_kernels
@pytest.mark.parametrize("case", [
    ((2, 16, 9), (5, 16, 3), (1,), ((1, 2),), (1,), 1),
    ((3, 64, 5, 7), (40, 32, 2, 3), (2, 1), ((1, 1), (1, 0)), (2, 1), 2),
    ((1, 16, 3, 2, 4), (3, 16, 2, 1, 2), (1, 2, 1), ((1, 0), (0, 0), (1, 1)), (1, 1, 1), 1)], ids=["1d", "2d", "3d"])
def test_right_where_a_line_of_taps_shares_columns_of_x(case, monkeypatch):
    """The last columns, rows and images of a window may lie past the ends."""
    taken = []
    real = weight_gradient._shares_columns
    monkeypatch.setattr(weight_gradient, "_shares_columns", lambda *args: taken.append(real(*args)) or taken[-1])
    use_tiling(monkeypatch, Config(16, 16, 16, 4, products=case[1][-1], columns=4))
    assert_right(case, torch.float64, True)
    assert taken == [True]


@runs_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_of_a_threshold_that_is_nan_the_gradient_is_zero():
    """Though -∞ stands for it in the kernels, and x may be that."""
    tensors, options = inputs("2d", torch.float32, True)
    with torch.no_grad():
        tensors[0][0, 1, 2, 2], tensors[2][1] = float("-inf"), float("nan")
    gradient, = torch.autograd.grad(run(tensors, options).sum(), tensors[2])
    assert gradient[1].eq(0).all()
    assert gradient[0].ne(0).any()


@runs_kernels
@pytest.mark.parametrize("case", [name for name, (_, weight, *_) in CASES.items() if weight[1] > 1])
def test_right_in_a_pipeline(case, monkeypatch):
    """As many iterations overlap as a tiling has stages: here taps and blocks of channels are one loop."""
    tensors, options = inputs(case, torch.float64, True)
    use_tiling(monkeypatch, Config(16, 16, 16, 4, 3))
    with torch.no_grad():
        torch.testing.assert_close(run(tensors, options), reference.conv_relu(*tensors, *options), rtol=1e-12,
                                   atol=1e-12)


@runs_kernels
@layouts
@pytest.mark.parametrize("case", ["2d uneven", "2d 1x1", "2d depthwise"])
def test_right_with_products_swapped(case, channels_last, monkeypatch):
    rooms.replace(monkeypatch, "conv_relu", "swaps", lambda *_: True)
    assert_right(case, torch.float64, channels_last)


@runs_kernels
def test_right_along_more_taps_than_a_number_has_bits():
    assert_right(((1, 3, 20), (2, 3, 66), (2,), ((30, 31),), (1,), 1), torch.float64, True)


@runs_kernels
@layouts
@pytest.mark.parametrize(("stages", "swapped"), [(1, False), (1, True), (3, False)])
def test_right_over_several_blocks_of_channels(stages, swapped, channels_last, monkeypatch):
    """Read with channels innermost; in NCHW, copied to that first."""
    rooms.replace(monkeypatch, "conv_relu", "swaps", lambda *_: swapped)
    tensors, options = inputs(((2, 64, 4, 5), (40, 32, 3, 2), (1, 2), ((1, 1), (0, 1)), (2, 1), 2), torch.float64,
                              channels_last)
    use_tiling(monkeypatch, Config(16, 16, 16, 4, stages))
    with torch.no_grad():
        y, wanted = run(tensors, options), reference.conv_relu(*tensors, *options)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    assert y.stride() == in_layout(y, channels_last).stride()


@runs_kernels
@layouts
def test_the_tilings_of_architectures_are_right(channels_last, monkeypatch):
    """The rule gives each architecture tilings of its own: some are run on whatever runs this test."""
    for architecture in ("sm_90", "gfx942"):
        rooms.replace(monkeypatch, "conv_relu", "choose", lambda *problem, target=architecture:
                      choose(*problem[:-2], target, problem[-1]))
        assert_right(((1, 72, 1, 3), (72, 72, 1, 2), (1, 1), ((0, 0), (1, 0)), (1, 1), 1), torch.float16, channels_last)


@runs_kernels
@pytest.mark.parametrize(("case", "channels_last"), [("2d uneven", True), ("2d depthwise, multiplied", False)])
def test_taps_in_a_loop_and_wide_offsets(case, channels_last, monkeypatch):
    """A kernel too large to unroll, in a tensor of more than 2³¹ elements: both pretended."""
    monkeypatch.setattr(forward, "_MOST_UNROLLED", 1)
    rooms.replace(monkeypatch, "conv_relu", "wide", lambda *tensors: True)
    assert_right(case, torch.float64, channels_last)


@runs_kernels
def test_sums_over_sites_in_one_program_or_several(monkeypatch):
    use_tiling(monkeypatch, Config(16, 16, 16, 4))
    tensors, options = inputs(((1, 3, 40), (2, 3, 2), (1,), ((0, 0),), (1,), 1), torch.float32, True)
    y = run(tensors, options)
    gradients = []
    for programs in (1, 10**6):
        monkeypatch.setattr(weight_gradient, "_ENOUGH_PROGRAMS", programs)
        gradients.append(torch.autograd.grad(y, tensors, torch.ones_like(y), retain_graph=True))
    torch.testing.assert_close(*gradients)


@runs_kernels
@layouts
@pytest.mark.parametrize(("dtype", "channels", "stages"), [
    (torch.float64, 5, 1), (torch.float16, 5, 1), (torch.float64, 5, 2), (torch.float64, 32, 3)], ids=str)
def test_reborn_s_folded_form_is_a_list_of_taps(dtype, channels, stages, channels_last, monkeypatch):
    k = 3
    if stages > 1:
        use_tiling(monkeypatch, Config(16, 16, 16, 4, stages))
    torch.manual_seed(2)
    x = in_layout(torch.randn(2, channels, 4, 5, dtype=torch.float64, device=DEVICE).to(dtype), channels_last)
    deconv = torch.randn(channels, channels, k, k, dtype=torch.float64, device=DEVICE) / 5
    weight, bias = torch.randn(channels, 2 * channels, dtype=torch.float64, device=DEVICE), x.new_zeros(channels)
    with lk.use_backend("triton"):
        y = reborn_ops.reborn_folded(x, deconv.to(dtype), weight.to(dtype), bias.to(dtype))
    wanted = reborn_folded(x.double(), deconv, weight, bias.double(), 1)
    assert error(y, wanted) <= (1e-12 if dtype == torch.float64 else 2e-3)
    assert y.stride() == in_layout(y, channels_last).stride()


# ---- thresholds --------------------------------------------------------------------------------------------


@runs_kernels
@layouts
@pytest.mark.parametrize("threshold", [float("-inf"), float("nan"), 0.0])
def test_thresholds_that_are_a_convolution(threshold, channels_last):
    """θ = -∞ bounds nothing, θ = 0 is a ReLU, and to a NaN no x is less or equal, so it bounds nothing."""
    (x, weight, theta, bias), options = inputs("2d kernel larger than x", torch.float64, channels_last)
    y = run([x, weight, torch.full_like(theta, threshold), bias], options)
    wanted = F.conv2d(x.relu() if threshold == 0 else x, weight, bias, padding=(1, 2))
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


@runs_kernels
@layouts
def test_at_a_tie_the_gradient_goes_to_the_threshold(channels_last):
    x = in_layout(torch.tensor([[[1.5, 1.5, 1.5]]], device=DEVICE), channels_last).requires_grad_()
    threshold = torch.tensor([[1.5, 1.0]], device=DEVICE).requires_grad_()
    weight = torch.tensor([[[1.0, 10.0]]], device=DEVICE)
    run([x, weight, threshold, None], ((1,), ((0, 0),), (1,), 1)).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 10.0, 10.0]
    assert threshold.grad.flatten().tolist() == [2.0, 0.0]


@runs_kernels
@layouts
@pytest.mark.parametrize(("value", "dtype"), [
    (float("nan"), torch.float16), (float("inf"), torch.float32), (float("-inf"), torch.float16)], ids=str)
def test_nan_and_infinity_travel_as_in_the_reference(value, dtype, channels_last):
    tensors, options = inputs("2d strided", dtype, channels_last)
    with torch.no_grad():
        tensors[0][0, 2, 2, 3] = value
        y, wanted = run(tensors, options), reference.conv_relu(*in_double(tensors), *options)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y.isposinf(), wanted.isposinf())
    assert torch.equal(y.isneginf(), wanted.isneginf())


# ---- tensors as they come ----------------------------------------------------------------------------------


@runs_kernels
@layouts
def test_an_empty_batch_launches_nothing(channels_last):
    tensors, options = inputs(((0, 3, 4, 4), *CASES["2d strided"][1:]), torch.float32, channels_last)
    y = run(tensors, options)
    assert y.shape == (0, 4, 2, 2)
    gradients = torch.autograd.grad(y, tensors, y)
    assert gradients[0].shape == tensors[0].shape
    assert not any(gradient.any() for gradient in gradients)


@runs_kernels
@layouts
@pytest.mark.parametrize("part", [
    (slice(1, 3),), (slice(None), slice(2, 5)), (slice(None), slice(None), slice(None, None, 2)),
    (slice(1, 3), slice(1, 4), slice(1, 4), slice(2, 5)),
], ids=["images", "channels", "every other row", "all four"])
def test_slices_of_a_larger_tensor_are_read_in_place(part, channels_last):
    (whole, *_), _ = inputs(((3, 6, 5, 6), (1, 1, 1, 1)), torch.float64, channels_last)
    x = whole.detach()[part]
    (_, *parameters), options = inputs((x.shape, (2, x.shape[1], 2, 2), (1, 1), ((1, 0), (0, 1)), (1, 1), 1), x.dtype,
                                       channels_last)
    y, wanted = run([x, *parameters], options), reference.conv_relu(x, *parameters, *options)
    grad = torch.randn_like(wanted)
    for got, truth in zip((y, *torch.autograd.grad(y, parameters, grad)),
                          (wanted, *torch.autograd.grad(wanted, parameters, grad)), strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


@runs_kernels
@pytest.mark.parametrize(("layout", "channels_last"), [
    (lambda grad: grad.repeat_interleave(2, dim=3)[..., ::2], True),
    (lambda grad: grad[:1, :1, :1, :1].expand_as(grad), False),
    (lambda grad: in_layout(grad, True), False),
    (lambda grad: torch.cat([grad, grad], dim=1)[:, grad.shape[1]:], True),
], ids=["strided", "expanded", "channels-last", "slice"])
def test_layout_of_the_output_gradient_does_not_matter(layout, channels_last):
    tensors, options = inputs("2d strided", torch.float64, channels_last)
    y = run(tensors, options)
    grad = layout(torch.randn_like(y))
    exact = in_double(tensors)
    wanted = torch.autograd.grad(reference.conv_relu(*exact, *options), exact, grad)
    for got, truth in zip(torch.autograd.grad(y, tensors, grad), wanted, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


@runs_kernels
def test_parameters_may_have_any_strides_and_bias_may_be_missing():
    (x, weight, threshold, _), options = inputs("2d uneven", torch.float64, True)
    turned = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (weight, threshold)]
    y = run([x, *turned, None], options)
    torch.testing.assert_close(y, reference.conv_relu(x, weight, threshold, None, *options), rtol=1e-12, atol=1e-12)


@runs_kernels
@pytest.mark.parametrize("shape", [(2, 70, 6, 7), (1, 5, 9), (2, 24, 8, 8), (3, 9, 2, 3, 4), (2, 3, 4, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_a_copy_with_channels_innermost(shape, dtype):
    """Of dense tensors, in vectors where a plane is made of them, and of slices."""
    whole = torch.randn([2 * size for size in shape], device=DEVICE).to(dtype)
    part = whole[tuple(slice(size) for size in shape)]
    for x in (part.contiguous(), part, whole[: shape[0], : shape[1]]):
        copy = to_channels_last(x)
        assert torch.equal(copy, x)
        assert copy.stride() == in_layout(x, True).stride()


# ---- as an operator ----------------------------------------------------------------------------------------


@runs_kernels
@pytest.mark.parametrize(("case", "channels_last"), [("1d", True), ("2d depthwise, multiplied", False)])
def test_gradcheck(case, channels_last):
    tensors, options = inputs(case, torch.float64, channels_last)
    with torch.no_grad():  # off the kinks: every threshold at least 0.15 from every x and from 0
        tensors[0].floor_().add_(0.5).add_(torch.rand_like(tensors[0]), alpha=0.1)
        tensors[2].floor_().add_(0.2).add_(torch.rand_like(tensors[2]), alpha=0.1)
    assert torch.autograd.gradcheck(lambda *tensors: run(tensors, options), tensors, fast_mode=True)


@runs_kernels
@pytest.mark.parametrize("needed", range(4), ids=NAMES)
def test_only_what_is_asked_for_is_computed(needed, monkeypatch):
    tensors, options = inputs("1d", torch.float64, True)
    y = run([tensor.detach().requires_grad_(i == needed) for i, tensor in enumerate(tensors)], options)
    launched = []
    for room, name in ((backward, "input_gradient"), (weight_gradient, "_correlation"),
                       (weight_gradient, "_shares_of_bias")):
        function = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *arguments, function=function, name=name, **options:
                            (launched.append(name), function(*arguments, **options))[1])
    y.sum().backward()
    assert launched == [("input_gradient", "_correlation", "_correlation", "_shares_of_bias")[needed]]


@runs_kernels
@pytest.mark.parametrize(("case", "channels_last"), [("1d", True), ("2d depthwise", False)])
def test_opcheck(case, channels_last):
    tensors, options = inputs(case, torch.float32, channels_last)
    stride, pads, dilation, groups = options
    options = (stride, [count for pair in pads for count in pair], dilation, groups)
    operators = torch.ops.leni_kernels
    torch.library.opcheck(operators.conv_relu_triton.default, (*tensors, *options))
    x, weight, threshold, _ = (tensor.detach() for tensor in tensors)
    grad = operators.conv_relu_triton(x, weight, threshold, None, *options)
    torch.library.opcheck(operators.conv_relu_backward_triton.default,
                          (grad, x, weight, threshold, *options, True, True, True, True),
                          test_utils=("test_schema", "test_faketensor"))


@runs_kernels
def test_the_functions_run_on_it():
    (x, weight, threshold, bias), _ = inputs("2d", torch.float32, True)
    with lk.use_backend("triton"):
        (decision,) = lk.explain(lk.functional.conv_relu2d, x, weight, threshold, bias, padding=1)
        y = lk.functional.conv_relu2d(x, weight, threshold, bias, padding=1)
    assert decision.backend == "triton"
    torch.testing.assert_close(y, reference.conv_relu(x, weight, threshold, bias, (1, 1), ((1, 1), (1, 1)), (1, 1), 1))


@pytest.mark.skipif(support.interpreting, reason="the interpreter's operator is opaque to tracing")
@layouts
def test_the_launches_can_be_traced_without_a_gpu(channels_last):
    """As torch.compile does: fake tensors on a GPU that need not exist give a graph with the kernels in it."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    options = ([1, 1], [1, 1, 1, 1], [1, 1], 1)

    def step(x, weight, threshold, bias):
        y = forward.conv_relu(x, weight, threshold, bias, *options)
        return backward.conv_relu_backward(y, x, weight, threshold, *options, True, True, True, True)

    with FakeTensorMode():
        shapes = ((2, 16, 5, 8), (32, 16, 3, 3), (16, 3, 3), (32,))
        x, *parameters = (torch.empty(shape, device="cuda", dtype=torch.float16) for shape in shapes)
        graph = make_fx(step)(in_layout(x, channels_last), *parameters)
    assert graph.code.count("triton_kernel_wrapper_mutation(") == (7 if channels_last else 10)


# ---- on a GPU ----------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", [
    ((8, 3, 64, 64), (64, 3, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((8, 64, 56, 56), (64, 64, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((8, 128, 28, 28), (256, 128, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    ((8, 512, 7, 7), (512, 512, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((8, 256, 14, 14), (1024, 256, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((8, 128, 28, 28), (128, 4, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 32),
    ((8, 96, 28, 28), (96, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 96),
    ((2, 3, 40, 40), (16, 3, 11, 11), (4, 4), ((2, 2), (2, 2)), (1, 1), 1),
    ((8, 128, 60), (100, 128, 5), (1,), ((2, 2),), (1,), 1),
    ((2, 32, 8, 14, 14), (64, 32, 3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), 1),
], ids=str)
def test_right_at_the_sizes_of_networks(case, dtype, channels_last):
    assert_right(case, dtype, channels_last)


@needs_gpu
@pytest.mark.gpu
@layouts
def test_right_past_two_to_the_31_elements(channels_last):
    """The last images of a tensor of more than 2³¹ elements come out as they do alone."""
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    (x, *parameters), options = inputs(((2, 16, 64, 64), (16, 16, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
                                       torch.float16, channels_last)
    x, parameters = x.detach(), [parameter.detach() for parameter in parameters]
    whole = in_layout(x[:1].expand(2**15 + 2, -1, -1, -1), channels_last)
    whole[-2:] = x
    assert torch.equal(run([whole, *parameters], options)[-2:], run([x, *parameters], options))


@needs_gpu
@pytest.mark.gpu
@layouts
def test_torch_compile(channels_last):
    tensors, _ = inputs("2d", torch.float16, channels_last)
    gradients = []
    for function in (lk.functional.conv_relu2d, torch.compile(lk.functional.conv_relu2d, fullgraph=True)):
        y = function(*tensors, padding=1)
        gradients.append((y, *torch.autograd.grad(y.sum(), tensors)))
    torch.testing.assert_close(*gradients)


# ---- launches ----------------------------------------------------------------------------------------------


WIDE_CASE = ((1, 256, 5, 4), (256, 256, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)


@pytest.mark.parametrize(("case", "channels_last", "copies", "kernel"), [
    ("2d", True, [], "forward"), ("2d", False, [], "forward"), ("2d depthwise", True, [], "forward"),
    (WIDE_CASE, True, [], "looped_forward"), (WIDE_CASE, False, ["to_channels_last"], "looped_forward")])
def test_a_step_is_seven_launches_and_copies(case, channels_last, copies, kernel):
    tensors, (stride, pads, dilation, groups) = inputs(case, torch.float16, channels_last)
    x, weight, threshold, bias = (tensor.detach() for tensor in tensors)
    options = stride, [count for pair in pads for count in pair], dilation, groups
    with Launches() as seen:
        y = forward.conv_relu(x, weight, threshold, bias, *options)
    copies = [f"conv_relu_{copy}_kernel" for copy in copies]
    assert seen.kernels == [*copies, "conv_relu_lay_out_kernel", f"conv_relu_{kernel}_kernel"]
    assert not seen.of_torch
    with Launches() as seen:
        backward.conv_relu_backward(y, x, weight, threshold, *options, True, True, True, True)
    of_weight = "depthwise_weight_gradient" if groups > 1 else "weight_gradient"
    assert seen.kernels == [*copies * 2, *(f"conv_relu_{name}_kernel" for name in (
        "lay_out", "input_gradient", of_weight, "bias_gradient", "sum"))]
    assert not seen.of_torch
