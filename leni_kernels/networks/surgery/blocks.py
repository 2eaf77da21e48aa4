"""Blocks that stand where a ReLU stood: LENI, Reborn, AdaReLU, FullyParametricReLU."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...leni.modules import LENI1d, LENI2d, LENI3d
from ...pointwise.modules import AdaReLU, FullyParametricReLU
from ...reborn.modules import Reborn1d, Reborn2d, Reborn3d
from .call_sites import Site, activation
from .operations import Operation, dtype, settled

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """What may be put where a ReLU was."""

    options: frozenset[str]
    least: int
    """The axes that a feature map must have,"""
    most: float
    """and may have."""
    make: Callable[..., nn.Module]
    """(shape, device=, dtype=, **options) -> the module."""
    flops: Callable[[nn.Module, Shape], int]
    """What a module takes for one sample."""


def _options(module: type[nn.Module]) -> frozenset[str]:
    """The constructor's arguments that surgery does not set itself; Reborn must keep its channels."""
    return frozenset(inspect.signature(module).parameters).difference(
        ("channels", "shape", "device", "dtype", "compress"))


def _of_channels(*modules: type[nn.Module]) -> Callable[..., nn.Module]:
    """Makes the last of the modules, or that for the shape's number of spatial dimensions, the first being for one."""
    return lambda shape, **options: modules[min(len(shape) - 3, len(modules) - 1)](shape[1], **options)


def _ada_relu(shape: Shape, sharing: str = "channel", **options: Any) -> AdaReLU:
    shapes = {"channel": shape[1:2], "layer": (1,), "element": shape[1:]}
    if sharing not in shapes:
        raise ValueError(f"replace_relu: sharing must be one of {', '.join(shapes)}, got {sharing!r}")
    return AdaReLU(shapes[sharing], **options)


def _flops_of_weights(block: nn.Module, shape: Shape) -> int:
    """Of LENI and Reborn: a multiplication and an addition for each weight and pixel."""
    weights = (weight.numel() for weight in block.parameters() if weight.dim() > 1)
    return 2 * math.prod(shape[2:]) * sum(weights)


KINDS = {
    "leni": Kind(_options(LENI2d), 3, 5, _of_channels(LENI1d, LENI2d, LENI3d), _flops_of_weights),
    "reborn": Kind(_options(Reborn2d), 3, 5, _of_channels(Reborn1d, Reborn2d, Reborn3d), _flops_of_weights),
    "ada_relu": Kind(_options(AdaReLU) | {"sharing"}, 2, math.inf, _ada_relu, lambda block, shape: 0),
    "fully_parametric_relu": Kind(_options(FullyParametricReLU), 2, math.inf, _of_channels(FullyParametricReLU),
                                  lambda block, shape: math.prod(shape[1:])),
}


class Blocks:
    """A block for each ReLU."""

    def __init__(self, name: str, model: nn.Module, options: Mapping[str, Any]) -> None:
        self._kind, self._model, self._options = KINDS[name], model, options

    def obstacle(self, site: Site) -> str | None:
        if self._kind.least <= len(site.shape) <= self._kind.most:
            return None
        return f"the block takes [N, C, *spatial], this is {list(site.shape)}"

    def operations(self, sites: Sequence[Site]) -> dict[str, Operation]:
        return {site.name: self._operation(site) for site in sites}

    def _operation(self, site: Site) -> Operation:
        block = self._kind.make(site.shape, device=site.device, dtype=dtype(site), **self._options)
        parameters = sum(parameter.numel() for parameter in block.parameters())
        note = type(block).__name__ + (", without the cap at 6" if site.sort == "relu6" else "")
        return Operation(site, settled(self._model, site, block), activation(site.sort), note, parameters,
                         self._kind.flops(block, site.shape))
