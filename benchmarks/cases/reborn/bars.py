"""The numbers to reach."""

from __future__ import annotations

from harness import bars

CPU = (
    bars.least("reborn_training", "Reborn, training step, times faster than the composed block, slowest case",
               "float32", "composed/ours", 2.0),
)

OVERHEAD = (
    bars.overhead("Reborn2d", "inference", 0.5, "composed"),
    bars.overhead("Reborn2d", "step", 0.6, "composed"),
)
