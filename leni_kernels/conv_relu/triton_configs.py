"""How the ConvReLU kernels are tiled: a table of exceptions, and the rule for everything else."""

from __future__ import annotations

from typing import NamedTuple

from ..triton_support import itemsize, power_of_two


class Config(NamedTuple):
    """One tiling: the sites, input channels of a group, and output channels of a group in one step."""

    sites: int
    channels: int
    outputs: int
    warps: int
    stages: int = 1
    """Iterations of the innermost loop whose loads overlap."""


# Keyed by (kernel, C and O of a group rounded up to powers of two from 16 to 256, operand, architecture), where the
# kernel is "forward", "input" (its gradient) or "weight" (its gradient).
TABLE: dict[tuple[str, int, int, str, str], Config] = {}
"""Where something is known to be better than the rule's tiling, that."""


def choose(kernel: str, channels: int, outputs: int, operand: str, architecture: str) -> Config:
    """The tiling for groups of C input and O output channels, "fp16", "bf16", "tf32", "fp32" or "fp64"."""
    channels, outputs = (min(256, max(16, power_of_two(size))) for size in (channels, outputs))
    return TABLE.get((kernel, channels, outputs, operand, architecture)) or _rule(kernel, channels, outputs, operand)


def _rule(kernel: str, channels: int, outputs: int, operand: str) -> Config:
    """The default, by what compiles without spilling: 64 float32 sums a thread or fewer, 64 bytes of x an inner step."""
    if operand == "fp64":
        return Config(64, 16, 16, 4)
    half = itemsize(operand) == 2
    step = 64 if half else 32
    if operand == "fp32":
        return Config(64, min(channels, 16 if kernel == "forward" else 64), min(outputs, 64 if kernel == "forward" else 16), 4)
    if kernel == "weight":
        return Config(step, min(channels, 64), min(outputs, 128), 4)
    if kernel == "input":
        return Config(64 if half else 64, min(channels, 64), min(outputs, step), 4)
    wide = min(outputs, 128)
    return Config(128, min(channels, step), wide, 8 if wide == 128 else 4)
