"""Networks of convolutions one behind another: Reborn's ConvNets, and VGG.

All take an activation by name and say behind which convolutions it stands; behind the others, and behind linear
layers, is a ReLU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import nn
from torchvision.models.vgg import cfgs as VGG

from leni_kernels import ConvReLU1d, ConvReLU2d

from .activations import RELU, by_name, chosen


class Convolution(NamedTuple):
    """A convolution, and the maximum of ``pool`` sites that is taken behind its activation; 1 is none."""

    channels: int
    kernel: int = 3
    stride: int = 1
    pool: int = 1
    padded: bool = True

    @property
    def ends_block(self) -> bool:
        """Whether the size falls here."""
        return self.stride > 1 or self.pool > 1


def _plan(steps: Iterable[int | str], halve: dict[str, int]) -> list[Convolution]:
    """From torchvision's way to write it, channels and "M"; ``halve`` is what a convolution in front of an M does."""
    plan: list[Convolution] = []
    for step in steps:
        if isinstance(step, int):
            plan.append(Convolution(step))
        else:
            plan[-1] = plan[-1]._replace(**halve)
    return plan


PLANS = {
    "convnet8": _plan([32, 32, "M", 64, 64, "M", 128, 128, "M", 256, 256], {"stride": 2}),
    "convnet13": _plan(VGG["D"], {"stride": 2}),
    "vgg16": _plan(VGG["D"], {"pool": 2}),
}
HIDDEN = {"convnet8": [768, 1024]}
"""The widths of the linear layers in front of the last one, where there are any. No pair of usual ones, with any of the
sizes and classes at hand, has both printed counts of ConvNet-8, 5.21 M with ReLU and 9.39 M with CReLU."""


def image_network(name: str, activation: str, classes: int, channels: int, width: float, where: str,
                  size: int) -> nn.Sequential:
    """ConvNet-8, ConvNet-13 (Reborn paper, §4.2) or VGG-16, of images ``[N, channels, size, size]``.

    Each convolution is 3×3, padded, with bias, and has a batch norm. ConvNet-13 is VGG-16 with strides in the place
    of poolings; both average what is left and have one linear layer, as VGG usually has for small images. VGG's
    poolings round up, so that 8×8 and 28×28 pass as well as 32×32.

    The paper gives ConvNet-8 eight convolutions of 32 channels, doubled every two, and three linear layers. The rest
    is our reading: ConvNet-13's strides and norms, and linear layers of 768 and 1,024, with which it has the 5.21 M
    parameters that the LENI paper prints for it, under the name of VGGNet-11, on 32×32 and 100 classes.
    """
    plan = [step._replace(channels=scaled(step.channels, width)) for step in PLANS[name]]
    features, count = convolutions(plan, channels, activation, where, 2)
    hidden = [scaled(outputs, width) for outputs in HIDDEN.get(name, ())]
    if not hidden:
        return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(count, classes))
    for step in plan:
        size = -(-size // step.stride)
    return nn.Sequential(*features, nn.Flatten(), *linear_layers(count * size ** 2, hidden, classes))


def scaled(channels: int, width: float) -> int:
    """So many channels times the width factor, at least one."""
    return max(1, round(channels * width))


_CONVOLUTIONS = {1: (nn.Conv1d, ConvReLU1d), 2: (nn.Conv2d, ConvReLU2d)}


def convolutions(plan: Sequence[Convolution], channels: int, activation: str, where: str,
                 dimensions: int) -> tuple[list[nn.Module], int]:
    """Convolutions, each with its activation, and poolings; also the channels that come out.

    Convolutions of images are normalised, those of texts are not. A block ends where the size falls.
    ConvReLU thresholds in the next convolution, so that it stands behind a pooling where a ReLU stood before it:
    with a threshold of 0 the two are equal, as a maximum does not mind its order. The last convolution has none
    behind it, and keeps its ReLU.

    Raises:
        ValueError: for an unknown activation or ``where``, or an activation of images in a network of texts.
    """
    wanted = by_name(activation)
    if wanted.images_only and dimensions != 2:
        raise ValueError(f"{activation} is defined on images, and this network reads texts")
    here = set(_places(plan, where))
    layers: list[nn.Module] = []
    threshold_init = None
    for index, step in enumerate(plan):
        plain, fused = _CONVOLUTIONS[dimensions]
        arguments = {"stride": step.stride, "padding": step.kernel // 2 if step.padded else 0}
        layers.append(plain(channels, step.channels, step.kernel, **arguments) if threshold_init is None else
                      fused(channels, step.channels, step.kernel, **arguments, threshold_init=threshold_init))
        if dimensions == 2:
            layers.append(nn.BatchNorm2d(step.channels))
        behind = wanted if index in here else RELU
        threshold_init = behind.threshold_init if index + 1 < len(plan) else None
        if threshold_init is None:
            layers.append(behind.make(step.channels))
        if step.pool > 1:
            layers.append(nn.MaxPool2d(step.pool, ceil_mode=True) if dimensions == 2 else nn.MaxPool1d(step.pool))
        channels = behind.growth * step.channels
    return layers, channels


def _places(plan: Sequence[Convolution], where: str) -> Sequence[int]:
    """The convolutions behind which an activation stands."""
    ends = [index + 1 for index, step in enumerate(plan) if step.ends_block]
    starts = [0, *(end for end in ends if end < len(plan))]
    every = range(len(plan))
    return chosen(where, every, every[:ends[0]], every[starts[-1]:])


def linear_layers(features: int, hidden: Sequence[int], classes: int) -> list[nn.Module]:
    """Linear layers with a ReLU between them."""
    sizes = [features, *hidden]
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return [*layers, nn.Linear(sizes[-1], classes)]
