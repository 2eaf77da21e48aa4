"""A training step of the pointwise activations, shape by shape: forward, and backward to x and all parameters."""

from __future__ import annotations

from . import shared
from .shared import Case

TITLE = "Pointwise training step"
SECONDS, TABLE, PICTURE = shared.SECONDS, shared.TABLE, shared.PICTURE
measure = shared.measure


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return shared.cases(quick, "step")
