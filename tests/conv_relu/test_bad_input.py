"""ConvReLU refuses what does not fit, and says what it got and what it wants."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import leni_kernels as lk

X, WEIGHT = torch.randn(2, 4, 6, 5), torch.randn(6, 2, 3, 3)
THRESHOLD, BIAS = torch.randn(4, 3, 3), torch.randn(6)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"x": X[0, 0]}, ValueError, "x must be [N, C, H, W] or [C, H, W], got shape (6, 5)"),
    ({"x": X[None]}, ValueError, "x must be [N, C, H, W] or [C, H, W], got shape (1, 2, 4, 6, 5)"),
    ({"x": X.int()}, TypeError, "x must be floating-point, got torch.int32"),
    ({"x": X[:, :3]}, ValueError, "x must have shape [N, 4, H, W], got (2, 3, 6, 5)"),
    ({"x": X[0, :3]}, ValueError, "x must have shape [4, H, W], got (3, 6, 5)"),
    ({"x": X[:, :, :2]}, ValueError, "the dilated kernel [3, 3] must fit into the padded x [2, 5]; "
                                     "got x of shape (2, 4, 2, 5)"),
    ({"x": X[:, :, :0]}, ValueError, "must fit into the padded x [0, 5]"),
    ({"dilation": (1, 2), "padding": (2, 0), "x": X[..., :4]}, ValueError,
     "the dilated kernel [3, 5] must fit into the padded x [10, 4]"),
    ({"weight": WEIGHT[0]}, ValueError, "weight must have shape [O, C // groups, kh, kw], got (2, 3, 3)"),
    ({"weight": WEIGHT[..., :0]}, ValueError, "kernel size must be 1 or 2 numbers, each >= 1, got (3, 0)"),
    ({"threshold": THRESHOLD[:2]}, ValueError, "threshold must have shape [4, 3, 3], got (2, 3, 3)"),
    ({"threshold": THRESHOLD[..., :2]}, ValueError, "threshold must have shape [4, 3, 3], got (4, 3, 2)"),
    ({"threshold": THRESHOLD[:, 0, 0]}, ValueError, "threshold must have shape [4, 3, 3], got (4,)"),
    ({"bias": BIAS[:4]}, ValueError, "bias must have shape [6], got (4,)"),
    ({"groups": 4}, ValueError, "groups must divide the 6 channels, got 4"),
    ({"groups": 0}, ValueError, "groups must divide the 6 channels, got 0"),
    ({"stride": 0}, ValueError, "stride must be 1 or 2 numbers, each >= 1, got (0,)"),
    ({"stride": (1, 1, 1)}, ValueError, "stride must be 1 or 2 numbers, each >= 1, got (1, 1, 1)"),
    ({"dilation": -1}, ValueError, "dilation must be 1 or 2 numbers, each >= 1, got (-1,)"),
    ({"padding": (0, -1)}, ValueError, "padding must be 1 or 2 numbers, each >= 0, got (0, -1)"),
    ({"padding": "full"}, ValueError, "padding must be 'same', 'valid' or numbers, got 'full'"),
    ({"padding": "same", "stride": 2}, ValueError, "padding 'same' must have stride 1, got (2, 2)"),
    ({"x": X.double()}, TypeError, "same dtype, got x torch.float64, weight torch.float32"),
    ({"threshold": THRESHOLD.half()}, TypeError, "threshold torch.float16"),
    ({"bias": BIAS.to("meta")}, ValueError, "same device, got x cpu, weight cpu, threshold cpu, bias meta"),
])
def test_function_names_what_it_got_and_wants(changes, error, message):
    arguments = {"x": X, "weight": WEIGHT, "threshold": THRESHOLD, "bias": BIAS, "groups": 2, **changes}
    with pytest.raises(error, match="^conv_relu2d: .*" + re.escape(message)):
        lk.functional.conv_relu2d(**arguments)


def test_messages_name_the_dimensions():
    message = "conv_relu1d: x must be [N, C, W] or [C, W], got shape (3,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        lk.functional.conv_relu1d(torch.randn(3), torch.randn(2, 3, 1), torch.randn(3, 1))
    message = "conv_relu3d: weight must have shape [O, C // groups, kd, kh, kw], got (2, 3, 1)"
    with pytest.raises(ValueError, match=re.escape(message)):
        lk.functional.conv_relu3d(torch.randn(1, 3, 4, 4, 4), torch.randn(2, 3, 1), torch.randn(3, 1))


def test_autocast_does_not_reach_float64():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="must have the same dtype"):
        lk.functional.conv_relu2d(X.double(), WEIGHT, THRESHOLD, BIAS, groups=2)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_module_names_the_rank(padding_mode):
    module = lk.ConvReLU2d(4, 6, 3, padding=1, padding_mode=padding_mode)
    with pytest.raises(ValueError, match=re.escape("x must be [N, C, H, W] or [C, H, W], got shape (4, 6)")):
        module(torch.randn(4, 6))


def test_module_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="divisible by groups"):
        lk.ConvReLU2d(4, 6, 3, groups=4)


def test_backend_without_a_kernel_says_so():
    message = "backend 'triton' cannot run conv_relu2d"
    with lk.use_backend("triton"), pytest.raises(lk.BackendUnavailableError, match=message):
        lk.functional.conv_relu2d(X, WEIGHT, THRESHOLD, BIAS, groups=2)


INTEGERS = {"stride": np.int64(2), "padding": np.int32(1), "dilation": np.int64(2), "groups": np.int64(2)}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_integers_of_numpy_are_integers(name, backend):
    value = INTEGERS[name]
    weight = torch.randn(6, 2 if name == "groups" else 4, 3, 3)
    options = [{name: value}] + [{name: (value, int(value))}] * (name != "groups")
    with lk.use_backend(backend):
        for given in options:
            y = lk.functional.conv_relu2d(X, weight, THRESHOLD, **given)
            assert torch.equal(y, lk.functional.conv_relu2d(X, weight, THRESHOLD, **{name: int(value)}))
        module = lk.ConvReLU2d(np.int64(4), np.int64(6), np.int64(3), **{name: value})
        assert module(X).shape == y.shape


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [True, 2.0, np.float32(2), None])
def test_what_is_no_integer_is_refused_as_torch_refuses_it(name, value):
    message = f"conv_relu2d: {name} must be an integer, got {re.escape(repr(value))}"
    with pytest.raises(TypeError, match=message):
        lk.functional.conv_relu2d(X, torch.randn(6, 4, 3, 3), THRESHOLD, **{name: value})
    with pytest.raises(TypeError):
        nn.functional.conv2d(X, torch.randn(6, 4, 3, 3), **{name: value})


def test_of_other_channels_x_is_to_blame_as_it_came():
    module = lk.ConvReLU2d(4, 6, 3, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"ConvReLU2d: x must have shape \[N, 4, H, W\], got \(2, 5, 6, 7\)"):
        module(torch.randn(2, 5, 6, 7))
    with pytest.raises(ValueError, match=r"ConvReLU2d: x must have shape \[4, H, W\], got \(5, 6, 7\)"):
        module(torch.randn(5, 6, 7))
