"""ConvReLU inference, layer by layer: ours, composed of PyTorch's layers, and ``conv(relu(x))``, which it replaces."""

from __future__ import annotations

import copy
from typing import Any

import conv_relu_cases
import torch
from conv_relu_cases import Case
from harness import parity, sides

TITLE = "ConvReLU inference"
SECONDS = {"cpu": 0.25, "cuda": 0.4, "quick": 0.25}
TABLE = conv_relu_cases.TABLE
PICTURE = None


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return conv_relu_cases.cases(quick, conv_relu_cases.DTYPES)


@torch.inference_mode()
def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    inputs, module = case.inputs(device), case.module(device)
    x = inputs[0]
    peer, double = conv_relu_cases.peer(case, module), copy.deepcopy(module).double()
    functions = {"relu_conv": peer, "composed": sides.composed(module), "ours": module}
    found = conv_relu_cases.contenders(module, x, functions)
    outputs = {name: function(x) for name, function in found.functions.items()}
    verdicts = parity.judge(outputs, sides.composed(double)(x.double()), composed="composed")
    # The peer has no thresholds: it is judged by itself in float64.
    exact, output = conv_relu_cases.peer(case, double)(x.double()), outputs["relu_conv"]
    verdicts["relu_conv"] = parity.judge({"relu_conv": output}, exact, composed="relu_conv")["relu_conv"]
    return conv_relu_cases.row(case, found, verdicts, inputs, device, seconds)
