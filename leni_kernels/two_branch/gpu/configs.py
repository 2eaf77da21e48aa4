"""What the rules share by which the kernels of LENI and Reborn are tiled."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, TypeVar

from ...common.gpu import tilings
from ...common.gpu.architectures import warps_of
from ...common.gpu.support import full_vector, power_of_two

Tiling = TypeVar("Tiling")


def listed(kernel: str, tiling: type[Tiling], channels: int, taps: int, operand: str, architecture: str,
           channels_last: bool) -> Tiling | None:
    """What a table has for a kernel of as many outputs as channels."""
    return tilings.find(tiling, tilings.key(kernel, channels, channels, taps, operand, architecture, channels_last))


class StatisticsConfig(NamedTuple):
    """A tiling of the statistics' pass. A position is ``rows`` pixels under each other (in NCHW, of a full vector)."""

    rows: int
    positions: int
    channels: int
    warps: int


def positions_of(pixels: int, operand: str, channels_last: bool) -> int:
    return max(1, pixels if channels_last else pixels // full_vector(operand))


@cache
def statistics_rule(channels: int, kernel_size: int, operand: str, architecture: str,
                    channels_last: bool) -> StatisticsConfig:
    """The default, by what compiles without spilling."""
    block = min(max(16, power_of_two(channels)), 64 if channels_last or kernel_size < 7 else 32)
    rows = 2 if kernel_size > 3 or operand == "fp64" else 4
    threads, elements = 128, max(1, full_vector(operand) // {3: 1, 5: 2, 7: 4}[kernel_size])
    positions = positions_of(threads * elements // block, operand, channels_last)
    return StatisticsConfig(rows, positions, block, warps_of(threads, architecture))
