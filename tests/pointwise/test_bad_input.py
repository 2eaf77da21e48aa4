"""AdaReLU, FullyParametricReLU and CReLU refuse what does not fit, and say what they got and want."""

import re

import numpy as np
import pytest
import torch
from torch._dynamo.exc import TorchRuntimeError

import leni_kernels as lk
from leni_kernels.functional import ada_relu, crelu, fully_parametric_relu

X, VALUES = torch.randn(2, 3, 4), torch.randn(3)


@pytest.fixture(params=["chosen", "chosen, with gradients", "reference", "explained"])
def called(request):
    """How a function is called: what says no is another in each case, the kernel, its fake or the function."""
    if request.param == "explained":
        return lambda function, *call: lk.explain(function, *call)

    def run(function, *call):
        with lk.use_backend("reference" if request.param == "reference" else None):
            return function(*(tensor.requires_grad_(tensor.is_floating_point() and "gradients" in request.param)
                              for tensor in map(torch.Tensor.detach, call)))

    return run


@pytest.mark.parametrize("call", [
    lambda x: ada_relu(x, VALUES), lambda x: fully_parametric_relu(x, VALUES, VALUES), crelu,
], ids=["ada_relu", "fully_parametric_relu", "crelu"])
def test_x_needs_channels_and_a_floating_dtype(called, call):
    message = "x must be [N, C, *spatial] with C at least 1, got shape (12,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        called(call, torch.randn(12))
    with pytest.raises(ValueError, match=re.escape("C at least 1, got shape (2, 0, 4)")):
        called(call, X[:, :0])
    with pytest.raises(TypeError, match=re.escape("x must be floating-point, got torch.int64")):
        called(call, X.long())


@pytest.mark.parametrize(("threshold", "error", "message"), [
    (torch.randn(4), ValueError, "threshold must have shape [3] (one per channel), [1] (one for all), "
                                 "[3, 4] (one per element), got (4,)"),
    (torch.randn(1, 3, 1), ValueError, "got (1, 3, 1)"),
    (torch.randn(2, 3, 4), ValueError, "got (2, 3, 4)"),
    (torch.randn(4, 3), ValueError, "got (4, 3)"),
    (VALUES.double(), TypeError, "same dtype, got x torch.float32, threshold torch.float64"),
    (VALUES.to("meta"), ValueError, "same device, got x cpu, threshold meta"),
])
def test_ada_relu_names_what_it_got_and_wants(called, threshold, error, message):
    with pytest.raises(error, match="^ada_relu: .*" + re.escape(message)):
        called(ada_relu, X, threshold)


@pytest.mark.parametrize(("positive", "negative", "error", "message"), [
    (VALUES, VALUES[:1], ValueError, "negative_slope must have shape [3], got (1,)"),
    (torch.randn(4), VALUES, ValueError, "positive_slope must have shape [3], got (4,)"),
    (torch.randn(3, 1), VALUES, ValueError, "positive_slope must have shape [3], got (3, 1)"),
    (VALUES, VALUES.half(), TypeError,
     "same dtype, got x torch.float32, positive_slope torch.float32, negative_slope torch.float16"),
    (VALUES.to("meta"), VALUES, ValueError, "same device, got x cpu, positive_slope meta"),
])
def test_fully_parametric_relu_names_what_it_got_and_wants(called, positive, negative, error, message):
    with pytest.raises(error, match="^fully_parametric_relu: .*" + re.escape(message)):
        called(fully_parametric_relu, X, positive, negative)


def test_sizes_of_other_axes_do_not_pass_for_the_channels():
    with pytest.raises(ValueError, match=re.escape("[3] (one per channel)")):
        ada_relu(X, torch.randn(4))
    with pytest.raises(ValueError, match=re.escape("must have shape [3], got (2,)")):
        fully_parametric_relu(X, torch.randn(2), VALUES)


def test_tracing_says_what_does_not_fit():
    """In an error of its own, on older versions of PyTorch."""
    compiled = torch.compile(fully_parametric_relu, backend="eager")
    message = "positive_slope must have shape [3], got (4,)"
    with pytest.raises((ValueError, TorchRuntimeError), match=re.escape(message)):
        compiled(X, torch.randn(4), VALUES)


def test_backend_without_a_kernel_says_so():
    message = "backend 'triton' cannot run crelu"
    with lk.use_backend("triton"), pytest.raises(lk.BackendUnavailableError, match=message):
        crelu(X)


@pytest.mark.parametrize(("module", "message"), [
    (lk.AdaReLU(3), r"x must have 3 channels, got shape \(2, 4, 5\); or threshold must have shape \[4\] "),
    (lk.AdaReLU((3, 5)), r"x must have 3 channels, got shape \(2, 4, 5\); or threshold must have shape \[4\] "),
    (lk.FullyParametricReLU(3), r"x must have 3 channels, as the slopes have, got shape \(2, 4, 5\)"),
], ids=["AdaReLU", "AdaReLU of elements", "FullyParametricReLU"])
def test_of_other_channels_x_is_to_blame(called, module, message):
    with pytest.raises(ValueError, match=message):
        called(module, torch.randn(2, 4, 5))


@pytest.mark.parametrize("three", [3, np.int64(3), np.int32(3)])
def test_sizes_may_be_numpys(three):
    assert lk.AdaReLU(three)(X).shape == lk.FullyParametricReLU(three)(X).shape == X.shape
    assert lk.AdaReLU((three, np.int64(4))).threshold.shape == (3, 4)


@pytest.mark.parametrize("size", [True, 3.0, "3", None])
@pytest.mark.parametrize("module", [lk.AdaReLU, lk.FullyParametricReLU])
def test_what_is_no_size_is_refused(module, size):
    with pytest.raises(TypeError):
        module(size)
