"""Pictures of training: learning curves, what the first activation lets through, and learned thresholds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
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
        for activation in dict.fromkeys(run["activation"] for run in runs):
            curves = [[epoch["accuracy"] for epoch in run["history"]] for run in runs
                      if (run["network"], run["activation"]) == (network, activation)]
            epochs = range(1, len(curves[0]) + 1)
            line, = axes.plot(epochs, list(map(statistics.mean, zip(*curves, strict=True))), marker="o", markersize=3,
                              label=activation)
            low, high = zip(*((min(values), max(values)) for values in zip(*curves, strict=True)), strict=True)
            axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_title(network, loc="left", fontsize=10.5, color=INK)
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("%", color=INK)
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    _save(figure, path)


def maps(path: Path, learners: Sequence[Learner]) -> None:
    """The values into and out of the first activation, and its first maps for one test image (LENI, Figs. 2-3)."""
    figure = _figure(12, 1.6 * len(learners) + 0.8, "The first activation: values before and after it, and its maps")
    rows = figure.subplots(len(learners), 2, squeeze=False, width_ratios=(1, 2.6))
    for (values, pictures), learner in zip(rows, learners, strict=True):
        before, after = around_first_activation(learner)
        for tensor, label in ((before, "before"), (after, "after")):
            values.hist(tensor.flatten().tolist(), bins=80, density=True, histtype="step", label=label)
        values.set_yscale("log")
        values.set_title(f"{learner.run.network}, {learner.run.activation}", loc="left", fontsize=9, color=INK)
        values.legend(frameon=False, fontsize=8)
        pictures.imshow(torch.cat(list(after[0, :MAPS]), dim=1).tolist(), cmap="gray")
        pictures.set_axis_off()
    _save(figure, path)


def thresholds(path: Path, learners: Sequence[Learner]) -> None:
    """The learned thresholds of each layer (ConvReLU paper, Fig. 6), where there are any."""
    found = {str(learner.run): learned for learner in learners if (learned := learned_thresholds(learner))}
    if not found:
        return
    figure = _figure(7, 2.6 * len(found) + 0.8, "Learned thresholds, layer by layer")
    for axes, (name, layers) in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found.items(), strict=True):
        axes.boxplot([values.tolist() for values in layers.values()], whis=(0, 100))
        axes.set_xticks(range(1, len(layers) + 1), [f"{index}" for index in range(1, len(layers) + 1)])
        axes.axhline(0, color=GRID, linewidth=0.8, zorder=0)
        axes.set_title(name, loc="left", fontsize=9, color=INK)
        axes.set_ylabel("θ", color=INK)
    axes.set_xlabel("layer", color=INK)
    _save(figure, path)


def learned_thresholds(learner: Learner) -> dict[str, Tensor]:
    """The thresholds of ConvReLU and AdaReLU layers, flat, by name."""
    return {name: parameter.detach().cpu().flatten() for name, parameter in learner.network.named_parameters()
            if name.rpartition(".")[2] == "threshold"}


@torch.no_grad()
def around_first_activation(learner: Learner) -> tuple[Tensor, Tensor]:
    """What goes into the layer behind the first batch norm, and what comes out, ``[N, C, H, W]`` on the CPU.

    For ConvReLU that layer is the convolution which thresholds.
    """
    network = learner.network.eval()
    modules = list(network.modules())
    norm = next(index for index, module in enumerate(modules) if isinstance(module, (BatchNorm2d, SyncBatchNorm)))
    layer = next(module for module in modules[norm + 1:] if not isinstance(module, torch.nn.Identity))
    met: list[Tensor] = []
    with layer.register_forward_hook(lambda _, inputs, y: met.extend((inputs[0].clone(), y))):
        network(learner.data.test_images[:SAMPLES])
    before, after = (tensor.float().cpu() for tensor in met[:2])
    return before, after


def _figure(width: float, height: float, heading: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=110)
