"""What the benchmarks of ConvReLU share: layers of the paper's networks, the peer, and a row of results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from harness import blocks, parity, sides, timing
from torch import Tensor, nn

import leni_kernels as lk

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("channels_first", "channels_last")
BUFFERS = 3
"""Inputs that take turns, so that no side finds its x where it left it."""

MODULES = {1: lk.ConvReLU1d, 2: lk.ConvReLU2d}


class Layer(NamedTuple):
    """One layer of a network, and the images or texts of a call on a CPU."""

    network: str
    dimensions: int
    channels: int
    outputs: int
    kernel: int
    size: int
    stride: int
    padding: int
    batch: int

    def __str__(self) -> str:
        kernel = "×".join([str(self.kernel)] * self.dimensions)
        stride = f" / {self.stride}" if self.stride > 1 else ""
        return f"{self.network} {self.channels} → {self.outputs}, {kernel}{stride}, at {self.size}"


LAYERS = (
    Layer("DenseNet", 2, 128, 32, 3, 28, 1, 1, 4),
    Layer("DenseNet", 2, 256, 128, 1, 28, 1, 0, 4),
    Layer("VGG", 2, 64, 64, 3, 224, 1, 1, 1),
    Layer("VGG", 2, 256, 256, 3, 56, 1, 1, 1),
    Layer("ResNet", 2, 64, 64, 3, 56, 1, 1, 2),
    Layer("ResNet", 2, 128, 128, 3, 56, 2, 1, 2),
    Layer("ResNet", 2, 512, 512, 3, 7, 1, 1, 4),
    Layer("text network", 1, 256, 256, 7, 1014, 1, 0, 2),
    Layer("text network", 1, 256, 256, 3, 336, 1, 0, 4),
)
"""Of the networks in the paper, and of its text network (kernels 7 and 3, texts of 1014 characters)."""

ON_GPU = 32
"""How many times a CPU's batch a GPU gets."""


class Case(NamedTuple):
    """One layer in one layout and dtype."""

    layer: Layer
    layout: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.layer} {self.layout} {self.dtype}"

    def in_layout(self, tensor: Tensor) -> Tensor:
        """The activation or weight, laid out as the case says; in one dimension channels-last is a view."""
        return sides.in_layout(tensor, self.layout)

    def inputs(self, device: torch.device) -> list[Tensor]:
        """Random activations."""
        batch = self.layer.batch * (ON_GPU if device.type == "cuda" else 1)
        shape = (batch, self.layer.channels, *[self.layer.size] * self.layer.dimensions)
        return [self.in_layout(torch.randn(shape, dtype=DTYPES[self.dtype], device=device)) for _ in range(BUFFERS)]

    def module(self, device: torch.device) -> nn.Module:
        """The layer with thresholds about 0, as training leaves them."""
        layer = self.layer
        module = MODULES[layer.dimensions](layer.channels, layer.outputs, layer.kernel, layer.stride, layer.padding)
        nn.init.normal_(module.threshold, 0, 0.1)
        module = module.to(device, DTYPES[self.dtype])
        module.weight = nn.Parameter(self.in_layout(module.weight.detach()))
        return module


def cases(quick: bool, dtypes: Iterable[str], layouts: tuple[str, ...] = LAYOUTS) -> list[Case]:
    """All cases of a run in these dtypes."""
    layers, layouts = (LAYERS[4:5], LAYOUTS[1:]) if quick else (LAYERS, layouts)
    return [Case(layer, layout, dtype) for dtype in dtypes for layout in layouts for layer in layers]


def peer(case: Case, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """``conv(relu(x))``: what stands where a ConvReLU could, in its fastest form."""
    weight, bias, layer = module.weight, module.bias, case.layer
    if layer.dimensions == 2:
        return lambda x: F.conv2d(x.relu(), weight, bias, layer.stride, layer.padding)
    if case.layout == "channels_first":
        return lambda x: F.conv1d(x.relu(), weight, bias, layer.stride, layer.padding)
    # PyTorch knows channels-last in two dimensions only.
    return lambda x: F.conv2d(x.relu()[:, :, None], weight[:, :, None], bias, (1, layer.stride),
                              (0, layer.padding))[:, :, 0]


def _label(row: blocks.Row) -> str:
    return row["layer"]


TABLE = blocks.Table(
    times=("relu_conv", "composed", "ours"),
    ratios={"ours/relu_conv": "time / conv(relu(x))", "composed/ours": "× composed"},
    label=_label, head="layer")


class Contenders(NamedTuple):
    """The functions to compare, why ours is missing if it is, and its backend."""

    functions: dict[str, Callable[[Any], Any]]
    missing: dict[str, str]
    backend: str | None


def contenders(module: nn.Module, x: Tensor, functions: Mapping[str, Callable[[Any], Any]]) -> Contenders:
    """The ``functions``, without "ours" where no kernel would run it."""
    try:
        return Contenders(dict(functions), {}, sides.backend_of(module, x))
    except sides.NotMeasured as reason:
        others = {name: function for name, function in functions.items() if name != "ours"}
        return Contenders(others, {"ours": str(reason)}, None)


def row(case: Case, found: Contenders, verdicts: Mapping[str, parity.Verdict], inputs: list[Any], device: torch.device,
        seconds: float) -> dict[str, Any]:
    """Time the contenders that are right, on inputs that take turns; returns a row of the results."""
    turns = itertools.cycle(inputs)
    timed = {name: lambda function=function: function(next(turns)) for name, function in found.functions.items()
             if verdicts[name].passed}
    samples, faults = timing.alternate_counting_faults(timed, timing.timer(device), seconds, (3, 60), 1)
    times = {name: timing.summary(values) for name, values in samples.items()}
    medians = {name: time["median"] for name, time in times.items()}
    pairs = [pair for pair in (("ours", "relu_conv"), ("composed", "ours")) if set(pair) <= set(medians)]
    return {
        "layer": str(case.layer),
        "layout": case.layout,
        "dtype": case.dtype,
        "backend": found.backend,
        "missing": found.missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times,
        "ratios": {f"{a}/{b}": medians[a] / medians[b] for a, b in pairs},
        "page_faults_per_call": round(faults / sum(map(len, samples.values())), 1),
    }
