"""The papers' networks by name."""

from __future__ import annotations

from torch import nn

from . import libraries, mobilenets, plain, text
from .activations import by_name, chosen

CLASSES, CHANNELS, SIZE = 10, 3, 32
NETWORKS = (*plain.PLANS, *libraries.BLOCKS, "densenet", "text", *mobilenets.MOBILENETS)
TEXTS = ("text",)


def build(name: str, activation: str = "relu", classes: int = CLASSES, channels: int | None = None,
          width: float = 1.0, where: str = "all", size: int = SIZE) -> nn.Module:
    """A network with random weights, in training mode.

    Args:
        name: one of ``NETWORKS``.
        activation: one of ``activations.ACTIVATIONS``, in place of ReLUs on feature maps.
        classes: of its output, ``[N, classes]``.
        channels: of its input: ``[N, channels, size, size]`` (3 by default), or ``[N, channels, 1014]`` for "text"
            (70, the characters of an alphabet).
        width: a factor on the channels of every layer.
        where: which ReLUs to replace: "all"; "first:N", in order of execution; "first-block" or "last-block".
        size: of its images. ConvNet-8 reads no other; ResNets have ImageNet's stem from 128 on.

    Raises:
        ValueError: for an unknown name, a width that is not positive, or that MobileNets do not have, an unknown
            ``where``, or an activation of images in the network of texts.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; the networks are {', '.join(NETWORKS)}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    by_name(activation)
    chosen(where, ())
    if name == "text":
        return text.text_network(activation, classes, channels or 70, width, where)
    make = (plain.image_network if name in plain.PLANS else libraries.resnet if name in libraries.BLOCKS else
            mobilenets.mobilenet if name in mobilenets.MOBILENETS else libraries.densenet)
    return make(name, activation, classes, channels or CHANNELS, width, where, size)


def parameter_count(network: nn.Module) -> int:
    """The learnable parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
