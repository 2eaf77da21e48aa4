"""Every kernel gives what the definition gives in float64, for any layout of x and of the gradient of y."""

import pytest
import rooms
import torch
from torch import Tensor

import leni_kernels as lk
from leni_kernels.common.gpu import support
from leni_kernels.pointwise import reference

SHAPES = [(2, 3), (3, 300), (2, 5, 4), (3, 7, 5, 7), (2, 33, 50, 6), (1, 2, 50, 50), (5, 4, 2, 3, 4), (1, 1, 1, 1),
          (0, 3, 4, 4), (3, 1, 5, 5), (4, 40, 1, 1), (2, 20, 2, 2), (3, 300, 2, 1), (40, 3, 2, 2), (9, 3, 5, 7)]

INTERPRETED_SHAPES = [(2, 3), (3, 7, 5, 7), (5, 2, 2, 3, 2), (0, 3, 4, 4), (2, 20, 2, 1)]

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "channels outermost": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "columns outermost": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "slice of channels": lambda x: torch.cat([x, x], 1)[:, x.shape[1]:],
    "every other column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded batch": lambda x: x[:1].expand(x.shape),
    "expanded value": lambda x: x.flatten()[:1].view([1] * x.dim()).expand(x.shape) if x.numel() else x,
}

FUNCTIONS = {
    "threshold per channel": (lk.functional.ada_relu, lambda shape: [shape[1:2]]),
    "threshold per layer": (lk.functional.ada_relu, lambda shape: [(1,)]),
    "scalar threshold": (lk.functional.ada_relu, lambda shape: [()]),
    "threshold per element": (lk.functional.ada_relu, lambda shape: [shape[1:]]),
    "slopes": (lk.functional.fully_parametric_relu, lambda shape: [shape[1:2]] * 2),
    "crelu": (lk.functional.crelu, lambda shape: []),
}
DEFINITIONS = {lk.functional.ada_relu: reference.ada_relu, lk.functional.crelu: reference.crelu,
               lk.functional.fully_parametric_relu: reference.fully_parametric_relu}

TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 2e-5), torch.float16: (2**-11, 2**-10),
              torch.bfloat16: (2**-8, 2**-7)}
"""Of y, and of gradients."""

HALF_PRECISION = [torch.float16] if support.interpreting else [torch.float16, torch.bfloat16]
"""Triton's interpreter is wrong for bfloat16."""


def error(got: Tensor, truth: Tensor) -> float:
    """Relative to the largest true value; 0 where there is none."""
    assert got.shape == truth.shape
    return float((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30)) if truth.numel() else 0.0


def steps(tensor: Tensor) -> list[int]:
    """The strides that mean something."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def samples(shape, name, dtype):
    """x and parameters of dtype."""
    _, shapes = FUNCTIONS[name]
    return [torch.randn(size).to(dtype) for size in (shape, *shapes(shape))]


def check(name, x, parameters, grad):
    """y and the gradients of a call against float64."""
    function, _ = FUNCTIONS[name]
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *parameters)]
    y = function(*inputs)
    gradients = torch.autograd.grad(y, inputs, grad)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    truth = DEFINITIONS[function](*exact)
    true_gradients = torch.autograd.grad(truth, exact, grad.double())
    tolerance, of_gradients = TOLERANCES[x.dtype]
    assert y.dtype == x.dtype
    assert error(y, truth) <= tolerance
    for got, wanted, tensor in zip(gradients, true_gradients, inputs, strict=True):
        assert got.dtype == tensor.dtype
        assert error(got, wanted) <= of_gradients
    if name != "crelu" and x.numel() > 0:
        assert steps(y) == steps(gradients[0]) == steps(torch.relu(x))


def positive_gradient(name, x, layout):
    """Of y. Positive, so that the sums over it do not cancel."""
    shape = [2 * size if d == 1 and name == "crelu" else size for d, size in enumerate(x.shape)]
    return LAYOUTS[layout](torch.rand(shape).to(x.dtype) + 0.5)


def unavailable(backend, name, x):
    """Whether a call is the one that the Triton kernels say they cannot serve."""
    if backend == "triton" and name == "threshold per element" and x.numel() > 0:
        order = reference.memory_order(torch.empty_like(x))
        return x.dim() > 2 and any(x.shape[d] > 1 for d in order[:order.index(0)])
    return False


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_for_any_shape_and_layout(kernel_backend, name, layout):
    interpreting = support.interpreting
    for dtype in (torch.float64,) if interpreting else TOLERANCES:
        for shape in INTERPRETED_SHAPES if interpreting else SHAPES:
            x, *parameters = samples(shape, name, dtype)
            x = LAYOUTS[layout](x)
            if unavailable(kernel_backend, name, x):
                with pytest.raises(lk.BackendUnavailableError, match="samples are not outermost in x's memory"):
                    FUNCTIONS[name][0](x, *parameters)
            else:
                check(name, x, parameters, positive_gradient(name, x, layout))


@pytest.mark.skipif(support.interpreting, reason="of the C++ kernels alone")
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_outputs_too_large_for_a_cache(kernel_backend, name, layout):
    """From 8 MiB they are written past the caches, where their rows are whole lines."""
    for shape in ((6, 32, 112, 112), (11, 33, 57, 113)):
        x, *parameters = samples(shape, name, torch.float32)
        x = LAYOUTS[layout](x)
        check(name, x, parameters, positive_gradient(name, x, layout))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_for_any_layout_of_the_gradient(kernel_backend, name):
    for layout in ("contiguous", "channels-last", "slice of channels"):
        for of_gradient in LAYOUTS:
            x, *parameters = samples((2, 18, 3, 7), name, torch.float32)
            check(name, LAYOUTS[layout](x), parameters, positive_gradient(name, x, of_gradient))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "columns outermost"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_over_many_tiles(kernel_backend, name, layout, monkeypatch):
    """Large enough for several threads, and for programs that add up several tiles."""
    if kernel_backend == "triton":
        from leni_kernels.pointwise.gpu import backward as pointwise_backward
        from leni_kernels.pointwise.gpu import view as pointwise_view

        monkeypatch.setattr(pointwise_backward, "_ENOUGH_PROGRAMS", 0)
        monkeypatch.setattr(pointwise_view, "_BLOCK", 16)
        monkeypatch.setattr(pointwise_view, "_BLOCK_COLUMNS", 4)
    x, *parameters = samples((6, 12, 40, 30) if kernel_backend == "cpp" else (2, 3, 3, 23), name, torch.float32)
    x = LAYOUTS[layout](x)
    if not unavailable(kernel_backend, name, x):
        check(name, x, parameters, positive_gradient(name, x, layout))


def test_offsets_of_64_bits(kernel_backend, monkeypatch):
    if kernel_backend != "triton":
        pytest.skip("the C++ kernels have no others")
    rooms.replace(monkeypatch, "pointwise", "wide", lambda *tensors: True)
    for name in FUNCTIONS:
        x, *parameters = samples((3, 6, 2, 5), name, torch.float32)
        check(name, x, parameters, positive_gradient(name, x, "contiguous"))


SLOPES = (1, -1, 3, 1.5, 1 / 3, 0.999, 65504, 2**-1, 2**-9 / 3, 2**-14, 1.5 * 2**-15, 2**-24)
"""Their products with all of float16 are ties, subnormal, too small and too large, and all but some of these."""


@pytest.mark.skipif(support.interpreting, reason="of the C++ kernels alone")
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every other column"])
def test_every_float16_is_read_and_rounded_as_pytorch_does(kernel_backend, layout):
    """A product of two is exact in float32."""
    every = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).view(2**8, 1, 2**8)
    slopes = torch.tensor(SLOPES).half()
    x = LAYOUTS[layout](every.expand(-1, len(SLOPES), -1).contiguous())
    y = lk.functional.fully_parametric_relu(x, slopes, slopes)
    wanted = (every.float() * slopes.float()[:, None]).half()
    numbers = ~wanted.isnan()
    assert torch.equal(y.isnan(), ~numbers)
    assert torch.equal(y[numbers].view(torch.int16), wanted[numbers].view(torch.int16))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nonfinite_values_and_ties_are_the_definition_s(kernel_backend, name, layout):
    function, _ = FUNCTIONS[name]
    x, *parameters = samples((2, 24, 3, 7), name, torch.float32)
    with torch.no_grad():
        for place, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0, -0.0)):
            x.view(-1)[place::11] = value
        if parameters:
            x.view(-1)[5::11] = parameters[0].flatten()[0]
    inputs = [tensor.requires_grad_() for tensor in (LAYOUTS[layout](x), *parameters)]
    y, truth = function(*inputs), DEFINITIONS[function](*inputs)
    grad = torch.randn(y.shape)
    torch.testing.assert_close(y, truth, rtol=0, atol=0, equal_nan=True)
    for got, wanted in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(truth, inputs, grad), strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@pytest.mark.parametrize("name", ["threshold per channel", "threshold per element", "slopes"])
def test_parameters_of_autocast_get_unrounded_gradients(kernel_backend, name, dtype):
    """They are used in x's dtype, and their gradients summed in float32."""
    function, _ = FUNCTIONS[name]
    x, *parameters = samples((4, 6, 5, 7), name, dtype)
    parameters = [torch.randn(parameter.shape, requires_grad=True) for parameter in parameters]
    grad = positive_gradient(name, x, "contiguous")
    with torch.autocast(x.device.type, dtype):
        y = function(x, *parameters)
    gradients = torch.autograd.grad(y, parameters, grad)
    exact = [parameter.detach().to(dtype).double().requires_grad_() for parameter in parameters]
    truth = DEFINITIONS[function](x.double(), *exact)
    assert y.dtype == dtype
    assert torch.equal(y, truth.to(dtype))
    for got, wanted in zip(gradients, torch.autograd.grad(truth, exact, grad.double()), strict=True):
        assert got.dtype == torch.float32
        assert error(got, wanted) <= 2e-5


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strided_parameters(kernel_backend, name):
    x, *parameters = samples((3, 18, 5, 7), name, torch.float32)
    strided = [torch.stack([parameter, parameter], -1)[..., 1] for parameter in parameters]
    check(name, x, strided, positive_gradient(name, x, "contiguous"))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("name", ["threshold per channel", "threshold per layer", "threshold per element", "slopes"])
def test_equal_bits_every_time_for_any_number_of_threads(kernel_backend, name, layout):
    function, _ = FUNCTIONS[name]
    x, *parameters = samples((5, 12, 30, 30) if kernel_backend == "cpp" else (3, 5, 6, 7), name, torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (LAYOUTS[layout](x), *parameters)]
    grad = torch.randn(x.shape)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(torch.autograd.grad(function(*inputs), inputs, grad))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(first, second) for first, second in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_x_and_the_parameters_are_kept(kernel_backend, name):
    function, _ = FUNCTIONS[name]
    inputs = [tensor.requires_grad_() for tensor in samples((2, 3, 4, 5), name, torch.float32)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        function(*inputs)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs}
