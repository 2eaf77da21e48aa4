"""The activations by name: what stands where the papers' networks have a ReLU."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from torch import nn

import leni_kernels as lk


class Activation(NamedTuple):
    """An activation of feature maps ``[N, C, *spatial]``.

    ``make(C)`` builds it; it returns ``growth · C`` channels. One with a ``threshold_init`` is ConvReLU, whose
    parameters are in the convolution behind it and begin so; ``make`` builds what stands where none follows. One for
    ``images_only`` needs two spatial dimensions.
    """

    make: Callable[[int], nn.Module]
    growth: int = 1
    threshold_init: str | None = None
    images_only: bool = False


def _without_channels(activation: Callable[[], nn.Module]) -> Activation:
    return Activation(lambda channels: activation())


def _extended(channels: int, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, groups=groups))


RELU = _without_channels(nn.ReLU)
PYTORCHS = {
    "leaky_relu": nn.LeakyReLU, "prelu": nn.PReLU, "rrelu": nn.RReLU, "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU,
    "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish, "softplus": nn.Softplus, "hardswish": nn.Hardswish,
}
"""PReLU has one slope a layer, PyTorch's default. The ConvReLU paper's Table 6 counts +12 in twelve layers, and a slope
a channel would make the LENI paper's ResNet-34 21.34 M, where it prints 21.33."""

ACTIVATIONS = {
    "relu": RELU,
    "leni": Activation(lk.LENI2d, images_only=True),
    "leni_separable": Activation(partial(lk.LENI2d, separable=True), images_only=True),
    "reborn": Activation(lk.Reborn2d, images_only=True),
    "conv_relu": RELU._replace(threshold_init="zeros"),
    "conv_relu_normal": RELU._replace(threshold_init="normal"),
    "conv_relu_xavier": RELU._replace(threshold_init="xavier"),
    "ada_relu": Activation(lk.AdaReLU),
    "fully_parametric_relu": Activation(lk.FullyParametricReLU),
    "crelu": Activation(lambda channels: lk.CReLU(), growth=2),
    "extended_conv": Activation(_extended, images_only=True),
    "extended_depthwise_conv": Activation(lambda channels: _extended(channels, groups=channels), images_only=True),
    **{name: _without_channels(activation) for name, activation in PYTORCHS.items()},
}
"""The papers call "Extended Conv" a 3×3 convolution behind each ReLU, with nothing before the next one: of as many
filters as the convolution in front (Reborn, §4.6), or depthwise (LENI, §4.4), from which the parameters that LENI's
Table 3 prints for it, LENI's own, do not follow."""


def by_name(name: str) -> Activation:
    """The activation called ``name``.

    Raises:
        ValueError: if there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; the activations are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


Site = TypeVar("Site")


def chosen(where: str, sites: Sequence[Site], first_block: Sequence[Site] = (),
           last_block: Sequence[Site] = ()) -> Sequence[Site]:
    """The sites at which an activation is to stand, of all ``sites`` in order of execution and the two blocks'.

    Args:
        where: "all", "first:N", "first-block" or "last-block".

    Raises:
        ValueError: if ``where`` is none of these.
    """
    first = re.fullmatch(r"first:(\d+)", where)
    if first:
        return sites[:int(first[1])]
    found = {"all": sites, "first-block": first_block, "last-block": last_block}.get(where)
    if found is None:
        raise ValueError(f"where must be 'all', 'first:N', 'first-block' or 'last-block', got {where!r}")
    return found
