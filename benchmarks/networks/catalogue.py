"""The papers' networks by name."""

from __future__ import annotations

from torch import nn

from . import libraries, plain
from .activations import by_name

CLASSES, CHANNELS = 10, 3
NETWORKS = (*plain.PLANS, *libraries.BLOCKS, "densenet", "text")


def build(name: str, activation: str = "relu", classes: int = CLASSES, channels: int | None = None,
          width: float = 1.0, first: int | None = None) -> nn.Module:
    """A network with random weights, in training mode.

    Args:
        name: one of ``NETWORKS``.
        activation: one of ``activations.ACTIVATIONS``, in place of every ReLU on feature maps.
        classes: of its output, ``[N, classes]``.
        channels: of its input: ``[N, channels, H, W]`` (3 by default), or ``[N, channels, 1014]`` for "text"
            (70, the characters of an alphabet).
        width: a factor on the channels of every layer.
        first: how many activations to replace, in order of execution; None is all.

    Raises:
        ValueError: for an unknown name, a width that is not positive, a negative ``first``, or an activation of
            images in the network of texts.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; the networks are {', '.join(NETWORKS)}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    if first is not None and first < 0:
        raise ValueError(f"first must not be negative, got {first}")
    by_name(activation)
    if name == "text":
        return plain.text_network(activation, classes, channels or 70, width, first)
    make = (plain.image_network if name in plain.PLANS else
            libraries.resnet if name in libraries.BLOCKS else libraries.densenet)
    return make(name, activation, classes, channels or CHANNELS, width, first)


def parameter_count(network: nn.Module) -> int:
    """The learnable parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
