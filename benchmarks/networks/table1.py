"""Table 1 of the LENI paper: images/s of six networks with LENI in layers 1; 1, 2; 1, 2, 3.

Each layer's activation, in order of execution, gives way to a LENI block. The networks are torchvision's and timm's,
at 224×224, in channels-last; their own activations (ReLU, ReLU6, Hardswish) stay everywhere else.
"""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from harness import parity, sides, timing
from torch import Tensor, nn

import leni_kernels as lk

from . import comparison
from .libraries import activated

SOURCES = {
    "vgg16_bn": "torchvision",
    "resnet18": "timm",
    "mobilenetv1_100": "timm",
    "mobilenet_v2": "torchvision",
    "mobilenet_v3_small": "torchvision",
    "mobilenet_v3_large": "torchvision",
}
"""Where each network is from: timm where torchvision has none, or calls one ReLU twice."""

NETWORKS = tuple(SOURCES)
LAYERS = (1, 2, 3)
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
