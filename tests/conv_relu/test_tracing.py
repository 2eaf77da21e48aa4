"""ConvReLU under torch.compile, torch.export and explain."""

import pytest
import torch
from torch import nn

import leni_kernels as lk
from leni_kernels.common import extension

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


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dimensions", MODULES)
def test_one_graph_for_every_batch_size(dimensions, channels_last):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module, x = module_and_input(dimensions)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5, 8):
        images = x[:1].repeat(batch, *[1] * (dimensions + 1))
        if channels_last:
            images = images.movedim(1, -1).contiguous().movedim(-1, 1)
        images.requires_grad_()
        torch._dynamo.mark_dynamic(images, 0)
        y = compiled(images)
        torch.testing.assert_close(y, module(images))
        y.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("dimensions", MODULES)
def test_exports_with_any_batch_and_size(dimensions):
    module, x = module_and_input(dimensions)
    sizes = {axis: torch.export.Dim.AUTO for axis in (0, *range(2, 2 + dimensions))}
    exported = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
    other = torch.randn(3, 4, *(11, 10, 9)[-dimensions:])
    torch.testing.assert_close(exported(other), module(other))


@pytest.mark.parametrize("dimensions", MODULES)
def test_explain_tells_the_backend(dimensions):
    module, x = module_and_input(dimensions)
    decision, = lk.explain(module, x)
    chosen = "reference" if extension.why_missing else "cpp"
    assert (decision.operation, decision.backend) == (f"conv_relu{dimensions}d", chosen)
    assert set(decision.why_not) == {"cpp", "triton", "reference"} - {chosen}


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize(("change", "reason"), [
    (lambda x: x.to(torch.float8_e5m2), "the CPU kernels take float32, bfloat16, float16 and float64, not"),
    (lambda x: x.repeat_interleave(2, dim=3)[..., ::2], "stride 1 neither along channels nor along columns"),
], ids=["float8", "strided"])
def test_explain_says_why_the_kernels_cannot_serve(change, reason):
    module, x = module_and_input(2)
    x = change(x)
    decision, = lk.explain(module.to(x.dtype), x)
    assert decision.backend == "reference"
    assert reason in decision.why_not["cpp"]
    with lk.use_backend("cpp"), pytest.raises(lk.BackendUnavailableError, match=reason):
        module(x)
