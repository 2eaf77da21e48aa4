"""Table 1 of the LENI paper: images/s of six networks with LENI in layers 1; 1, 2; 1, 2, 3.

Each layer's activation, in order of execution, gives way to a LENI block. The networks are torchvision's and timm's,
at 224×224, in channels-last; their own activations (ReLU, ReLU6, Hardswish) stay everywhere else.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from harness import sides
from torch import Tensor, nn

import leni_kernels as lk
from leni_kernels.networks.surgery import Report

from . import comparison, first_activation, inference
from .published import LENI_SPEED_CHANGE

SOURCES = {
    "vgg16_bn": "torchvision",
    "resnet18": "torchvision",
    "mobilenetv1_100": "timm",
    "mobilenet_v2": "torchvision",
    "mobilenet_v3_small": "torchvision",
    "mobilenet_v3_large": "torchvision",
}
"""Where each network is from: timm where torchvision has none."""

NETWORKS = tuple(SOURCES)
LAYERS = (1, 2, 3)
TITLE = "Table 1 in full (published, over all rows: {} % to {} %)".format(*LENI_SPEED_CHANGE)
SECONDS = inference.SECONDS
BATCHES = {
    "cpu": {"vgg16_bn": 2, "resnet18": 8, "mobilenetv1_100": 16, "mobilenet_v2": 16, "mobilenet_v3_small": 32,
            "mobilenet_v3_large": 16},
    "cuda": {"vgg16_bn": 64, **dict.fromkeys(NETWORKS[1:], 256)},
}


class Case(NamedTuple):
    """One network with LENI in its first layers, in one dtype."""

    network: str
    layers: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.network} {self.dtype}, LENI in {places(self.layers)}"


def places(layers: int) -> str:
    """The layers as Table 1 writes them."""
    return ", ".join(str(layer) for layer in range(1, layers + 1))


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    networks, dtypes = (("mobilenet_v2",), ("float32",)) if quick else (NETWORKS, comparison.DTYPES)
    return [Case(name, layers, dtype) for dtype in dtypes for name in networks for layers in LAYERS]


def measure(case: Case, device: torch.device, seconds: float, images: Tensor) -> dict[str, Any]:
    """Check and time one network, in channels-last; returns its row of the results."""
    stock = build(case.network)
    swapped, changes = with_leni(stock, case.layers)
    sites = [row for row in changes.rows if row.replaced]
    replaced = {"replaced": ", ".join(dict.fromkeys(row.site for row in sites)),
                "place": ", ".join(row.name for row in sites)}
    batch = BATCHES[device.type][case.network]
    row = inference.compare(case, stock, swapped, replaced, images[:batch], device, seconds)
    return {**row, "network": f"{case.network}, LENI in {places(case.layers)}"}


EXAMPLE = torch.zeros(1, 3, 64, 64)


def build(name: str) -> nn.Module:
    """The network as its library makes it, with random weights, in eval mode."""
    if SOURCES[name] == "torchvision":
        return first_activation.build(name)
    import timm

    return timm.create_model(name).eval()


def with_leni(stock: nn.Module, layers: int) -> tuple[nn.Module, Report]:
    """A copy of the network with LENI in the place of its first activations, and what was changed.

    An activation on pooled features, as squeeze-and-excitation has, is no layer's.
    """
    put_leni = partial(lk.replace_relu, stock, "leni", example_input=EXAMPLE, include=("relu6", "hardswish"))
    _, everywhere = put_leni("all")
    layer_names = [row.name for row in everywhere.rows if row.replaced and max(row.shape[2:]) > 1]
    network, changes = put_leni(layer_names[:layers])
    for module in network.modules():
        if isinstance(module, lk.LENI2d):
            sides.as_trained(module)
    return network, changes
