"""How the LENI kernels are tiled: a table of exceptions, and the rule for everything else."""

from __future__ import annotations

from typing import NamedTuple

from ..triton_support import full_vector, itemsize, power_of_two


class Config(NamedTuple):
    """One tiling. A position is ``rows`` pixels under each other (in NCHW, of one 128-bit vector)."""

    rows: int
    positions: int
    channels: int
    """Input channels of one step; all of them where they fit, so that the weights stay on the chip."""
    outputs: int
    warps: int


TABLE: dict[tuple[bool, int, int, str, str], Config] = {}
"""Exceptions to the rule, by (channels last, C rounded up to a power of two, k, operand type, architecture)."""


def choose(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The tiling for C channels of operands ``operand`` ("fp16", "bf16", "tf32", "fp32", "fp64")."""
    padded = max(16, power_of_two(channels))
    exception = TABLE.get((channels_last, padded, kernel_size, operand, architecture))
    return exception or _rule(padded, kernel_size, operand, architecture.startswith("gfx"), channels_last)


def _rule(channels: int, kernel_size: int, operand: str, amd: bool, channels_last: bool) -> Config:
    """The default: one vector of x for each thread, and as many rows of sums as registers hold without spilling."""
    if operand == "fp64":
        return Config(4, 4, 16, 16, 2 if amd else 4)
    half = itemsize(operand) == 2
    outputs = min(channels, 128 if amd else 256 if operand != "fp32" else 64)
    block = min(channels, (128 if half else 64) if channels <= 128 and kernel_size < 7 and not amd else 64 if half else 32)
    rows = 4 if outputs < 256 and kernel_size < 7 else 2
    threads = 256 if outputs > 64 or kernel_size == 7 or not half else 128
    if channels_last:
        positions = threads * full_vector(operand) // block
    else:
        positions = max(4, threads // block)
        threads = min(256, max(128, block * 4))
    return Config(rows, positions, block, outputs, threads // (64 if amd else 32))
