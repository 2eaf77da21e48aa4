"""Programs that count multiply-adds. On the reference a network is made of PyTorch's layers, which all of them know."""

import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import leni_kernels as lk

# These programs put hooks on every layer, which blocks warn of.
pytestmark = pytest.mark.filterwarnings("ignore:leni_kernels. a hook on:UserWarning")

SITES = 5 * 6
BLOCKS = {
    "LENI": (lambda: lk.LENI2d(8), SITES * (9 * 8 + 2 * 8**2)),
    "LENI, folded": (lambda: lk.fold(lk.LENI2d(8).eval()), SITES * (9 * 8 + 2 * 8**2)),
    "Reborn": (lambda: lk.Reborn2d(8), SITES * (9 + 2) * 8**2),
    "Reborn, folded": (lambda: lk.fold(lk.Reborn2d(8).eval()), SITES * (9 + 2) * 8**2),
    "ConvReLU": (lambda: lk.ConvReLU2d(8, 8, 3, padding=1), SITES * 9 * 8**2),
    "AdaReLU": (lambda: lk.AdaReLU(8), 0),
}


@pytest.fixture(params=BLOCKS)
def counted(request):
    """A block in eval mode and the multiply-adds of its convolutions, for one image."""
    make, products = BLOCKS[request.param]
    with lk.use_backend("reference"):
        yield make().eval(), products


IMAGE = torch.zeros(1, 8, 5, 6)


def test_pytorch_counts_two_for_each(counted):
    block, products = counted
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        block(IMAGE)
    assert counter.get_total_flops() == 2 * products


def test_fvcore(counted):
    nn = pytest.importorskip("fvcore.nn")
    block, products = counted
    analysis = nn.FlopCountAnalysis(block, IMAGE).unsupported_ops_warnings(False)
    assert analysis.by_operator()["conv"] == products


def test_ptflops(counted):
    """It counts biases and norms too, a few for each value."""
    ptflops = pytest.importorskip("ptflops")
    block, products = counted
    found, _ = ptflops.get_model_complexity_info(block, tuple(IMAGE.shape[1:]), as_strings=False, backend="aten",
                                                 print_per_layer_stat=False, ost=io.StringIO())
    assert products <= found <= products + 4 * IMAGE.numel()


def test_torchinfo_counts_layers():
    """For ConvReLU what it counts for a convolution."""
    torchinfo = pytest.importorskip("torchinfo")
    found = [torchinfo.summary(layer, input_data=IMAGE, verbose=0).total_mult_adds
             for layer in (lk.ConvReLU2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))]
    assert found[0] == found[1]
