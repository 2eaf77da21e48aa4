"""Pictures of training: learning curves, what the first activation lets through, and learned thresholds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import BatchNorm2d, SyncBatchNorm

from . import files
from .learning import Learner
from .plot import GRID, INK

MAPS, SAMPLES = 8, 64


def learning_curves(path: Path, results: dict[str, Any], heading: str) -> None:
    """Test accuracy after each epoch: the mean over the seeds, and a band from the lowest to the highest."""
    runs = results["runs"]
    networks = list(dict.fromkeys(run["network"] for run in runs))
    width = 6.4 * len(networks)
    figure = _figure(width, 4.8, f"Test accuracy by epoch\n{fill(heading, int(11 * width))}")
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        for method in dict.fromkeys(run["method"] for run in runs if run["network"] == network):
            curves = [[epoch["accuracy"] for epoch in run["history"]] for run in runs
                      if (run["network"], run["method"]) == (network, method)]
            epochs = range(1, len(curves[0]) + 1)
            line, = axes.plot(epochs, list(map(statistics.mean, zip(*curves, strict=True))), marker="o", markersize=3,
                              label=method)
            low, high = zip(*((min(values), max(values)) for values in zip(*curves, strict=True)), strict=True)
            axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_title(network, loc="left", fontsize=10.5, color=INK)
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("%", color=INK)
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    _save(figure, path)


def maps(path: Path, learners: Mapping[str, Learner]) -> None:
    """The values into and out of the first activation, and its maps of one test image, method by method.

    As in the LENI paper's Figs. 2-3 and the Reborn paper's Fig. 4, with two numbers for what their text says of
    them: the share of zeros, and the values' entropy.
    """
    figure = _figure(14, 2.1 * len(learners) + 0.8, "The first activation: values before and after it, and maps of "
                     "one image")
    rows = figure.subplots(len(learners), 4, squeeze=False, width_ratios=(1.3, 0.6, 2, 2))
    for (values, picture, *sides), (name, learner) in zip(rows, learners.items(), strict=True):
        image, before, after = around_first_activation(learner)
        for tensor, label in ((before, "before"), (after, "after")):
            values.hist(tensor.flatten().tolist(), bins=80, density=True, histtype="step", label=label)
        values.set_yscale("log")
        values.set_title(name, loc="left", fontsize=9, color=INK)
        values.legend(frameon=False, fontsize=8)
        _show(picture, image.mean(0), "the image")
        for axes, tensor, label in zip(sides, (before, after), ("before", "after"), strict=True):
            heading = f"{label}: {zeros(tensor):.0%} zeros, {entropy(tensor):.1f} bits"
            _show(axes, torch.cat([torch.cat(list(half), dim=1) for half in tensor[0, :MAPS].chunk(2)]), heading)
    _save(figure, path)


def _show(axes: Any, picture: Tensor, heading: str) -> None:
    axes.imshow(picture.tolist(), cmap="gray")
    axes.set_title(heading, loc="left", fontsize=8, color=INK)
    axes.set_axis_off()


def zeros(values: Tensor) -> float:
    """The share of the values that are 0."""
    return (values == 0).double().mean().item()


def entropy(values: Tensor) -> float:
    """The entropy, in bits, of which of 256 equal parts of their range the values lie in."""
    counts = torch.histc(values, 256)
    return torch.distributions.Categorical(counts).entropy().item() / math.log(2)


def thresholds(path: Path, learners: Mapping[str, Learner]) -> None:
    """The learned thresholds (ConvReLU paper, Fig. 6), all together and layer by layer, where there are any."""
    found = {name: layers for name, learner in learners.items() if (layers := learned_thresholds(learner))}
    if not found:
        return
    figure = _figure(11, 2.6 * len(found) + 0.8, "Learned thresholds")
    for (together, apart), (name, layers) in zip(figure.subplots(len(found), 2, squeeze=False), found.items(),
                                                 strict=True):
        values = torch.cat(list(layers.values()))
        together.hist(values.tolist(), bins=80)
        together.set_title(f"{name}: {len(values):,} thresholds", loc="left", fontsize=9, color=INK)
        together.set_xlabel("θ", color=INK)
        apart.boxplot([values.tolist() for values in layers.values()], whis=(0, 100))
        apart.set_xticks(range(1, len(layers) + 1), [f"{index}" for index in range(1, len(layers) + 1)])
        apart.axhline(0, color=GRID, linewidth=0.8, zorder=0)
        apart.set_title("layer by layer", loc="left", fontsize=9, color=INK)
        apart.set_ylabel("θ", color=INK)
    _save(figure, path)


def learned_thresholds(learner: Learner) -> dict[str, Tensor]:
    """The thresholds of ConvReLU and AdaReLU layers, flat, by name."""
    return {name: parameter.detach().cpu().flatten() for name, parameter in learner.network.named_parameters()
            if name.rpartition(".")[2] == "threshold"}


@torch.no_grad()
def around_first_activation(learner: Learner) -> tuple[Tensor, Tensor, Tensor]:
    """The first test image ``[C, H, W]``, what goes into the layer behind the first batch norm, and what comes out.

    Both are of the first test images, ``[N, C, H, W]`` on the CPU. For ConvReLU that layer is the convolution which
    thresholds.
    """
    network = learner.network.eval()
    modules = list(network.modules())
    norm = next(index for index, module in enumerate(modules) if isinstance(module, (BatchNorm2d, SyncBatchNorm)))
    layer = next(module for module in modules[norm + 1:] if not isinstance(module, torch.nn.Identity))
    met: list[Tensor] = []
    (images, _), = learner.data.testing([torch.arange(min(SAMPLES, learner.data.test_count))])
    with layer.register_forward_hook(lambda _, inputs, y: met.extend((inputs[0].clone(), y))):
        network(images)
    before, after = (tensor.float().cpu() for tensor in met[:2])
    return images[0].float().cpu(), before, after


def _figure(width: float, height: float, heading: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=110)
