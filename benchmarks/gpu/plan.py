"""The steps of a check and the seconds each may take: the whole budget, in one place."""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """One step, which runs in a process of its own."""

    name: str
    seconds: int
    """When these are nearly up no further case is begun, and the step says which were left out."""
    case_seconds: int
    """A case that takes longer is given up: its process is ended, and the next case begun in another."""


STEPS = (
    Step("ahead", 90, 90),
    Step("smoke", 70, 30),
    Step("speed", 110, 40),
    Step("kernels", 20, 15),
    Step("whole", 40, 30),
    Step("behaviour", 40, 30),
    Step("sanitize", 35, 35),
)
REST = 15
"""Seconds for the start, the results and the summary."""

TOTAL = sum(step.seconds for step in STEPS) + REST
MOST = 7 * 60

REHEARSED = 40
"""How many times the seconds a rehearsal may take, step by step: an interpreter on a CPU stands for the GPU."""
