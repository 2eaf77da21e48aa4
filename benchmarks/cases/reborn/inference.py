"""Reborn inference, shape by shape: the composed block, the same folded, ours, and a convolution.

The yardstick is the library's convolution of x with as many taps as the block has: what it replaces multiplies no less.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from harness import blocks, maps, parity, sides
from harness.maps import Map

from . import shared

TITLE = "Reborn inference"
SECONDS = {"cpu": 0.4, "cuda": 0.4, "quick": 0.4}
TABLE = blocks.Table(
    times=("convolution", "composed", "folded", "ours"),
    ratios={"composed/ours": "× composed", "folded/ours": "× folded", "ours/convolution": "time / convolution"},
    label=maps.label, head=maps.HEAD)
PICTURE = None


def cases(quick: bool) -> list[Map]:
    """All cases of a run."""
    return shared.cases(quick)


@torch.inference_mode()
def measure(case: Map, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    inputs = [case.tensor(shared.ELEMENTS[device.type], device) for _ in range(maps.BUFFERS)]
    x, block = inputs[0], shared.block(case.channels).to(device).eval()
    folded = sides.folded(block)
    functions, missing, backend = {"composed": sides.composed(block), "folded": sides.composed(folded)}, {}, None
    try:
        backend = sides.backend_of(folded, x)
        functions["ours"] = folded
    except sides.NotMeasured as reason:
        missing["ours"] = str(reason)
    truth = sides.composed(copy.deepcopy(block).double())(x.double())
    verdicts = parity.judge({name: function(x) for name, function in functions.items()}, truth, composed="composed")
    turns = itertools.cycle(inputs)
    timed = {name: maps.on(function, turns) for name, function in functions.items() if verdicts[name].passed}
    taps = block.deconv.weight
    timed["convolution"] = maps.on(lambda x: F.conv2d(x, taps, padding=1), turns)
    return shared.row(case, x.shape[0], backend, missing, verdicts, timed, TABLE.ratios, device, seconds)
