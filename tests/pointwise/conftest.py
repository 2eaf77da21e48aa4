"""The backends that pointwise tests run on. Without a GPU, Triton's run in its interpreter: see test_triton.py."""

import pytest
import torch

import leni_kernels as lk
from leni_kernels.common import extension
from leni_kernels.common.gpu import support

GPU = torch.cuda.is_available() and not support.interpreting


@pytest.fixture(params=["reference", "cpp", "triton"])
def backend(request):
    """Every backend that this machine has, asked for by name, with new tensors where it runs."""
    name = request.param
    if name == "cpp" and extension.why_missing is not None:
        pytest.skip(extension.why_missing)
    if name == "triton" and not (GPU or support.interpreting):
        pytest.skip("no GPU; runs in the interpreter, through test_triton.py")
    with torch.device("cuda" if name == "triton" and GPU else "cpu"), lk.use_backend(name):
        yield name


@pytest.fixture
def kernel_backend(backend):
    """Every fused backend that this machine has."""
    if backend == "reference":
        pytest.skip("the reference is what kernels are compared with")
    return backend
