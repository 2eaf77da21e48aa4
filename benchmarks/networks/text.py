"""The ConvReLU paper's network for texts."""

from __future__ import annotations

from torch import nn

from .plain import Convolution, convolutions, linear_layers, scaled

PLAN = [Convolution(256, kernel=7, pool=3), Convolution(256, kernel=7, pool=3), *[Convolution(256)] * 3,
        Convolution(256, pool=3)]
LENGTH = 1014
FLAT = 34
"""What the six convolutions and three poolings leave of a text's length."""


def text_network(activation: str, classes: int, channels: int, width: float, where: str) -> nn.Sequential:
    """The ConvReLU paper's VGG-like network for texts, ``[N, channels, 1014]``, one-hot or embedded.

    The paper names six convolutions, three poolings, three linear layers and Zhang, Zhao and LeCun 2015; our
    reading is their small network: 256 features, kernels 7, 7, 3, 3, 3, 3 without padding, pooling by 3 behind the
    first, second and last, linear layers of 1,024, without batch norms and dropout, in one dimension. The paper
    replaces the activations of the first two convolutions, which are this network's "first-block".
    """
    plan = [step._replace(channels=scaled(step.channels, width)) for step in PLAN]
    features, count = convolutions(plan, channels, activation, "first:2" if where == "first-block" else where, 1)
    hidden = [scaled(1024, width)] * 2
    return nn.Sequential(*features, nn.Flatten(), *linear_layers(count * FLAT, hidden, classes))
