"""LENI inference, shape by shape: the eager block, the hand-folded block compiled, ours, and the limits.

The limit L of a case is the slower of two things that no implementation can do without, measured beside it:
a copy of x, and the bare product ``[pixels × 2C] · [2C × C]``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from harness import blocks, maps, parity, sides, timing
from harness.maps import Map
from torch import Tensor

import leni_kernels as lk
from leni_kernels.leni import reference

from . import shared
from .shared import Contenders

TITLE = "LENI inference"
SECONDS = {"cpu": 0.5, "cuda": 0.4, "quick": 0.4}
TABLE = shared.TABLE
PICTURE = blocks.Picture("", "L = the slower of a copy of x and the bare product [pixels × 2C]·[2C × C]",
                         "folded by hand, torch.compile")

ELEMENTS = {"cpu": 2 * 64 * 224**2, "cuda": 32 * 64 * 224**2}
"""Elements of x: 24.5 MiB in float32 on a CPU, 392 MiB on a GPU."""


def cases(quick: bool) -> list[Map]:
    """All cases of a run."""
    return shared.cases(quick, maps.DTYPES)


def limit(medians: Mapping[str, float]) -> float:
    """L, from the times of the yardsticks."""
    return max(medians["copy"], medians["product"])


@torch.inference_mode()
def measure(case: Map, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    inputs = [case.tensor(ELEMENTS[device.type], device) for _ in range(maps.BUFFERS)]
    block = sides.random_leni(case.channels).to(device, maps.DTYPES[case.dtype])
    found = _contenders(block, inputs[0])
    verdicts = _parity(block, found, inputs[0])
    turns = itertools.cycle(inputs)
    timed = {name: maps.on(function, turns) for name, function in found.functions.items()
             if verdicts[name].passed}
    timed |= {**shared.yardsticks(inputs[0], turns), "relu": maps.on(torch.relu, turns)}
    samples, faults = timing.alternate_counting_faults(timed, timing.timer(device), seconds)
    return shared.row(case, inputs[0].shape[0], found, verdicts, samples, faults, limit)


# ---- the sides ---------------------------------------------------------------------------------------------


def _contenders(block: lk.LENI2d, x: Tensor) -> Contenders:
    def ours() -> tuple[shared.Function, str]:
        folded = sides.folded(block)
        return folded, sides.backend_of(folded, x)

    return shared.contenders(sides.composed(block), lambda: _compiled(block, x), ours)


def _compiled(block: lk.LENI2d, x: Tensor) -> shared.Function:
    """The strongest peer: folded by hand, its deconvolution the faster correlation, and compiled."""
    folded = reference.fold_leni(*block.parameters_for_kernels())
    parameters = [tensor.to(x.dtype) for tensor in (folded.taps, folded.weight, folded.bias)]
    compiled = torch.compile(reference.leni_folded, fullgraph=True, dynamic=False)
    compiled(x, *parameters)
    return lambda x: compiled(x, *parameters)


def _parity(block: lk.LENI2d, found: Contenders, x: Tensor) -> dict[str, parity.Verdict]:
    truth = sides.composed(copy.deepcopy(block).double())(x.double())
    outputs = {name: function(x) for name, function in found.functions.items()}
    return parity.judge(outputs, truth, composed="eager")
