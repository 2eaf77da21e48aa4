"""LENI and Reborn under torch.compile: whole steps in one graph, which serves every batch size."""

import copy

import pytest
import torch

import leni_kernels as lk
from leni_kernels.common import extension

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

BLOCKS = {
    "leni": lambda: lk.LENI2d(3),
    "leni without momentum": lambda: lk.LENI2d(3, momentum=None),
    "leni in eval mode": lambda: lk.LENI2d(3).eval(),
    "leni folded": lambda: lk.fold(lk.LENI2d(3).eval()),
    "separable leni": lambda: lk.LENI2d(3, separable=True),
    "separable leni in eval mode": lambda: lk.LENI2d(3, separable=True).eval(),
    "reborn": lambda: lk.Reborn2d(3),
    "reborn in eval mode": lambda: lk.Reborn2d(3).eval(),
}


def step(block, x):
    y = block(x)
    y.square().sum().backward()
    return y.detach(), x.grad, *(parameter.grad for parameter in block.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_one_graph_for_every_batch_size(name, layout):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    block = BLOCKS[name]().double()
    twin = copy.deepcopy(block)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5, 8):
        x = torch.randn(batch, 3, 4, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        ours = x.detach().clone().requires_grad_()
        y = compiled(x)
        y.square().sum().backward()
        for got, wanted in zip((y, x.grad), step(twin, ours), strict=False):
            torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    for got, wanted in zip((*block.parameters(), *block.buffers()), (*twin.parameters(), *twin.buffers()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
        if got.requires_grad:
            torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-11, atol=1e-11)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", BLOCKS)
def test_pytorch_s_own_second_graph_is_the_last(name):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(BLOCKS[name](), fullgraph=True, backend="eager")
    for batch in (2, 3, 4, 5, 7, 8, 9, 16):
        compiled(torch.randn(batch, 3, 4, 6))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
