"""The backends that ConvReLU can run on without a GPU; the tests of its kernels share their cases."""

import sys
from pathlib import Path

import pytest

import leni_kernels as lk
from leni_kernels.common import extension

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["reference", "kernels"])
def each_backend(request):
    """The reference, and then the C++ kernels wherever they can serve."""
    if request.param == "kernels" and extension.why_missing is not None:
        pytest.skip(extension.why_missing)
    with lk.use_backend("reference" if request.param == "reference" else None):
        yield
