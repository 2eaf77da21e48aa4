"""Traced by torch.jit: graphs of this package's operators that can be saved, loaded, checked and differentiated."""

import io

import pytest
import test_derivatives
import torch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                                        "ignore::torch.jit.TracerWarning")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad_mode", [False, True])
@pytest.mark.parametrize("name", test_derivatives.BLOCKS)
def test_a_trace_serves_as_the_block_does(name, grad_mode, training):
    block, x = test_derivatives.make(name)
    block.train(training)
    with torch.set_grad_enabled(grad_mode):
        # Checked by a second run without gradients, which moves running statistics again.
        traced = torch.jit.trace(block, (x.requires_grad_(grad_mode),), check_trace=not training)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        larger = torch.randn([size + 1 for size in x.shape[2:]], dtype=x.dtype).expand(3, 3, *[-1] * (x.dim() - 2))
        loaded, larger = torch.jit.load(file), larger.clone().requires_grad_(grad_mode)
        got, wanted = loaded(larger), block(larger)
        torch.testing.assert_close(got, wanted)
        if grad_mode:
            torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), larger) for y in (got, wanted)))
