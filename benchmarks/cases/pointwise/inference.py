"""The pointwise activations' forward without gradients, shape by shape."""

from __future__ import annotations

from . import shared
from .shared import Case

TITLE = "Pointwise inference"
SECONDS, TABLE, PICTURE = shared.SECONDS, shared.TABLE, shared.PICTURE
measure = shared.measure


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return shared.cases(quick, "forward")
