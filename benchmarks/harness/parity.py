"""Parity first, then time: no side is timed whose output is not the reference's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


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


def error(output: Tensor, truth: Tensor) -> float:
    """``max |output − truth| / max |truth|``; infinite for a wrong shape or a NaN."""
    if output.shape != truth.shape:
        return math.inf
    distance = (output.to(truth.dtype) - truth).abs().max() / truth.abs().max()
    return math.inf if distance.isnan() else distance.item()


def judge(outputs: dict[str, Tensor], truth: Tensor, composed: str) -> dict[str, Verdict]:
    """Compare every output with the float64 ``truth``.

    float32 may be off by 1e-5 and float64 by 1e-12 of the largest value; half precision by twice the error of
    ``outputs[composed]``, the block composed of PyTorch's layers.
    """
    errors = {name: error(output, truth) for name, output in outputs.items()}
    return {name: Verdict(errors[name], _EXACT.get(output.dtype, 2 * errors[composed]))
            for name, output in outputs.items()}
