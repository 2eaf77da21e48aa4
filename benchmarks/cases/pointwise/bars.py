"""The numbers to reach."""

from __future__ import annotations

from harness import bars

CPU = tuple(
    bars.slowest(f"pointwise_{part}", f"{name}, {words}, slowest case: time / ReLU", "float32", f"{name}/ReLU", *goals)
    for name in ("AdaReLU", "FPReLU")
    for part, words, goals in (("inference", "forward", (1.1, None)), ("training", "step", (1.8, 1.2))))

ALL = ("AdaReLU", "FullyParametricReLU", "CReLU")
OVERHEAD = (
    bars.overhead("pointwise, slowest", "inference", 1.8, "PReLU", *ALL),
    bars.overhead("pointwise, slowest", "step", 1.2, "PReLU", *ALL),
)
