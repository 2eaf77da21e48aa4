"""ConvReLU inference, layer by layer: ours, composed of PyTorch's layers, and ``conv(relu(x))``, which it replaces."""

from __future__ import annotations

import copy
from typing import Any

import torch
from harness import parity, sides

from . import shared
from .shared import Case

TITLE = "ConvReLU inference"
SECONDS = {"cpu": 0.15, "cuda": 0.4, "quick": 0.15}
TABLE = shared.TABLE
PICTURE = None


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return [*shared.cases(quick, ("float32",)),
            *shared.cases(quick, ("bfloat16",), shared.LAYOUTS[1:])]


@torch.inference_mode()
def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    inputs, module = case.inputs(device), case.module(device)
    x = inputs[0]
    peer, double = shared.peer(case, module), copy.deepcopy(module).double()
    functions = {"relu_conv": peer, "composed": sides.composed(module), "ours": module}
    found = shared.contenders(module, x, functions)
    # Of a batch the first sample is judged: the composed block in float64 takes longer than all the timing.
    outputs = {name: function(x)[:1] for name, function in found.functions.items()}
    x = x[:1].double()
    verdicts = parity.judge(outputs, sides.composed(double)(x), composed="composed")
    # The peer has no thresholds: it is judged by itself in float64.
    exact, output = shared.peer(case, double)(x), outputs["relu_conv"]
    verdicts["relu_conv"] = parity.judge({"relu_conv": output}, exact, composed="relu_conv")["relu_conv"]
    return shared.row(case, found, verdicts, inputs, device, seconds)
