"""ConvReLU under torch.compile, torch.export and explain."""

import pytest
import torch
from torch import nn

import leni_kernels as lk

MODULES = {1: lk.ConvReLU1d, 2: lk.ConvReLU2d, 3: lk.ConvReLU3d}


def module_and_input(dimensions):
    kernel_size = {1: 3, 2: (3, 2), 3: (2, 1, 2)}[dimensions]
    module = MODULES[dimensions](4, 6, kernel_size, padding=1, stride=2, groups=2)
    nn.init.normal_(module.threshold)
    return module, torch.randn(2, 4, *(8, 7, 6)[-dimensions:])


@pytest.mark.parametrize("dimensions", MODULES)
def test_compiles_without_a_graph_break(dimensions):
    module, x = module_and_input(dimensions)
    x.requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, wanted = compiled(x), module(x)
    torch.testing.assert_close(y, wanted)
    inputs = (x, *module.parameters())
    gradients, truth = torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs)
    torch.testing.assert_close(gradients, truth)


@pytest.mark.parametrize("dimensions", MODULES)
def test_exports_with_any_batch_and_size(dimensions):
    module, x = module_and_input(dimensions)
    sizes = {axis: torch.export.Dim.AUTO for axis in (0, *range(2, 2 + dimensions))}
    exported = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
    other = torch.randn(3, 4, *(11, 10, 9)[-dimensions:])
    torch.testing.assert_close(exported(other), module(other))


@pytest.mark.parametrize("dimensions", MODULES)
def test_explain_tells_the_backend(dimensions):
    decision, = lk.explain(*module_and_input(dimensions))
    assert (decision.operation, decision.backend) == (f"conv_relu{dimensions}d", "reference")
    assert set(decision.why_not) == {"cpp", "triton", "cuda"}
