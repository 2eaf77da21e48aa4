"""AdaReLU, FullyParametricReLU and CReLU are what their papers write, value by value."""

import copy

import pytest
import torch
from torch import nn

import leni_kernels as lk

INF, NAN = torch.inf, torch.nan
SHAPES = [(2, 3), (2, 3, 4), (2, 3, 3, 3), (2, 3, 2, 4, 3), (0, 3, 4, 4), (2, 3, 0, 4)]


def ada_relu_by_loops(x, threshold):
    """Eq. 4, one value at a time, with the threshold already of x's shape."""
    pairs = zip(x.flatten().tolist(), threshold.flatten().tolist(), strict=True)
    return torch.tensor([value if value > bound else bound for value, bound in pairs]).view(x.shape)


def along(x, per_channel):
    """One value per channel, repeated to x's shape."""
    y = torch.empty_like(x)
    for channel, value in enumerate(per_channel):
        y[:, channel] = value
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ada_relu_thresholds_by_channel_layer_and_element(shape):
    x, per_channel = torch.randn(shape), torch.randn(shape[1])
    per_element, per_layer = torch.randn(shape[1:]), torch.randn(1)
    ada_relu = lk.functional.ada_relu
    assert torch.equal(ada_relu(x, per_channel), ada_relu_by_loops(x, along(x, per_channel)))
    assert torch.equal(ada_relu(x, per_layer), ada_relu_by_loops(x, per_layer.expand(shape)))
    assert torch.equal(ada_relu(x, per_layer[0]), ada_relu_by_loops(x, per_layer.expand(shape)))
    assert torch.equal(ada_relu(x, per_element), ada_relu_by_loops(x, per_element.expand(shape)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fully_parametric_relu_has_a_slope_per_channel_and_sign(shape):
    x, positive, negative = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
    y = lk.functional.fully_parametric_relu(x, positive, negative)
    truth = x.clamp(min=0) * along(x, positive) + x.clamp(max=0) * along(x, negative)
    assert torch.equal(y, truth)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crelu_is_both_signs_on_channels(shape):
    x = torch.randn(shape)
    y = lk.functional.crelu(x)
    assert torch.equal(y[:, :3], x.clamp(min=0))
    assert torch.equal(y[:, 3:], -x.clamp(max=0))


def test_modules_start_as_a_relu():
    x = torch.randn(2, 3, 4, 5)
    for module in lk.AdaReLU(3), lk.AdaReLU(1), lk.AdaReLU((3, 4, 5)), lk.FullyParametricReLU(3):
        assert torch.equal(module(x), x.relu()), module


def test_nonfinite_values_travel():
    column = torch.tensor([[NAN, INF, -INF, 1.0]]).t()
    half, one, two, nothing, lowest = torch.tensor([[0.5], [1.0], [2.0], [0.0], [-INF]])
    parametric = lk.functional.fully_parametric_relu
    assert_values(lk.functional.ada_relu(column, half), [NAN, INF, 0.5, 1.0])
    assert_values(lk.functional.ada_relu(column, lowest), [NAN, INF, -INF, 1.0])
    assert_values(parametric(column, two, -one), [NAN, INF, INF, 2.0])
    # 0 · Inf is a NaN, as in PReLU; the slope that does not apply adds none.
    assert_values(parametric(column, one, nothing), [NAN, INF, NAN, 1.0])
    assert_values(lk.functional.crelu(column).t(), [NAN, INF, 0.0, 1.0, NAN, 0.0, INF, 0.0])


def assert_values(y, wanted):
    torch.testing.assert_close(y.flatten(), torch.tensor(wanted), rtol=0, atol=0, equal_nan=True)


def calls(channels):
    """Each function with parameters for so many channels."""
    first, second = torch.randn(2, channels)
    return {"ada_relu": lambda x: lk.functional.ada_relu(x, first),
            "fully_parametric_relu": lambda x: lk.functional.fully_parametric_relu(x, first, second),
            "crelu": lk.functional.crelu}


@pytest.mark.parametrize("name", calls(1))
def test_channels_last_is_kept(name):
    x, function = torch.randn(2, 3, 4, 5), calls(3)[name]
    y = function(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, function(x))


@pytest.mark.parametrize("name", calls(1))
@pytest.mark.parametrize("view", [
    lambda x: x[..., ::2], lambda x: x.transpose(1, 3), lambda x: x[:, 1:],
    lambda x: x[:1].expand(3, -1, -1, -1), lambda x: x[:, :1].expand(-1, 4, -1, -1),
], ids=["strided", "transposed", "channel slice", "expanded batch", "expanded channels"])
def test_layout_of_x_does_not_matter(name, view):
    x = view(torch.randn(2, 5, 3, 4))
    function = calls(x.shape[1])[name]
    assert torch.equal(function(x), function(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_rounds_once(dtype):
    x, first, second = torch.randn(2, 3, 4).to(dtype), *torch.randn(2, 3).to(dtype)
    for function, parameters in ((lk.functional.ada_relu, (first,)), (lk.functional.crelu, ()),
                                 (lk.functional.fully_parametric_relu, (first, second))):
        y, truth = function(x, *parameters), function(x.double(), *(value.double() for value in parameters))
        assert y.dtype == dtype
        assert torch.equal(y, truth.to(dtype))


def test_autocast_keeps_the_dtype_of_x():
    x = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    threshold, slopes = torch.randn(3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ada = lk.functional.ada_relu(x, threshold)
        parametric = lk.functional.fully_parametric_relu(x, *slopes)
    assert torch.equal(ada, lk.functional.ada_relu(x, threshold.bfloat16()))
    assert torch.equal(parametric, lk.functional.fully_parametric_relu(x, *slopes.bfloat16()))
    (ada.sum() + parametric.sum()).backward()
    assert threshold.grad.dtype == slopes.grad.dtype == torch.float32


# ---- the modules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shapes", "text"), [
    (lambda: lk.AdaReLU(3), {"threshold": (3,)}, "AdaReLU(3)"),
    (lambda: lk.AdaReLU(1), {"threshold": (1,)}, "AdaReLU(1)"),
    (lambda: lk.AdaReLU((3, 4, 5)), {"threshold": (3, 4, 5)}, "AdaReLU((3, 4, 5))"),
    (lambda: lk.FullyParametricReLU(3), {"positive_slope": (3,), "negative_slope": (3,)},
     "FullyParametricReLU(3)"),
    (lambda: lk.CReLU(), {}, "CReLU()"),
], ids=["channel", "layer", "element", "slopes", "crelu"])
def test_module_state_round_trip(make, shapes, text):
    module, other = make(), make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    state = module.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert repr(module) == text
    other.load_state_dict(state)
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_modules_take_device_and_dtype():
    assert lk.AdaReLU(3, device="meta", dtype=torch.float64).threshold.dtype == torch.float64
    module = lk.FullyParametricReLU(3, device="meta").to_empty(device="cpu")
    module.reset_parameters()
    assert (module.positive_slope.tolist(), module.negative_slope.tolist()) == ([1.0] * 3, [0.0] * 3)
