"""Where the tests of Triton kernels run: on a GPU where there is one, else in Triton's interpreter.

The interpreter has to be asked for before the kernels are defined. So without a GPU ``test_in_the_interpreter`` of a
file runs that file once more, in a process with TRITON_INTERPRET=1, and every other test of it is skipped.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from leni_kernels.common.gpu import support

if support.why_missing is not None:
    pytest.skip(support.why_missing, allow_module_level=True)

GPU = torch.cuda.is_available() and not support.interpreting
DEVICE = "cuda" if GPU else "cpu"

runs_kernels = pytest.mark.skipif(not (GPU or support.interpreting),
                                  reason="no GPU; runs in the interpreter, through test_in_the_interpreter")
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")


def in_the_interpreter(file: str) -> Callable[..., None]:
    """The test that runs ``file`` in the interpreter."""

    @pytest.mark.skipif(GPU or support.interpreting, reason="the tests of this file run directly")
    def test(run_in_interpreter):
        run_in_interpreter(file)

    return test
