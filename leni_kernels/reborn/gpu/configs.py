"""How the Reborn kernels are tiled: the tables' tilings first, then a rule for everything else."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ...common.gpu import tilings
from ...common.gpu.architectures import is_amd, multiplies_from_shared, warps_of
from ...common.gpu.support import itemsize
from ...two_branch.gpu.configs import StatisticsConfig, listed, statistics_rule


class TailConfig(NamedTuple):
    """A tiling of a pass of Reborn's tail: the pixels, channels and outputs that one product takes."""

    pixels: int
    channels: int
    outputs: int
    warps: int
    stages: int = 1
    """How many iterations of the innermost loop overlap."""


def statistics(channels: int, operand: str, architecture: str, channels_last: bool) -> StatisticsConfig:
    """The tiling of the statistics' pass, which reads z as LENI's reads x."""
    return (listed("reborn statistics", StatisticsConfig, channels, 1, operand, architecture, channels_last)
            or statistics_rule(channels, 3, operand, architecture, channels_last))


def tail(channels: int, operand: str, architecture: str, channels_last: bool) -> TailConfig:
    """The tiling of y: all channels at once where they fit, so that the weights stay on the chip."""
    return _chosen("tail", channels, operand, architecture, channels_last)


def branch_gradient(channels: int, operand: str, architecture: str, channels_last: bool) -> TailConfig:
    """The tiling of either branch's gradient, a product of dy."""
    return _chosen("gradient", channels, operand, architecture, channels_last)


def weight_gradient(channels: int, operand: str, architecture: str, channels_last: bool) -> TailConfig:
    """The tiling of the weight's gradient, a product over pixels."""
    return _chosen("weight gradient", channels, operand, architecture, channels_last)


def _chosen(which: str, channels: int, operand: str, architecture: str, channels_last: bool) -> TailConfig:
    return (listed(f"reborn {which}", TailConfig, channels, 1, operand, architecture, channels_last)
            or _rule(which, tilings.rounded(channels), operand, architecture, channels_last))


@cache
def _rule(which: str, channels: int, operand: str, architecture: str, channels_last: bool) -> TailConfig:
    """The default, by what compiles without spilling: two programs fit on a Hopper, and one on a GPU with 99 KiB."""
    if operand == "fp64":
        return TailConfig(32, 16, 16, 4)
    half, amd = itemsize(operand) == 2, is_amd(architecture)
    # What overlaps is copied to shared memory as it lies, and TF32 products want the summed dimension side by side
    # there: where memory has the other, such copies are of single elements.
    across = operand == "tf32" and channels_last == (which == "weight gradient")
    from_shared = multiplies_from_shared(architecture)
    warps, stages = warps_of(256, architecture), 1 if amd or across else 3 if half and from_shared else 2
    # Beside operands in shared memory registers have room for the sums of 256 outputs: x, z and dy are read less often.
    wide = half and from_shared and channels > 128
    stages = min(stages, 2) if wide and which != "gradient" else stages
    outputs = min(channels, 256 if wide else 128 if half else 64)
    if which == "tail":
        depth = 64 if channels <= 64 and operand != "fp32" else 32
        pixels = 128 if half and (channels <= 128 or amd or from_shared) else 64
        return TailConfig(pixels, min(channels, depth), outputs, warps, stages)
    depth = 64 if half else 32
    if which == "gradient":
        pixels = 128 if half and (channels <= 64 or from_shared) else 64
        return TailConfig(pixels, min(channels, 128), min(channels, depth), warps, stages)
    return TailConfig(depth, min(channels, 64), outputs, warps, stages)
