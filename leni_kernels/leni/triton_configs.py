"""How the LENI kernels are tiled: a table of exceptions, and the rule for everything else."""

from __future__ import annotations

from typing import NamedTuple

from ..triton_support import full_vector, power_of_two


class Config(NamedTuple):
    """One tiling. A position is ``rows`` pixels under each other (in NCHW, of one 128-bit vector)."""

    rows: int
    positions: int
    channels: int
    """Input channels of one step; all of them where they fit, so that the weights stay on the chip."""
    outputs: int
    warps: int


TABLE: dict[tuple[bool, int, str, str], Config] = {}
"""Exceptions to :func:`rule`, by (channels last, C rounded up to a power of two, dtype, architecture)."""


def choose(channels: int, kernel_size: int, dtype: str, architecture: str, channels_last: bool) -> Config:
    """The tiling for C channels of operands ``dtype`` ("fp16", "bf16", "tf32", "fp32", "fp64")."""
    padded = max(16, power_of_two(channels))
    config = TABLE.get((channels_last, padded, dtype, architecture))
    return config or rule(padded, kernel_size, dtype, channels_last)


def rule(channels: int, kernel_size: int, dtype: str, channels_last: bool) -> Config:
    """The default tiling."""
    vector = full_vector(dtype)
    block = channels if channels <= 128 else 64
    outputs = min(channels, 256)
    rows = 4
    warps = 8 if outputs > 64 else 4
    if channels_last:
        lanes = block // vector
        return Config(rows, max(warps * 32 // lanes, 64 // rows), block, outputs, warps)
    return Config(rows, 8 if channels <= 16 else 4, block, outputs, warps)
