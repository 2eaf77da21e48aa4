"""A training step of LENI, shape by shape: forward, and backward to x and all parameters, in float32.

The limit L of a case is the slower of what no implementation can do without, measured beside it: 4 copies of
x (two passes forward, two backward) and 3 of the bare products ``[pixels × 2C] · [2C × C]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from harness import blocks, maps, sides, timing
from harness.maps import Map

import leni_kernels as lk

from . import shared
from .shared import Contenders

TITLE = "LENI training step"
SECONDS = {"cpu": 0.4, "cuda": 0.4, "quick": 0.4}
TABLE = shared.TABLE
PICTURE = blocks.Picture("-steps", "L = the slower of 4 copies of x and 3 bare products [pixels × 2C]·[2C × C]",
                         "composed, torch.compile")

ELEMENTS = {"cpu": 64 * 224**2, "cuda": 16 * 64 * 224**2}
"""Elements of x: 12.25 MiB on a CPU, 196 MiB on a GPU; of its gradient as many."""

COMPILED: tuple[tuple[int, int, str], ...] = (
    (32, 112, "channels_last"), (64, 56, "channels_last"), (64, 56, "channels_first"))
"""Where the composed block is compiled too: a compilation takes longer than all the rest of a case."""

NOT_COMPILED = "a compilation for training takes long: 32×112² (channels-last) and 64×56² only"
ROUNDS, WARM_UP = (4, 60), 1


def cases(quick: bool) -> list[Map]:
    """All cases of a run."""
    return shared.cases(quick, ("float32",))


def compile_every_case() -> None:
    """Compile the composed block in every case from now on."""
    global COMPILED
    COMPILED = tuple(case[:3] for case in cases(quick=False))


def limit(medians: Mapping[str, float]) -> float:
    """L, from the times of the yardsticks."""
    return max(4 * medians["copy"], 3 * medians["product"])


def measure(case: Map, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    pairs = [_pair(case, device) for _ in range(maps.BUFFERS)]
    block = sides.random_leni(case.channels).to(device).train()
    found = _contenders(case, block, pairs[0])
    verdicts = sides.judge_steps(block, found.functions, pairs[0])
    turns = itertools.cycle(pairs)
    timed = {name: maps.on(function, turns) for name, function in found.functions.items()
             if verdicts[name].passed}
    timed |= shared.yardsticks(pairs[0][0].detach(), (x.detach() for x, _ in turns))
    samples, faults = timing.alternate_counting_faults(timed, timing.timer(device), seconds, ROUNDS, WARM_UP)
    return shared.row(case, pairs[0][0].shape[0], found, verdicts, samples, faults, limit)


# ---- the sides ---------------------------------------------------------------------------------------------


def _pair(case: Map, device: torch.device) -> sides.Pair:
    elements = ELEMENTS[device.type]
    return case.tensor(elements, device).requires_grad_(), case.tensor(elements, device)


def _contenders(case: Map, block: lk.LENI2d, pair: sides.Pair) -> Contenders:
    def ours() -> tuple[shared.Function, str]:
        return sides.step(block), sides.backend_of(block, pair[0])

    eager = sides.composed(sides.step(block))
    return shared.contenders(eager, lambda: _compiled(case, block, pair), ours)


def _compiled(case: Map, block: lk.LENI2d, pair: sides.Pair) -> shared.Function:
    if case[:3] not in COMPILED:
        raise sides.NotMeasured(NOT_COMPILED)
    step = sides.composed(sides.step(block, torch.compile(block, fullgraph=True, dynamic=False)))
    step(pair)
    return step
