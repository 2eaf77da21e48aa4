"""Fixtures: LENI and Reborn blocks with nothing trivial in them, and the backends that they can run on."""

import pytest
import torch

import leni_kernels as lk
from leni_kernels.common import extension


def _available(name):
    if name == "cpp" and extension.why_missing is not None:
        pytest.skip(extension.why_missing)
    return name


@pytest.fixture(params=["reference", "cpp"])
def backend(request):
    """Each backend of LENI inference that a CPU has."""
    return _available(request.param)


@pytest.fixture(params=["cpp"])
def kernel_backend(request):
    """Each fused backend of LENI inference that a CPU has."""
    return _available(request.param)


def _randomise(block):
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.normal_(1, 0.5)
                module.bias.normal_(0, 0.5)
    return block


@pytest.fixture
def make_leni():
    """LENI2d in eval mode with random statistics, affine parameters and two different eps."""

    def make(channels, kernel_size=3, dtype=torch.float32, **options):
        block = lk.LENI2d(channels, kernel_size, eps=1e-3, **options)
        block.bn_fusion.eps = 1e-2
        return _randomise(block).to(dtype).eval()

    return make


@pytest.fixture
def make_reborn():
    """Reborn2d in eval mode with random statistics and affine parameters."""

    def make(channels, kernel_size=3, groups=1, dtype=torch.float32, **options):
        return _randomise(lk.Reborn2d(channels, kernel_size, groups, eps=1e-3, **options)).to(dtype).eval()

    return make


@pytest.fixture
def make_folded():
    """Taps, weight and bias of a folded block, whose outputs are of order 1 at any width."""

    def make(channels, kernel_size=3, dtype=torch.float32):
        return (torch.randn(channels, kernel_size, kernel_size, dtype=dtype) / kernel_size,
                torch.randn(channels, 2 * channels, dtype=dtype) / channels ** 0.5,
                torch.randn(channels, dtype=dtype))

    return make
