"""Reborn's reference is what the paper writes: against loops, and folded."""


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
from leni_kernels.reborn import reference


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "kernel_size", "groups"), [(2, 3, 1), (4, 3, 2), (2, 5, 2), (1, 3, 1)])
def test_reborn_is_the_papers_formula(make_reborn, channels, kernel_size, groups, training):
    block = make_reborn(channels, kernel_size, groups, torch.float64).train(training)
    x = exact_input(2, channels, 3, 4)
    with torch.no_grad():
        expected = block_by_loops(block, x)
        close(block(x), expected)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_reborn_is_reborn(make_reborn, kernel_size, groups, bias):
    layers = make_reborn(6, kernel_size, groups, torch.float64).parameters_for_kernels()
    if not bias:
        layers = layers._replace(compress_bias=None)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        folded = reference.fold_reborn(*layers)
        close(reference.reborn_folded(x, *folded, groups), functional.reborn(x, *layers))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_reborn_gradcheck(training, groups):
    deconv, compress, bias = weights((2, 2 // groups, 3, 3), (2, 4, 1, 1), (2,))
    negative = random_norm(2, training)

    def call(x, deconv, gamma, beta, compress, bias):
        norm = negative._replace(weight=gamma, bias=beta)
        return functional.reborn(x, deconv, norm, compress, bias, groups)

    x = off_the_kinks(2, 2, 3, 4)
    assert gradcheck(call, (x, deconv, negative.weight, negative.bias, compress, bias))
