"""AdaReLU, FullyParametricReLU and CReLU under torch.compile, torch.export and explain."""

import pytest
import torch
from torch import nn

import leni_kernels as lk
from leni_kernels.common import extension

MODULES = {"ada_relu": lambda: lk.AdaReLU(3), "fully_parametric_relu": lambda: lk.FullyParametricReLU(3),
           "crelu": lk.CReLU}


def random_module(name):
    module = MODULES[name]()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_compiles_without_a_graph_break(name):
    module, x = random_module(name), torch.randn(2, 3, 4, 5, requires_grad=True)
    y, wanted = torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x)
    torch.testing.assert_close(y, wanted)
    inputs = (x, *module.parameters())
    gradients, truth = torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs)
    torch.testing.assert_close(gradients, truth)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_one_graph_for_every_batch_size(name, memory_format):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = random_module(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5, 8):
        x = torch.randn(batch, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        y = compiled(x)
        torch.testing.assert_close(y, module(x))
        y.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", MODULES)
def test_exports_with_any_batch_and_size(name):
    module = random_module(name)
    sizes = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3)}
    exported = torch.export.export(module, (torch.randn(2, 3, 4, 5),), dynamic_shapes=(sizes,)).module()
    x = torch.randn(3, 3, 7, 6)
    torch.testing.assert_close(exported(x), module(x))


@pytest.mark.parametrize("name", MODULES)
def test_explain_tells_the_backend(name):
    decision, = lk.explain(random_module(name), torch.randn(2, 3, 4))
    expected = "reference" if extension.why_missing else "cpp"
    assert (decision.operation, decision.backend) == (name, expected)
    assert set(decision.why_not) == {"cpp", "triton", "reference"} - {expected}


@pytest.mark.parametrize("name", MODULES)
def test_explain_tells_what_the_kernels_do_not_take(name):
    dtype = torch.float8_e5m2
    decision, = lk.explain(random_module(name).to(dtype), torch.randn(2, 3, 4).to(dtype))
    assert decision.backend == "reference"
    if extension.why_missing is None:
        assert decision.why_not["cpp"] == f"the CPU kernels take float32, bfloat16, float16 and float64, not {dtype}"
