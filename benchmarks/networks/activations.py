"""The activations by name: what stands where the papers' networks have a ReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import leni_kernels as lk


class Activation(NamedTuple):
    """An activation of feature maps ``[N, C, *spatial]``.

    ``make(C)`` builds it; it returns ``growth · C`` channels. One that is ``in_convolution`` has its parameters in
    the convolution behind it (ConvReLU), and ``make`` builds what stands where none follows. One for
    ``images_only`` needs two spatial dimensions.
    """

    make: Callable[[int], nn.Module]
    growth: int = 1
    in_convolution: bool = False
    images_only: bool = False


class ExtendedConv2d(nn.Module):
    """The papers' "Extended Conv": as many parameters as Reborn's, and no negative information.

    Takes and returns ``[N, C, H, W]``. The papers' text is silent to us beyond the name; our reading is the
    strictest control: Reborn's layers, fed with max(x, 0) instead of min(x, 0).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.compress = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        positive = torch.relu(x)
        return self.compress(torch.cat([positive, self.bn(self.conv(positive))], dim=1))


def _without_channels(activation: Callable[[], nn.Module]) -> Activation:
    return Activation(lambda channels: activation())


RELU = _without_channels(nn.ReLU)
PYTORCHS = {
    "leaky_relu": nn.LeakyReLU, "rrelu": nn.RReLU, "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU, "gelu": nn.GELU,
    "silu": nn.SiLU, "mish": nn.Mish, "softplus": nn.Softplus, "hardswish": nn.Hardswish,
}
ACTIVATIONS = {
    "relu": RELU,
    "prelu": Activation(nn.PReLU),
    "leni": Activation(lk.LENI2d, images_only=True),
    "reborn": Activation(lk.Reborn2d, images_only=True),
    "conv_relu": RELU._replace(in_convolution=True),
    "ada_relu": Activation(lk.AdaReLU),
    "fully_parametric_relu": Activation(lk.FullyParametricReLU),
    "crelu": Activation(lambda channels: lk.CReLU(), growth=2),
    "extended_conv": Activation(ExtendedConv2d, images_only=True),
    **{name: _without_channels(activation) for name, activation in PYTORCHS.items()},
}


def by_name(name: str) -> Activation:
    """The activation called ``name``.

    Raises:
        ValueError: if there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; the activations are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
