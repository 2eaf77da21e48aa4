"""The blocks that benchmarks compare, and what ran where."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import leni_kernels as lk

from . import parity

Module = TypeVar("Module", bound=nn.Module)


def random_leni(channels: int) -> lk.LENI2d:
    """A LENI block in eval mode, with statistics and affine parameters such as training leaves."""
    return as_trained(lk.LENI2d(channels).eval())


@torch.no_grad()
def as_trained(block: Module) -> Module:
    """The block with random statistics and affine parameters in its norms."""
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    return block


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The activation or weight, dense with channels ("channels_last") or columns innermost, in any dimensions."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else tensor.contiguous()


def folded(network: nn.Module) -> nn.Module:
    """A copy of the network in its inference form."""
    return lk.fold(copy.deepcopy(network))


def composed(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with every operation of this package on the reference: composed of PyTorch's layers."""
    def run(*inputs: Any) -> Any:
        with lk.use_backend("reference"):
            return function(*inputs)

    return run


Pair = tuple[Tensor, Tensor]
"""x, which requires a gradient, and the gradient of y."""
Step = Callable[[Pair], dict[str, Tensor]]


def step(block: lk.LENI2d, forward: Callable[[Tensor], Tensor] | None = None) -> Step:
    """The training step of a block, or of another ``forward`` with its parameters: y and all gradients."""
    parameters, forward = dict(block.named_parameters()), block if forward is None else forward

    def run(pair: Pair) -> dict[str, Tensor]:
        x, grad = pair
        y = forward(x)
        gradients = torch.autograd.grad(y, (x, *parameters.values()), grad)
        return {"y": y.detach(), **dict(zip(("x", *parameters), gradients, strict=True))}

    return run


def judge_steps(block: lk.LENI2d, steps: Mapping[str, Step], pair: Pair) -> dict[str, parity.Verdict]:
    """Compare the float32 steps of a block with the float64 reference: y and all gradients."""
    x, grad = pair
    double = composed(step(copy.deepcopy(block).double()))
    truth = double((x.detach().double().requires_grad_(), grad.double()))
    # BN2 undoes the shift of BN1 and, but for eps, its scale: their true gradients are 0, or nearly.
    scales = {f"bn_negative.{name}": truth[f"bn_fusion.{name}"] for name in ("weight", "bias")}
    return parity.judge_steps({name: run(pair) for name, run in steps.items()}, truth, scales)


class NotMeasured(RuntimeError):
    """A side that is not timed; the message says why."""


class Fallback(NotMeasured):
    """No kernel of this package would run; what runs instead is not to be timed under its name."""


def backend_of(network: nn.Module, x: Tensor) -> str:
    """The backend on which this package would run the network.

    Raises:
        Fallback: if any operation would run on the reference; the message says why.
    """
    decisions = lk.explain(network, x.detach())
    for decision in decisions:
        if decision.backend == "reference":
            reasons = "; ".join(f"{name}: {reason}" for name, reason in decision.why_not.items())
            raise Fallback(f"{decision.operation} would run on the reference ({reasons})")
    return ", ".join(sorted({decision.backend for decision in decisions}))
