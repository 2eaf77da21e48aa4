"""Networks of convolutions one behind another: the papers' ConvNets, VGG, and the text network.

All take an activation by name and say in how many of the first layers it stands (the ConvReLU paper's partial
replacement; LENI in layers 1; 1, 2; 1, 2, 3); behind the others, and behind linear layers, is a ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn
from torchvision.models.vgg import cfgs as VGG

from leni_kernels import ConvReLU1d, ConvReLU2d

from .activations import RELU, Activation, by_name

POOL = "M"
Plan = Sequence[int | str]
"""The channels of each convolution, and ``"M"`` for each pooling, as torchvision writes them."""

PLANS: dict[str, Plan] = {
    "convnet8": [64, 64, POOL, 128, 128, POOL, 256, 256, POOL],
    "convnet13": [64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL],
    "vgg11": VGG["A"],
    "vgg16": VGG["D"],
}
HIDDEN = {"convnet8": [256], "convnet13": [512, 512], "vgg11": [], "vgg16": []}
"""The widths of the linear layers in front of the last one."""


def image_network(name: str, activation: str, classes: int, channels: int, width: float,
                  first: int | None) -> nn.Sequential:
    """ConvNet-8, ConvNet-13 (Reborn paper, §4.2), VGG-11 or VGG-16 for small images, ``[N, channels, H, W]``.

    Each convolution is 3×3, padded, with bias, and has a batch norm. The ConvNets' layers are our reading of two
    names, as the paper's own list is not available to us: eight weighted layers are six convolutions in pairs of
    64, 128 and 256 channels and two linear layers; thirteen are VGG-13's, ten convolutions and three linear
    layers. VGG is torchvision's configuration with batch norms and one linear layer, as is usual for small
    images. Pooling rounds up, so that 8×8 and 28×28 pass as well as 32×32, and what is left is averaged.
    """
    plan = [step if step == POOL else scaled(step, width) for step in PLANS[name]]
    features, count = convolutions(plan, channels, activation, first, [3] * len(plan), 2)
    hidden = [scaled(size, width) for size in HIDDEN[name]]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *linear_layers(count, hidden, classes))


TEXT = [256, POOL, 256, POOL, 256, 256, 256, 256, POOL]
TEXT_KERNELS = [7, 3, 7, 3, 3, 3, 3, 3, 3]
TEXT_LENGTH = 1014
TEXT_FLAT = 34
"""What the six convolutions and three poolings leave of a text's length."""


def text_network(activation: str, classes: int, channels: int, width: float, first: int | None) -> nn.Sequential:
    """The ConvReLU paper's network of six convolutions for texts, ``[N, channels, 1014]``, one-hot or embedded.

    The paper's details are not available to us; our reading is the character-level network of Zhang, Zhao and
    LeCun 2015 (small: 256 features, kernels 7, 7, 3, 3, 3, 3 without padding, pooling by 3 behind the first,
    second and last, linear layers of 1,024), without batch norms and dropout, in one dimension.
    """
    plan = [step if step == POOL else scaled(step, width) for step in TEXT]
    features, count = convolutions(plan, channels, activation, first, TEXT_KERNELS, 1)
    hidden = [scaled(1024, width)] * 2
    return nn.Sequential(*features, nn.Flatten(), *linear_layers(count * TEXT_FLAT, hidden, classes))


def scaled(channels: int, width: float) -> int:
    """So many channels times the width factor, at least one."""
    return max(1, round(channels * width))


_CONVOLUTIONS = {1: (nn.Conv1d, ConvReLU1d), 2: (nn.Conv2d, ConvReLU2d)}


def convolutions(plan: Plan, channels: int, activation: str, first: int | None, kernels: Sequence[int],
                 dimensions: int) -> tuple[list[nn.Module], int]:
    """Convolutions, each with its activation, and poolings; also the channels that come out.

    Images are padded and their convolutions normalised; texts neither. ``first`` counts convolutions; None is
    all. ConvReLU thresholds in the next convolution, so that it stands behind a pooling where a ReLU stood
    before it: with a threshold of 0 the two are equal, as a maximum does not mind its order. The last
    convolution has none behind it, and keeps its ReLU.

    Raises:
        ValueError: for an unknown activation, or one of images in a network of texts.
    """
    chosen = by_name(activation)
    if chosen.images_only and dimensions != 2:
        raise ValueError(f"{activation} is defined on images, and this network reads texts")
    plain, fused = _CONVOLUTIONS[dimensions]
    count = sum(step != POOL for step in plan)
    layers: list[nn.Module] = []
    index, thresholds = 0, False
    for step, kernel in zip(plan, kernels, strict=True):
        if step == POOL:
            layers.append(nn.MaxPool2d(2, ceil_mode=True) if dimensions == 2 else nn.MaxPool1d(kernel))
            continue
        kind = fused if thresholds else plain
        layers.append(kind(channels, step, kernel, padding=kernel // 2 if dimensions == 2 else 0))
        if dimensions == 2:
            layers.append(nn.BatchNorm2d(step))
        index += 1
        here: Activation = chosen if first is None or index <= first else RELU
        thresholds = here.in_convolution and index < count
        if not thresholds:
            layers.append(here.make(step))
        channels = here.growth * step
    return layers, channels


def linear_layers(features: int, hidden: Sequence[int], classes: int) -> list[nn.Module]:
    """Linear layers with a ReLU between them."""
    sizes = [features, *hidden]
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return [*layers, nn.Linear(sizes[-1], classes)]
