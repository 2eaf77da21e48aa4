"""Gradients through LENI in eval mode: the reference's, on every backend, for gradients of any layout."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from training_steps import GRADIENTS

import leni_kernels as lk
from leni_kernels import functional
from leni_kernels.leni import reference

NAMES = ("x", "taps", "weight", "bias")


def inputs(make_folded, channels=3, plane=(4, 5), kernel_size=3, memory_format=torch.contiguous_format):
    x = torch.randn(2, channels, *plane, dtype=torch.float64).to(memory_format=memory_format)
    x = x + 0.05 * x.sign()
    return [tensor.requires_grad_() for tensor in (x, *make_folded(channels, kernel_size, torch.float64))]


def gradients(backend, tensors, grad):
    with lk.use_backend(backend):
        return torch.autograd.grad(functional.leni_folded(*tensors), tensors, grad)


def autograd_of_the_definition(tensors, grad):
    return torch.autograd.grad(reference.leni_folded(*tensors), tensors, grad)


def assert_close(actual, expected, names=NAMES, tolerance=1e-10):
    for name, got, wanted in zip(names, actual, expected, strict=True):
        assert got.shape == wanted.shape, name
        assert got.dtype == wanted.dtype, name
        assert (got - wanted).abs().max() <= tolerance * max(1, wanted.abs().max()), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_gradcheck(backend, make_folded, kernel_size, memory_format):
    with lk.use_backend(backend):
        assert gradcheck(functional.leni_folded, inputs(make_folded, 2, (3, 4), kernel_size, memory_format))


def test_double_backward(backend, make_folded):
    with lk.use_backend(backend):
        assert gradgradcheck(functional.leni_folded, inputs(make_folded, 2, (3, 3)))


@pytest.mark.parametrize("make_grad", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_any_layout(backend, make_folded, memory_format, make_grad):
    tensors = inputs(make_folded, 5, (6, 7), memory_format=memory_format)
    grad = make_grad(*tensors[0].shape)
    assert_close(gradients(backend, tensors, grad), autograd_of_the_definition(tensors, grad))


@pytest.mark.parametrize("take", [lambda x: x[:, :, 1:-1, 2:], lambda x: x[:, 2:], lambda x: x[..., ::2],
                                  lambda x: x[:1].expand(3, -1, -1, -1), lambda x: x.transpose(2, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_reach_the_larger_tensor(make_folded, memory_format, take):
    larger, *_ = inputs(make_folded, 6, (7, 8), memory_format=memory_format)
    x = take(larger)
    tensors = [larger, *(tensor.requires_grad_() for tensor in make_folded(x.shape[1], dtype=torch.float64))]
    grad = torch.randn(x.shape, dtype=torch.float64)
    got = torch.autograd.grad(functional.leni_folded(x, *tensors[1:]), tensors, grad)
    wanted = torch.autograd.grad(reference.leni_folded(take(larger), *tensors[1:]), tensors, grad)
    assert_close(got, wanted)


@pytest.mark.parametrize("wanted", NAMES)
def test_only_what_is_needed(backend, make_folded, wanted):
    tensors = [tensor.detach() for tensor in inputs(make_folded)]
    needed = tensors[NAMES.index(wanted)].requires_grad_()
    grad = torch.randn_like(tensors[0])
    with lk.use_backend(backend):
        functional.leni_folded(*tensors).backward(grad)
    assert_close([needed.grad], torch.autograd.grad(reference.leni_folded(*tensors), needed, grad), [wanted])
    assert [tensor.grad is None for tensor in tensors] == [name != wanted for name in NAMES]


def test_gradients_of_an_empty_batch(backend, make_folded):
    x = torch.empty(0, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    folded = [tensor.requires_grad_() for tensor in make_folded(4, dtype=torch.float64)]
    got = gradients(backend, (x, *folded), torch.empty_like(x))
    assert got[0].shape == x.shape
    assert not any(gradient.any() for gradient in got[1:])


def test_no_gradient_at_ties(backend, make_folded):
    x, *folded = inputs(make_folded)
    ties = torch.rand_like(x) < 0.3
    x = x.detach().masked_fill(ties, 0).requires_grad_()
    gradient, *_ = gradients(backend, (x, *folded), torch.randn_like(x))
    assert torch.equal(gradient == 0, ties)


@pytest.mark.parametrize("training_part", ["everything", "x", "parameters"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_through_the_block_in_eval_mode(backend, make_leni, memory_format, training_part):
    block = make_leni(5, dtype=torch.float64).requires_grad_(training_part != "x")
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64).to(memory_format=memory_format)
    x.requires_grad_(training_part != "parameters")
    names, tensors = zip(*((name, tensor) for name, tensor in [("x", x), *block.named_parameters()]
                           if tensor.requires_grad), strict=True)
    grad = torch.randn_like(x)
    results = []
    for name in (backend, "reference"):
        with lk.use_backend(name):
            results.append(torch.autograd.grad(block(x), tensors, grad))
    assert_close(*results, names)


def test_input_gradients_of_folded_blocks(backend, make_leni):
    block = make_leni(5, dtype=torch.float64)
    folded = lk.fold(block)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(block(x), x, grad)
    with lk.use_backend(backend):
        assert_close(torch.autograd.grad(folded(x), x, grad), expected, ["x"])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_in_half_precision(backend, make_leni, memory_format):
    block = make_leni(32, dtype=torch.bfloat16)
    x = torch.randn(2, 32, 9, 11).bfloat16().to(memory_format=memory_format).requires_grad_()
    grad = torch.randn_like(x)

    def errors(name):
        with lk.use_backend(name):
            got = torch.autograd.grad(block(x), (x, *block.parameters()), grad)
        return [(gradient - wanted).abs().max() for gradient, wanted in zip(got, exact, strict=True)]

    parameters = {name: value.detach().double().requires_grad_() for name, value in block.named_parameters()}
    buffers = {name: value.double() for name, value in block.named_buffers()}
    exact_x = x.detach().double().requires_grad_()
    with lk.use_backend("reference"):
        exact_y = torch.func.functional_call(block, {**parameters, **buffers}, exact_x)
    exact = torch.autograd.grad(exact_y, (exact_x, *parameters.values()), grad.double())
    for error, composed in zip(errors(backend), errors("reference"), strict=True):
        assert error <= 2 * composed
