"""A training step of ConvReLU, layer by layer: forward, and backward to x and all parameters, in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from harness import parity, sides
from torch import Tensor

from . import shared
from .shared import Case

TITLE = "ConvReLU training step"
SECONDS = {"cpu": 0.2, "cuda": 0.4, "quick": 0.2}
TABLE = shared.TABLE
PICTURE = None


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return shared.cases(quick, ("float32",))


def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    module = case.module(device)
    double = copy.deepcopy(module).double()
    xs = case.inputs(device)
    pairs = [(x.requires_grad_(), torch.randn_like(shared.peer(case, module)(x))) for x in xs]
    found = shared.contenders(module, xs[0], {
        "relu_conv": peer_step(case, module), "composed": sides.composed(sides.step(module)),
        "ours": sides.step(module)})
    results = {name: step(pairs[0]) for name, step in found.functions.items()}
    x, grad = pairs[0]
    pair = (x.detach().double().requires_grad_(), grad.double())
    # The peer has no thresholds: it is judged by itself in float64.
    verdicts = parity.judge_steps({"relu_conv": results.pop("relu_conv")}, peer_step(case, double)(pair), {})
    verdicts |= parity.judge_steps(results, sides.composed(sides.step(double))(pair), {})
    return shared.row(case, found, verdicts, pairs, device, seconds)


def peer_step(case: Case, module: torch.nn.Module) -> sides.Step:
    """The training step of ``conv(relu(x))``: y and all gradients."""
    forward: Callable[[Tensor], Tensor] = shared.peer(case, module)
    parameters: Mapping[str, Tensor] = {"weight": module.weight, "bias": module.bias}

    def run(pair: sides.Pair) -> dict[str, Tensor]:
        x, grad = pair
        y = forward(x)
        gradients = torch.autograd.grad(y, (x, *parameters.values()), grad)
        return {"y": y.detach(), **dict(zip(("x", *parameters), gradients, strict=True))}

    return run
