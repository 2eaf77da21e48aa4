"""The numbers to reach."""

from __future__ import annotations

from harness import bars

GPU = (
    bars.slowest("gpu_networks", "whole network, LENI in layer 1, images/s lost in %", "bfloat16", "loss", 3.0),
)
