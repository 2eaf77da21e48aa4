"""Parity first, then time: no side is timed whose output is not the reference's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
OUR_STEP, PEERS_STEP = 2e-5, 3e-3
"""What a float32 training step may be off by, output and gradients: ours, and PyTorch's own, whose sums over
the feature map round more (1.1e-3 was seen, at 16 images of 112×112)."""


@dataclass(frozen=True)
class Verdict:
    """How far an output is from the truth, and how far it may be."""

    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed

    def as_json(self) -> dict[str, Any]:
        error = self.error if math.isfinite(self.error) else None
        return {"error": error, "allowed": self.allowed, "passed": self.passed}


def error(output: Tensor, truth: Tensor, scale: Tensor | None = None) -> float:
    """``max |output − truth| / max |scale|``, the truth by default; infinite for a wrong shape or a NaN."""
    if output.shape != truth.shape:
        return math.inf
    scale = truth if scale is None else scale
    distance = (output.to(truth.dtype) - truth).abs().max() / scale.abs().max()
    return math.inf if distance.isnan() else distance.item()


def judge(outputs: dict[str, Tensor], truth: Tensor, composed: str) -> dict[str, Verdict]:
    """Compare every output with the float64 ``truth``.

    float32 may be off by 1e-5 and float64 by 1e-12 of the largest value; half precision by twice the error of
    ``outputs[composed]``, the block composed of PyTorch's layers.
    """
    errors = {name: error(output, truth) for name, output in outputs.items()}
    return {name: Verdict(errors[name], _EXACT.get(output.dtype, 2 * errors[composed]))
            for name, output in outputs.items()}


def judge_steps(steps: Mapping[str, Mapping[str, Tensor]], truth: Mapping[str, Tensor],
                scales: Mapping[str, Tensor]) -> dict[str, Verdict]:
    """Compare every tensor of float32 training steps with the float64 ``truth``; the worst one counts.

    ``scales`` has the tensors to measure by for those whose truth is 0.
    """
    return {name: Verdict(max(error(step[key], truth[key], scales.get(key)) for key in truth),
                          OUR_STEP if name == "ours" else PEERS_STEP) for name, step in steps.items()}
