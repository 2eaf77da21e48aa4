"""The Triton kernels without a GPU: the tests of every backend once more, in Triton's interpreter.

The interpreter has to be asked for before the kernels are defined, and so needs a process of its own.
"""

from pathlib import Path

import pytest
import torch
from launches import Launches

from leni_kernels.common.gpu import support
from leni_kernels.pointwise.gpu import backward, forward

if support.why_missing is not None:
    pytest.skip(support.why_missing, allow_module_level=True)


@pytest.mark.skipif(torch.cuda.is_available() or support.interpreting, reason="the tests run directly")
def test_in_the_interpreter(run_in_interpreter):
    files = (Path(__file__).with_name(f"test_{name}.py") for name in ("parity", "gradients", "ops"))
    run_in_interpreter("-x", "-k", "triton", *files)


@pytest.mark.skipif(support.interpreting, reason="the interpreter's operator is opaque to tracing")
def test_launches_can_be_traced_without_a_gpu():
    """As torch.compile does: fake tensors on a GPU that need not exist give a graph with the kernel in it."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx


    with FakeTensorMode():
        x = torch.empty(2, 16, 5, 8, device="cuda", dtype=torch.float16)
        slopes = torch.empty(2, 16, device="cuda")
        graphs = [make_fx(lambda x: forward.fully_parametric_relu(x, *slopes))(x),
                  make_fx(lambda x: backward.fully_parametric_relu_backward(x, x, *slopes, True, True))(x),
                  make_fx(forward.crelu)(x)]
    assert all("triton_kernel_wrapper" in graph.code for graph in graphs)


@pytest.mark.parametrize(("dtype", "casts"), [(torch.float32, 0), (torch.float16, 1)], ids=str)
def test_launches(dtype, casts):
    """One forward; one backward, a sum for each parameter, and a cast of it in half precision."""
    x, slopes = torch.randn(2, 16, 5, 8).to(dtype), torch.randn(2, 16).to(dtype)
    with Launches() as of_forward:
        forward.ada_relu(x, slopes[0])
        forward.fully_parametric_relu(x, *slopes)
        forward.crelu(x)
    with Launches() as of_backward:
        backward.ada_relu_backward(x, x, slopes[0], True, True)
        backward.fully_parametric_relu_backward(x, x, *slopes, True, True)
    assert len(of_forward.kernels) == 3
    assert not of_forward.of_torch
    assert len(of_backward.kernels) == 2
    assert len(of_backward.of_torch) == 3 * (1 + casts)
