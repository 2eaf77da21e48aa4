"""Networks exported to ONNX, by both of PyTorch's exporters: onnxruntime computes the same on other sizes too."""

import warnings

import pytest
import torch
from torch import nn

import leni_kernels as lk

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def on_kernels():
    """Nothing is asked for by name: the kernels give way by themselves."""


SIGNALS = {"x": {0: "batch", 2: "length"}}
MAPS = {"x": {0: "batch", 2: "height", 3: "width"}}
VOLUMES = {"x": {0: "batch", 2: "depth", 3: "height", 4: "width"}}


def of_maps():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), lk.LENI2d(4), lk.ConvReLU2d(4, 8, 3, stride=2, padding=1), lk.AdaReLU(8), lk.Reborn2d(8),
        lk.ConvReLU2d(8, 4, 3, padding="same", groups=2, dilation=2), lk.FullyParametricReLU(4),
        lk.Reborn2d(4, groups=2, compress_kernel_size=3),
        lk.ConvReLU2d(4, 4, 3, padding=1, padding_mode="reflect"), lk.CReLU())


def of_signals():
    return nn.Sequential(lk.LENI1d(3), lk.Reborn1d(3), lk.ConvReLU1d(3, 4, 3, padding=1), lk.AdaReLU(4))


def of_volumes():
    return nn.Sequential(lk.LENI3d(3), lk.Reborn3d(3), lk.ConvReLU3d(3, 4, 3, padding=1), lk.FullyParametricReLU(4))


CASES = {
    "maps": (of_maps, (11, 13), (14, 9), MAPS),
    "maps, folded": (lambda: lk.fold(trained(of_maps(), (9, 9))), (11, 13), (14, 9), MAPS),
    "signals": (of_signals, (11,), (8,), SIGNALS),
    "volumes": (of_volumes, (5, 6, 4), (4, 5, 7), VOLUMES),
}


def trained(network, sizes):
    """The network in eval mode, with running statistics and parameters of no special values."""
    torch.manual_seed(0)
    network(torch.randn(4, 3, *sizes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("dynamo", [True, False], ids=["by torch.export", "by TorchScript"])
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_agrees(name, dynamo, tmp_path):
    make, sizes, others, axes = CASES[name]
    network, path = trained(make(), sizes).eval(), tmp_path / "network.onnx"
    x = torch.randn(2, 3, *sizes)
    with warnings.catch_warnings():  # of the exporters' own
        warnings.simplefilter("ignore")
        if dynamo:
            dynamic = {axis: torch.export.Dim.DYNAMIC for axis in axes["x"]}
            torch.onnx.export(network, (x,), path, dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
        else:
            torch.onnx.export(network, (x,), path, dynamo=False, input_names=["x"], output_names=["y"],
                              dynamic_axes={**axes, "y": axes["x"]})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images in (x, torch.randn(5, 3, *others)):
        got, = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            wanted = network(images)
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)
