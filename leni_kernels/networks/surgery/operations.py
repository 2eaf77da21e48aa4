"""What to do about one call of a ReLU, and what that has in common for all kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from ...common.hooks import hooked
from .call_sites import Observer, Site


@dataclass
class Operation:
    """What becomes of one site.

    ``block`` takes its place; None leaves the activation. ``convolutions`` are swapped wherever they hang. ``region``
    is the module whose forward has to be rewritten; None where swapping modules is enough. ``past``, ``past_callers``
    and ``cap`` are those of :class:`~.graphs.Edit`. ``note``, ``parameters`` and ``flops`` are for the report.
    """

    site: Site
    block: nn.Module | None
    region: nn.Module | None
    note: str
    parameters: int = 0
    flops: int = 0
    convolutions: dict[nn.Module, nn.Module] = field(default_factory=dict)
    past: tuple[str, ...] = ()
    past_callers: tuple[nn.Module, ...] = ()
    cap: nn.Module | None = None


class Plan(Protocol):
    """A kind of replacement, for one model."""

    notes: tuple[str, ...]
    """For the report."""

    def obstacle(self, site: Site) -> str | None:
        """Why a site cannot be replaced, or None."""

    def operation(self, site: Site) -> Operation:
        """How it is."""


def obstacle(site: Site) -> str | None:
    """Why a site must stay as it is, whatever the kind."""
    if site.module is not None and hooked(site.module):
        return "it has hooks, which a replacement would lose"
    if not site.dtype.is_floating_point:
        return f"it takes {site.dtype}"
    if site.reread == "elsewhere":
        return "it works in place, and its input is read again out of its caller's sight"
    return None


def region(observer: Observer, site: Site) -> nn.Module | None:
    """The module whose forward must change: the innermost caller that runs once; None if a module can be swapped."""
    if site.module is not None and observer.calls[site.module] == 1 and not (site.reread or site.keyword):
        return None
    return next(module for module in reversed(site.callers) if observer.calls[module] == 1)


def settled(model: nn.Module, site: Site, block: nn.Module) -> nn.Module:
    """The block in the model's memory format and its caller's mode."""
    if any(parameter.dim() == 4 and not parameter.is_contiguous()
           and parameter.is_contiguous(memory_format=torch.channels_last) for parameter in model.parameters()):
        block = block.to(memory_format=torch.channels_last)
    return block.train((site.callers[-1] if site.callers else model).training)


def dtype(site: Site) -> torch.dtype:
    """That of the parameters around a site; under autocast the activation has another."""
    parameters = (parameter for caller in reversed(site.callers) for parameter in caller.parameters())
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), site.dtype)
