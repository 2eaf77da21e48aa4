"""The references at ties, with NaN and Inf, and in every floating dtype."""

import math

import pytest
import torch
from definitions import (
    by_reference,  # noqa: F401
    )

from leni_kernels.two_branch.reference import split_signs


def test_ties_pass_no_gradient():
    x = torch.tensor([-1.0, -0.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    positive, negative = split_signs(x)
    assert torch.autograd.grad(positive.sum(), x)[0].tolist() == [0, 0, 0, 1]
    assert torch.autograd.grad(negative.sum(), x)[0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("name", ["leni", "reborn"])
def test_a_block_passes_no_gradient_at_ties(request, name):
    block = request.getfixturevalue(f"make_{name}")(3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    ties = torch.rand_like(x) < 0.3
    x = x.masked_fill(ties, 0).requires_grad_()
    gradient, = torch.autograd.grad(block(x).square().sum(), x)
    assert torch.equal(gradient == 0, ties)


@pytest.mark.parametrize("name", ["leni", "reborn"])
def test_nan_and_inf_travel(request, name):
    block = request.getfixturevalue(f"make_{name}")(2, dtype=torch.float64)
    neighbourhood = torch.zeros(5, 6, dtype=torch.bool)
    neighbourhood[1:4, 2:5] = True
    centre = torch.zeros_like(neighbourhood)
    centre[2, 3] = True
    for value, reached in ((math.nan, neighbourhood), (-math.inf, neighbourhood), (math.inf, centre)):
        x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
        x[0, :, 2, 3] = value
        with torch.no_grad():
            assert torch.equal(~block(x)[0].isfinite(), reached.expand(2, 5, 6)), value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["leni", "reborn"])
@pytest.mark.parametrize("training", [False, True])
def test_every_floating_dtype_works(request, name, dtype, training):
    block = request.getfixturevalue(f"make_{name}")(4, dtype=dtype).train(training)
    x = torch.randn(2, 4, 5, 6, dtype=dtype, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert y.isfinite().all()
