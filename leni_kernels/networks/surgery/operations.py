"""What to do about one call of a ReLU, and what that has in common for all kinds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from ...common.hooks import hooked
from .call_sites import Site


@dataclass
class Operation:
    """What becomes of one site: ``block`` takes its place, and ``convolutions``, by their paths, that of others.

    ``stand_in`` computes with ``block``'s input what the activation did. ``note``, ``parameters`` and ``flops`` are
    for the report.
    """

    site: Site
    block: nn.Module
    stand_in: nn.Module
    note: str
    parameters: int = 0
    flops: int = 0
    convolutions: dict[str, nn.Module] = field(default_factory=dict)


def obstacle(site: Site) -> str | None:
    """Why a site must stay as it is, whatever the kind."""
    if site.within:
        return f"it runs within {site.within}, a layer of PyTorch, which is not opened"
    if site.module is not None and hooked(site.module):
        return "it has hooks, which a replacement would lose"
    if not site.dtype.is_floating_point:
        return f"it takes {site.dtype}"
    if site.reread == "elsewhere":
        return "it works in place, and its input is read again out of its caller's sight"
    return None


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
