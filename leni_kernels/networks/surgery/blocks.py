"""Blocks that stand where a ReLU stood: LENI, Reborn, AdaReLU, FullyParametricReLU."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...leni.modules import LENI2d
from ...pointwise.modules import AdaReLU, FullyParametricReLU
from ...reborn.modules import Reborn2d
from .call_sites import Observer, Site
from .operations import Operation, dtype, region, settled

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


def _of_channels(module: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda shape, **options: module(shape[1], **options)


def _ada_relu(shape: Shape, sharing: str = "channel", **options: Any) -> AdaReLU:
    shapes = {"channel": shape[1:2], "layer": (1,), "element": shape[1:]}
    if sharing not in shapes:
        raise ValueError(f"replace_relu: sharing must be one of {', '.join(shapes)}, got {sharing!r}")
    return AdaReLU(shapes[sharing], **options)


def _flops_of_weights(block: nn.Module, shape: Shape) -> int:
    """Of LENI and Reborn: a multiplication and an addition for each weight and pixel."""
    return 2 * math.prod(shape[2:]) * (block.deconv.weight.numel() + block.compress.weight.numel())


KINDS = {
    "leni": Kind(_options(LENI2d), 4, 4, _of_channels(LENI2d), _flops_of_weights),
    "reborn": Kind(_options(Reborn2d), 4, 4, _of_channels(Reborn2d), _flops_of_weights),
    "ada_relu": Kind(_options(AdaReLU) | {"sharing"}, 2, math.inf, _ada_relu, lambda block, shape: 0),
    "fully_parametric_relu": Kind(_options(FullyParametricReLU), 2, math.inf, _of_channels(FullyParametricReLU),
                                  lambda block, shape: math.prod(shape[1:])),
}


class Blocks:
    """A :class:`~.operations.Plan`: a block for each ReLU."""

    notes = ()

    def __init__(self, name: str, model: nn.Module, observer: Observer, options: Mapping[str, Any]) -> None:
        self._kind, self._model, self._observer, self._options = KINDS[name], model, observer, options

    def obstacle(self, site: Site) -> str | None:
        if self._kind.least <= len(site.shape) <= self._kind.most:
            return None
        wanted = "[N, C, H, W]" if self._kind.most == 4 else "[N, C, *spatial]"
        return f"the block takes {wanted}, this is {list(site.shape)}"

    def operation(self, site: Site) -> Operation:
        block = self._kind.make(site.shape, device=site.device, dtype=dtype(site), **self._options)
        parameters = sum(parameter.numel() for parameter in block.parameters())
        return Operation(site, settled(self._model, site, block), region(self._observer, site), type(block).__name__,
                         parameters, self._kind.flops(block, site.shape))
