"""A training step of Reborn, shape by shape: forward, and backward to x and all parameters, in float32.

Beside the block composed of PyTorch's layers stands the same with its deconvolution written as the equal convolution
with flipped taps. The yardstick is that convolution and its two gradients alone, as the library runs them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import blocks, maps, parity, sides, timing
from harness.maps import Map
from torch import Tensor

import leni_kernels as lk
from leni_kernels.reborn import reference

from . import shared

TITLE = "Reborn training step"
SECONDS = {"cpu": 0.5, "cuda": 0.4, "quick": 0.4}
CONTENDERS = ("composed", "flipped", "ours")
TABLE = blocks.Table(
    times=("convolutions", *CONTENDERS),
    ratios={"composed/ours": "× composed", "flipped/ours": "× flipped", "ours/convolutions": "time / convolutions"},
    label=maps.label, head=maps.HEAD)
PICTURE = None


def cases(quick: bool) -> list[Map]:
    """All cases of a run."""
    return shared.cases(quick)


def measure(case: Map, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    pairs = [_pair(case, device) for _ in range(maps.BUFFERS)]
    block = shared.block(case.channels).to(device).train()
    functions, missing, backend = _contenders(block, pairs[0])
    verdicts = _judge(block, functions, pairs[0])
    turns = itertools.cycle(pairs)
    timed = {name: maps.on(function, turns) for name, function in functions.items() if verdicts[name].passed}
    timed["convolutions"] = _convolutions(block, turns)
    return shared.row(case, pairs[0][0].shape[0], backend, missing, verdicts, timed, TABLE.ratios, device, seconds)


# ---- the sides ---------------------------------------------------------------------------------------------


def _pair(case: Map, device: torch.device) -> sides.Pair:
    elements = shared.ELEMENTS[device.type]
    return case.tensor(elements, device).requires_grad_(), case.tensor(elements, device)


def _contenders(block: lk.Reborn2d, pair: sides.Pair) -> tuple[dict[str, sides.Step], dict[str, str], str | None]:
    """The steps to compare, why ours is missing, and its backend."""

    def flipped(x: Tensor) -> Tensor:
        weight = reference.flipped(block.deconv.weight, block.deconv.groups)
        deconv = partial(F.conv2d, weight=weight, padding=block.deconv.padding, groups=block.deconv.groups)
        return reference.reborn(x, deconv, block.bn_negative, block.compress)

    steps = {"composed": sides.composed(sides.step(block)), "flipped": sides.step(block, flipped)}
    try:
        backend = sides.backend_of(block, pair[0])
    except sides.NotMeasured as reason:
        return steps, {"ours": str(reason)}, None
    return {**steps, "ours": sides.step(block)}, {}, backend


def _judge(block: lk.Reborn2d, steps: dict[str, sides.Step], pair: sides.Pair) -> dict[str, parity.Verdict]:
    """Compare the float32 steps with the float64 reference: y and all gradients."""
    x, grad = pair
    double = sides.composed(sides.step(copy.deepcopy(block).double()))
    truth = double((x.detach().double().requires_grad_(), grad.double()))
    return parity.judge_steps({name: run(pair) for name, run in steps.items()}, truth, {})


def _convolutions(block: lk.Reborn2d, turns: Iterator[sides.Pair]) -> timing.Side:
    """The library's convolution of the negative branch, and both gradients of it."""
    weight = reference.flipped(block.deconv.weight.detach(), 1).requires_grad_()

    def run() -> tuple[Tensor, ...]:
        x, grad = next(turns)
        return torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), grad)

    return run
