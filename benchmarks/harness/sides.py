"""The blocks that benchmarks compare, and what ran where."""

from __future__ import annotations

import copy

import torch
from torch import nn

import leni_kernels as lk


def random_leni(channels: int) -> lk.LENI2d:
    """A LENI block in eval mode, with statistics and affine parameters such as training leaves."""
    block = lk.LENI2d(channels).eval()
    with torch.no_grad():
        for norm in (block.bn_negative, block.bn_fusion):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    return block


def folded(network: nn.Module) -> nn.Module:
    """A copy of the network in its inference form."""
    return lk.fold(copy.deepcopy(network))


class Fallback(RuntimeError):
    """No kernel of this package would run; what runs instead is not to be timed under its name."""


def backend_of(network: nn.Module, x: torch.Tensor) -> str:
    """The backend on which this package would run the network.

    Raises:
        Fallback: if any operation would run on the reference; the message says why.
    """
    decisions = lk.explain(network, x)
    for decision in decisions:
        if decision.backend == "reference":
            reasons = "; ".join(f"{name}: {reason}" for name, reason in decision.why_not.items())
            raise Fallback(f"{decision.operation} would run on the reference ({reasons})")
    return ", ".join(sorted({decision.backend for decision in decisions}))
