"""ConvReLU's gradients: against finite differences off the kinks, and as stated at exact ties."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import leni_kernels as lk
from leni_kernels.common import extension

FUNCTIONS = {1: lk.functional.conv_relu1d, 2: lk.functional.conv_relu2d, 3: lk.functional.conv_relu3d}
CASES = {
    "1d": ((2, 3, 6), (2, 3, 3), {"padding": 1}),
    "1d unbatched": ((2, 6), (2, 1, 3), {"stride": 2, "groups": 2}),
    "2d": ((2, 2, 4, 3), (2, 2, 3, 2), {"padding": (1, 0)}),
    "2d groups": ((1, 4, 6, 5), (4, 2, 2, 3), {"groups": 2, "stride": (2, 1), "dilation": (3, 1),
                                             "padding": 1}),
    "2d same, even kernel": ((1, 2, 3, 4), (2, 2, 2, 4), {"padding": "same"}),
    "3d": ((1, 2, 3, 3, 2), (2, 1, 2, 2, 1), {"padding": (0, 1, 0), "groups": 2}),
}


pytestmark = pytest.mark.usefixtures("each_backend")


def off_kinks(x_shape, weight_shape):
    """x, weight, threshold, bias in float64, with every threshold at least 0.15 from every x and from 0."""
    channels = x_shape[1 - len(weight_shape)]
    x = near_integers_and(0.5, x_shape)
    threshold = near_integers_and(0.25, (channels, *weight_shape[2:]))
    weight, bias = torch.randn(weight_shape).double(), torch.randn(weight_shape[0]).double()
    return tuple(tensor.requires_grad_() for tensor in (x, weight, threshold, bias))


def near_integers_and(fraction, shape):
    return torch.randint(-2, 2, shape) + fraction + 0.1 * (torch.rand(shape, dtype=torch.float64) - 0.5)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case):
    x_shape, weight_shape, options = CASES[case]
    function = FUNCTIONS[len(weight_shape) - 2]
    assert gradcheck(lambda *tensors: function(*tensors, **options), off_kinks(x_shape, weight_shape))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=pytest.mark.skipif(
    extension.why_missing is not None, reason=str(extension.why_missing)))])
def test_second_derivatives(backend):
    tensors = off_kinks((1, 2, 4), (2, 2, 2))
    with lk.use_backend(backend):
        assert gradgradcheck(lambda *tensors: lk.functional.conv_relu1d(*tensors, padding=1), tensors)


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_x_and_the_parameters_are_kept(dtype):
    module, x = lk.ConvReLU2d(3, 4, 3, padding=1).to(dtype), torch.randn(2, 3, 6, 5, dtype=dtype, requires_grad=True)
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor)
    with lk.use_backend("cpp"), keep:
        module(x)
    given = {tensor.data_ptr() for tensor in (x, *module.parameters())}
    assert kept
    assert {tensor.data_ptr() for tensor in kept} <= given


def gradients(x, weight, threshold, padding=0):
    """The gradients of the sum of one-dimensional ConvReLU for x and the threshold, as lists."""
    x, threshold = torch.tensor([[x]]).requires_grad_(), torch.tensor([threshold]).requires_grad_()
    lk.functional.conv_relu1d(x, torch.tensor([[weight]]), threshold, padding=padding).sum().backward()
    return x.grad.flatten().tolist(), threshold.grad.flatten().tolist()


def test_at_a_tie_the_gradient_goes_to_the_threshold():
    assert gradients([1.0, 0.0, -1.0], [3.0], [0.0]) == ([3.0, 0.0, 0.0], [6.0])
    assert gradients([1.5, 1.5, 1.5], [1.0, 10.0], [1.5, 1.0]) == ([0.0, 10.0, 10.0], [2.0, 0.0])


@pytest.mark.parametrize(("threshold", "to_threshold"), [
    (0.5, [1.0, 0.0, 100.0]),
    (0.0, [1.0, 0.0, 100.0]),
    (-0.5, [0.0, 0.0, 0.0]),
], ids=["above the added zeros", "at the added zeros", "below the added zeros"])
def test_added_sites_pass_their_gradient_to_the_threshold(threshold, to_threshold):
    # One output: its middle tap reads x, the outer ones read added sites.
    assert gradients([2.0], [1.0, 10.0, 100.0], [threshold] * 3, padding=1) == ([10.0], to_threshold)


@pytest.mark.parametrize("layout", [
    lambda grad: grad.repeat_interleave(2, dim=3)[..., ::2],
    lambda grad: grad[:1, :1, :1, :1].expand_as(grad),
    lambda grad: grad.contiguous(memory_format=torch.channels_last),
    lambda grad: torch.cat([grad, grad], dim=1)[:, grad.shape[1]:],
], ids=["strided", "expanded", "channels-last", "slice"])
def test_layout_of_the_output_gradient_does_not_matter(layout):
    tensors = off_kinks((2, 4, 6, 5), (4, 2, 3, 3))
    y = lk.functional.conv_relu2d(*tensors, padding=1, groups=2)
    grad = layout(torch.randn_like(y))
    got = torch.autograd.grad(y, tensors, grad, retain_graph=True)
    wanted = torch.autograd.grad(y, tensors, grad.clone(memory_format=torch.contiguous_format))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alone", range(4), ids=["x", "weight", "threshold", "bias"])
def test_one_input_alone_may_need_a_gradient(alone):
    tensors = off_kinks((2, 3, 5), (2, 3, 3))
    wanted = torch.autograd.grad(lk.functional.conv_relu1d(*tensors, padding=1).sum(), tensors)[alone]
    detached = [tensor.detach() for tensor in tensors]
    detached[alone].requires_grad_()
    y = lk.functional.conv_relu1d(*detached, padding=1)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), detached[alone])[0], wanted)


def test_empty_batch_gives_zero_gradients():
    module = lk.ConvReLU2d(3, 4, 3)
    module(torch.randn(0, 3, 5, 5)).sum().backward()
    assert all(not parameter.grad.any() for parameter in module.parameters())
