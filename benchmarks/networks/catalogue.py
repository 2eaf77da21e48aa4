"""The papers' networks by name."""

from __future__ import annotations

from torch import nn

from . import libraries, mobilenets, plain, texts
from .activations import by_name, chosen

CLASSES, CHANNELS, SIZE = 10, 3, 32
TEXTS = tuple(texts.PLANS)
"""The networks that read texts; the others read images."""

NETWORKS = (*plain.PLANS, *libraries.BLOCKS, "densenet", *TEXTS, *mobilenets.MOBILENETS)


def build(name: str, activation: str = "relu", classes: int = CLASSES, channels: int | None = None,
          width: float = 1.0, where: str = "all", size: int | None = None) -> nn.Module:
    """A network with random weights, in training mode.

    Args:
        name: one of ``NETWORKS``.
        activation: one of ``activations.ACTIVATIONS``, in place of ReLUs on feature maps.
        classes: of its output, ``[N, classes]``.
        channels: of its input: of images ``[N, channels, size, size]`` (3 by default), or the symbols of texts
            ``[N, size]`` (70 characters for "text", 10,000 words for "text-words").
        width: a factor on the channels of every layer.
        where: which ReLUs to replace: "all"; "first:N", in order of execution; "first-block" or "last-block".
        size: of its images (32 by default) or texts (1,014 characters, 64 words). ConvNet-8 and the networks of texts
            read no other; ResNets have ImageNet's stem from 128 on.

    Raises:
        ValueError: for an unknown name, a width that is not positive, or that MobileNets do not have, an unknown
            ``where``, or an activation of images or too small a size in a network of texts.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; the networks are {', '.join(NETWORKS)}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    by_name(activation)
    chosen(where, ())
    if name in TEXTS:
        return texts.text_network(name, activation, classes, channels, width, where, size)
    make = (plain.image_network if name in plain.PLANS else libraries.resnet if name in libraries.BLOCKS else
            mobilenets.mobilenet if name in mobilenets.MOBILENETS else libraries.densenet)
    return make(name, activation, classes, channels or CHANNELS, width, where, size or SIZE)


def parameter_count(network: nn.Module) -> int:
    """The learnable parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
