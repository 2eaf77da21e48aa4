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

import leni_cases
import torch
import torch.nn.functional as F
from harness import blocks, parity, sides, timing
from torch import Tensor

import leni_kernels as lk
from leni_kernels.reborn import reference

TITLE = "Reborn training step"
SECONDS = {"cpu": 0.5, "cuda": 0.4, "quick": 0.4}
SHAPES = ((16, 112), (32, 112), (64, 56), (128, 28))
QUICK_SHAPES = ((16, 112), (64, 56))
ELEMENTS = {"cpu": 2 * 64 * 112**2, "cuda": 16 * 64 * 112**2}
"""Elements of x: 6 MiB on a CPU, 49 MiB on a GPU; of its gradient as many."""

CONTENDERS = ("composed", "flipped", "ours")
TABLE = blocks.Table(
    times=("convolutions", *CONTENDERS),
    ratios={"composed/ours": "× composed", "flipped/ours": "× flipped", "ours/convolutions": "time / convolutions"},
    label=lambda row: f"{row['channels']}, {row['size']}×{row['size']}", head="C, H×W")
PICTURE = None
ROUNDS, WARM_UP = (4, 60), 1


class Case(leni_cases.Case):
    """One shape in one layout and dtype."""

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace("LENI", "Reborn")


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    shapes, layouts = (QUICK_SHAPES, leni_cases.QUICK_LAYOUTS) if quick else (SHAPES, leni_cases.LAYOUTS)
    return [Case(*shape, layout, "float32") for layout in layouts for shape in shapes]


def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    pairs = [_pair(case, device) for _ in range(leni_cases.BUFFERS)]
    block = _random_reborn(case.channels).to(device).train()
    functions, missing, backend = _contenders(block, pairs[0])
    verdicts = _judge(block, functions, pairs[0])
    turns = itertools.cycle(pairs)
    timed = {name: leni_cases.on(function, turns) for name, function in functions.items() if verdicts[name].passed}
    timed["convolutions"] = _convolutions(block, turns)
    samples, faults = timing.alternate_counting_faults(timed, timing.timer(device), seconds, ROUNDS, WARM_UP)
    times = {name: timing.summary(values) for name, values in samples.items()}
    medians = {name: time["median"] for name, time in times.items()}
    return {
        **case._asdict(),
        "batch": pairs[0][0].shape[0],
        "backend": backend,
        "missing": missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times,
        "ratios": {ratio: medians[over] / medians[under] for ratio in TABLE.ratios
                   for over, under in [ratio.split("/")] if over in medians and under in medians},
        "page_faults_per_call": round(faults / sum(map(len, samples.values())), 1),
    }


# ---- the sides ---------------------------------------------------------------------------------------------


def _pair(case: Case, device: torch.device) -> sides.Pair:
    elements = ELEMENTS[device.type]
    return case.tensor(elements, device).requires_grad_(), case.tensor(elements, device)


def _random_reborn(channels: int) -> lk.Reborn2d:
    block = lk.Reborn2d(channels)
    with torch.no_grad():
        block.bn_negative.weight.uniform_(0.5, 1.5)
        block.bn_negative.bias.normal_(0, 0.3)
    return block


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
