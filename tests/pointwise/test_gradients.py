"""AdaReLU's, FullyParametricReLU's and CReLU's gradients: against finite differences, and at exact ties."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import leni_kernels as lk
from leni_kernels.common.gpu import support

FAST = support.interpreting
"""Whether gradcheck takes random directions only: a launch in Triton's interpreter takes 10 ms."""

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [(4, 3), (2, 3, 4), (3, 3, 3, 3), (1, 3, 2, 2, 2)]


def off_kinks(shape):
    """x in float64, at least 0.2 from every integer."""
    x = torch.randint(-2, 2, shape) + 0.5 + 0.6 * (torch.rand(shape, dtype=torch.float64) - 0.5)
    return x.requires_grad_()


def integers(*shape):
    return torch.randint(-2, 3, shape).double().requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sharing", ["channel", "layer", "element"])
def test_ada_relu_gradcheck(shape, sharing):
    threshold = integers(*{"channel": shape[1:2], "layer": (1,), "element": shape[1:]}[sharing])
    assert gradcheck(lk.functional.ada_relu, (off_kinks(shape), threshold), fast_mode=FAST)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fully_parametric_relu_gradcheck(shape):
    slopes = torch.randn(2, shape[1], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lk.functional.fully_parametric_relu, (off_kinks(shape), *slopes.unbind()), fast_mode=FAST)
    assert gradgradcheck(lk.functional.fully_parametric_relu, (off_kinks(shape), *slopes.unbind()), fast_mode=FAST)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crelu_gradcheck(shape):
    assert gradcheck(lk.functional.crelu, (off_kinks(shape),), fast_mode=FAST)


def test_ada_relu_tie_goes_to_the_threshold():
    x = torch.tensor([[1.5, 1.5], [2.0, 1.0]], requires_grad=True)
    threshold = torch.tensor([1.5, 1.0], requires_grad=True)
    lk.functional.ada_relu(x, threshold).backward(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]))
    assert x.grad.tolist() == [[0.0, 10.0], [100.0, 0.0]]
    assert threshold.grad.tolist() == [1.0, 1000.0]


def test_fully_parametric_relu_slope_at_zero_is_the_negative_one():
    x = torch.tensor([[0.0, -0.0]], requires_grad=True)
    slopes = torch.tensor([[2.0, 2.0], [5.0, 7.0]], requires_grad=True)
    lk.functional.fully_parametric_relu(x, *slopes).sum().backward()
    assert x.grad.tolist() == [[5.0, 7.0]]
    assert slopes.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_crelu_gradient_at_zero_is_zero():
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0]]).t().requires_grad_()
    lk.functional.crelu(x).backward(torch.tensor([[2.0, 3.0]]).expand(4, 2))
    assert x.grad.flatten().tolist() == [0.0, 0.0, 2.0, -3.0]


def test_infinite_x_gives_no_nan_to_the_slope_that_does_not_apply():
    x = torch.tensor([[torch.inf]], requires_grad=True)
    positive, negative = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    lk.functional.fully_parametric_relu(x, positive, negative).sum().backward()
    assert (x.grad.item(), positive.grad.item(), negative.grad.item()) == (1.0, torch.inf, 0.0)


@pytest.mark.parametrize("make", [
    lambda: lk.AdaReLU(3), lambda: lk.AdaReLU((3, 3, 4)), lambda: lk.FullyParametricReLU(3), lk.CReLU,
], ids=["channel", "element", "slopes", "crelu"])
@pytest.mark.parametrize("layout", [
    lambda grad: grad.repeat_interleave(2, dim=3)[..., ::2],
    lambda grad: grad[:1, :1, :1, :1].expand_as(grad),
    lambda grad: grad.contiguous(memory_format=torch.channels_last),
    lambda grad: torch.cat([grad, grad], dim=1)[:, grad.shape[1]:],
], ids=["strided", "expanded", "channels-last", "slice"])
def test_layout_of_the_output_gradient_does_not_matter(make, layout):
    module, x = make(), torch.randn(2, 3, 3, 4, requires_grad=True)
    inputs, y = (x, *module.parameters()), module(x)
    grad = layout(torch.randn_like(y))
    got = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    wanted = torch.autograd.grad(y, inputs, grad.clone(memory_format=torch.contiguous_format))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("make", [lambda: lk.AdaReLU(3), lambda: lk.FullyParametricReLU(3)],
                         ids=["threshold", "slopes"])
def test_either_side_alone_may_need_a_gradient(make):
    module, x = make(), torch.randn(2, 3, 4)
    with_x = torch.autograd.grad(module(x.requires_grad_()).sum(), (x, *module.parameters()))
    without_x = torch.autograd.grad(module(x.detach()).sum(), tuple(module.parameters()))
    torch.testing.assert_close(without_x, with_x[1:])
    frozen = {name: parameter.detach() for name, parameter in module.named_parameters()}
    y = torch.func.functional_call(module, frozen, x)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], with_x[0])
