"""Run by itself, with the extension's path: that it is loaded and its operators are right. Prints torch's version."""

import copy
import sys

import torch

import leni_kernels as lk

BLOCKS = (lk.LENI2d, lambda channels: lk.LENI2d(channels, separable=True), lk.Reborn2d,
          lambda channels: lk.ConvReLU2d(channels, 3, 3, padding=1), lk.AdaReLU, lk.FullyParametricReLU,
          lambda channels: lk.CReLU())


def step(backend, block, x):
    """The output, and the gradients of its sum of squares."""
    x = x.detach().requires_grad_()
    with lk.use_backend(backend):
        y = block(x)
    return y, *torch.autograd.grad(y.square().sum(), (x, *block.parameters()))


def compare(block, x, tolerance):
    results = step("cpp", block, x), step("reference", copy.deepcopy(block).double(), x.double())
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance, check_dtype=False)
    folded = lk.fold(block.eval())
    with torch.no_grad(), lk.use_backend("cpp"):
        y = folded(x)
    with torch.no_grad(), lk.use_backend("reference"):
        torch.testing.assert_close(y, folded.double()(x.double()), rtol=tolerance, atol=tolerance, check_dtype=False)


def compare_all():
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        for layout in (torch.contiguous_format, torch.channels_last):
            for block in BLOCKS:
                x = torch.randn(2, 8, 5, 6).to(dtype).contiguous(memory_format=layout)
                compare(block(8).to(dtype), x, tolerance)


if __name__ == "__main__":
    assert str(lk.library_path()) == sys.argv[1]
    torch.manual_seed(0)
    compare_all()
    print(torch.__version__)
