"""torchvision's networks, and the swap of the activation after their first convolution."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """Where a network's first activation stands, and the channels and size of its feature map at 224×224."""

    path: str
    channels: int
    size: int


PLACES = {
    "mobilenet_v3_small": Place("features.0.2", 16, 112),
    "resnet18": Place("relu", 64, 112),
    "vgg16_bn": Place("features.2", 64, 224),
}


def build(name: str) -> nn.Module:
    """The network as torchvision makes it, with random weights, in eval mode."""
    import torchvision

    return getattr(torchvision.models, name)(weights=None).eval()


def swapped(network: nn.Module, place: Place, activation: nn.Module) -> nn.Module:
    """A copy of the network with ``activation`` at ``place``."""
    network = copy.deepcopy(network)
    parent, _, child = place.path.rpartition(".")
    setattr(network.get_submodule(parent), child, activation)
    return network


def replaced(network: nn.Module, places: Sequence[str]) -> dict[str, str]:
    """What a row of results says of the activations at ``places`` of a stock network."""
    kinds = dict.fromkeys(type(network.get_submodule(place)).__name__ for place in places)
    return {"replaced": ", ".join(kinds), "place": ", ".join(places)}


def noise(count: int) -> Tensor:
    """Images of nothing, ``[count, 3, 224, 224]``, normalised."""
    return torch.randn(count, 3, 224, 224)


def pictures(folder: str, count: int) -> Tensor:
    """The first JPEG and PNG pictures of a folder, cropped to ``[count, 3, 224, 224]`` and normalised.

    Fewer pictures than ``count`` are repeated.

    Raises:
        ValueError: if there is no picture, or one cannot be read.
    """
    from PIL import Image
    from torchvision.transforms import v2

    suffixes = {".jpg", ".jpeg", ".png"}
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in suffixes][:count]
    if not paths:
        raise ValueError(f"no JPEG or PNG pictures in {folder!r}")
    prepare = v2.Compose([
        v2.RGB(), v2.PILToTensor(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])
    images = []
    for path in paths:
        try:
            images.append(prepare(Image.open(path)))
        except OSError as error:
            raise ValueError(f"cannot read the picture {path}: {error}") from error
    repeats = -(-count // len(images))
    return torch.stack(images).repeat(repeats, 1, 1, 1)[:count]
