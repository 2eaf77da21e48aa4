"""The Triton kernels without a GPU: the tests of every backend once more, in Triton's interpreter.

The interpreter has to be asked for before the kernels are defined, and so needs a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leni_kernels import triton_support

if triton_support.why_missing is not None:
    pytest.skip(triton_support.why_missing, allow_module_level=True)


@pytest.mark.skipif(torch.cuda.is_available() or triton_support.interpreting, reason="the tests run directly")
def test_in_the_interpreter():
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("parity", "gradients", "ops")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "triton", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout


@pytest.mark.skipif(triton_support.interpreting, reason="the interpreter's operator is opaque to tracing")
def test_launches_can_be_traced_without_a_gpu():
    """As torch.compile does: fake tensors on a GPU that need not exist give a graph with the kernel in it."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    from leni_kernels.pointwise import triton_kernels

    with FakeTensorMode():
        x = torch.empty(2, 16, 5, 8, device="cuda", dtype=torch.float16)
        slopes = torch.empty(2, 16, device="cuda")
        graphs = [make_fx(lambda x: triton_kernels.fully_parametric_relu(x, *slopes))(x),
                  make_fx(lambda x: triton_kernels.fully_parametric_relu_backward(x, x, *slopes, True, True))(x),
                  make_fx(triton_kernels.crelu)(x)]
    assert all("triton_kernel_wrapper" in graph.code for graph in graphs)
