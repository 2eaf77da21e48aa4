"""LENI's reference is what the paper writes: against loops, and folded."""


import pytest
import torch
from definitions import (
    block_by_loops,
    by_reference,  # noqa: F401
    close,
    exact_input,
    off_the_kinks,
    random_norm,
    weights,
)
from torch.autograd import gradcheck

from leni_kernels import functional
from leni_kernels.leni import reference

separable = pytest.mark.parametrize("separable", [False, True], ids=["depthwise", "separable"])
"""Both readings of the paper's depthwise separable deconvolution."""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "kernel_size", "plane"),
                         [(2, 3, (4, 3)), (1, 5, (3, 4)), (3, 1, (2, 2))])
@separable
def test_leni_is_the_papers_formula(make_leni, channels, kernel_size, plane, training, separable):
    block = make_leni(channels, kernel_size, torch.float64, separable=separable).train(training)
    x = exact_input(2, channels, *plane)
    with torch.no_grad():
        expected = block_by_loops(block, x)
        close(block(x), expected)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@separable
def test_folded_leni_is_leni(make_leni, kernel_size, bias, affine, separable):
    block = make_leni(6, kernel_size, torch.float64, separable=separable)
    layers = block.parameters_for_kernels()
    if not bias:
        layers = layers._replace(compress_bias=None)
    if not affine:
        layers = layers._replace(negative_norm=layers.negative_norm._replace(weight=None),
                                 fusion_norm=layers.fusion_norm._replace(bias=None))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        close(reference.leni_folded(x, *reference.fold_leni(*layers)), functional.leni(x, *layers))


@pytest.mark.parametrize("training", [False, True])
@separable
def test_leni_gradcheck(training, separable):
    deconv, compress, bias = weights((2, 1, 3, 3), (2, 4, 1, 1), (2,))
    pointwise = weights((2, 2, 1, 1)) if separable else []
    negative, fusion = random_norm(2, training), random_norm(4, training)

    def call(x, deconv, gamma1, beta1, gamma2, beta2, compress, bias, *pointwise):
        return functional.leni(x, deconv, negative._replace(weight=gamma1, bias=beta1),
                               fusion._replace(weight=gamma2, bias=beta2), compress, bias, *pointwise)

    assert gradcheck(call, (off_the_kinks(2, 2, 3, 4), deconv, negative.weight, negative.bias,
                            fusion.weight, fusion.bias, compress, bias, *pointwise))


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_folded_leni_gradcheck(kernel_size):
    assert gradcheck(functional.leni_folded, (off_the_kinks(2, 2, 3, 4),
                                              *weights((2, kernel_size, kernel_size), (2, 4), (2,))))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("plane", [(1, 1), (1, 6), (7, 4)])
def test_the_written_backward_is_autograds(make_folded, kernel_size, plane):
    folded = [tensor.requires_grad_() for tensor in make_folded(3, kernel_size, torch.float64)]
    x = torch.randn(2, 3, *plane, dtype=torch.float64)
    x = x.masked_fill(torch.rand_like(x) < 0.2, 0).requires_grad_()
    y = reference.leni_folded(x, *folded)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, *folded), grad)
    with torch.no_grad():
        written = reference.leni_folded_backward(grad, x, *folded[:2], None, (True, True, True, True))
    for actual, wanted in zip(written, expected, strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("only", range(4))
def test_the_written_backward_gives_only_what_is_needed(make_folded, only):
    taps, weight, _ = make_folded(3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    grad = torch.randn_like(x)
    every = reference.leni_folded_backward(grad, x, taps, weight, None, (True,) * 4)
    one = reference.leni_folded_backward(grad, x, taps, weight, None, tuple(index == only for index in range(4)))
    assert torch.equal(one[only], every[only])
    assert [gradient is None for gradient in one] == [index != only for index in range(4)]


@pytest.mark.parametrize("half_precision", [torch.bfloat16, torch.float16])
def test_gradients_of_float32_parameters_sum_in_float32(make_folded, half_precision):
    folded = make_folded(3)
    x = torch.randn(2, 3, 40, 40).to(half_precision)
    grad = torch.randn_like(x)
    got = reference.leni_folded_backward(grad, x, *folded[:2], None, (True,) * 4)
    assert [gradient.dtype for gradient in got] == [half_precision] + [torch.float32] * 3
    close(got[3], grad.float().sum((0, 2, 3)), 1e-6)
