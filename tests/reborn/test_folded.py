"""Folded Reborn as one convolution whose taps take the minimum or the maximum, against its layers in float64."""

import pytest
import torch

import leni_kernels as lk
from leni_kernels.common import extension
from leni_kernels.reborn import ops as reborn_ops
from leni_kernels.reborn import reference as reborn_reference
from leni_kernels.two_branch.reference import folding_dtype

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))


def folded(channels, kernel_size, dtype):
    wide = folding_dtype(dtype)
    return (torch.randn(channels, channels, kernel_size, kernel_size, dtype=wide) / (channels * kernel_size**2) ** 0.5,
            torch.randn(channels, 2 * channels, dtype=wide) / channels**0.5, torch.randn(channels, dtype=wide))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels-last"])
@pytest.mark.parametrize(("channels", "kernel_size", "height", "width"),
                         [(5, 3, 6, 7), (20, 1, 9, 11), (33, 5, 13, 9), (3, 7, 4, 3), (64, 3, 14, 14)])
def test_against_the_layers(channels, kernel_size, height, width, memory_format, dtype):
    parameters = folded(channels, kernel_size, dtype)
    x = torch.randn(2, channels, height, width).to(dtype).contiguous(memory_format=memory_format)
    exact = reborn_reference.reborn_folded(x.double(), *(tensor.double() for tensor in parameters), 1)
    with lk.use_backend("cpp"):
        y = reborn_ops.reborn_folded(x, *parameters)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-11 + 1e-5}.get(dtype, 0) * exact.abs().max()
    if dtype == torch.bfloat16:
        limit = 2 * (reborn_reference.reborn_folded(x, *parameters, 1).double() - exact).abs().max()
    assert (y.double() - exact).abs().max() <= limit


def test_fold_uses_it(make_reborn):
    block, x = make_reborn(16), torch.randn(2, 16, 9, 8)
    decision, = lk.explain(lk.fold(block), x)
    assert (decision.operation, decision.backend) == ("reborn_folded", "cpp")
    torch.testing.assert_close(lk.fold(block)(x), block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("groups", "size", "needs_gradient", "reason"), [
    (4, 9, False, "the deconvolution has groups"),
    (1, 2, False, "x has fewer sites than channels"),
    (1, 9, True, "a gradient is asked for"),
])
def test_explain_says_when_the_layers_are_better(make_reborn, groups, size, needs_gradient, reason):
    block = lk.fold(make_reborn(16, groups=groups))
    x = torch.randn(1, 16, size, size, requires_grad=needs_gradient)
    decision, = lk.explain(block, x)
    assert decision.backend == "reference"
    assert reason in decision.why_not["cpp"]
    with lk.use_backend("cpp"), pytest.raises(lk.BackendUnavailableError, match=reason):
        block(x)


def test_gradient_of_a_folded_block(make_reborn):
    block = make_reborn(8, dtype=torch.float64)
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    got, wanted = (torch.autograd.grad(module(x).square().sum(), x)[0] for module in (lk.fold(block), block))
    torch.testing.assert_close(got, wanted)
