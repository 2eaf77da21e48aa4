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


# Keyed by (channels last, C rounded up to a power of two from 16 to 256, k, operand, architecture).
TABLE: dict[tuple[bool, int, int, str, str], Config] = {
    (True, 256, 7, "fp16", "sm_80"): Config(4, 16, 32, 64, 4),
    (True, 64, 7, "tf32", "sm_100"): Config(2, 32, 32, 64, 8),
    (False, 256, 5, "fp16", "sm_100"): Config(2, 4, 32, 128, 4),
    (False, 256, 5, "bf16", "sm_100"): Config(2, 4, 32, 128, 4),
}
"""Where the rule's tiling spills registers, the one that does not."""


def choose(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The tiling for C channels of operands ``operand`` ("fp16", "bf16", "tf32", "fp32", "fp64")."""
    padded = max(16, power_of_two(channels))
    exception = TABLE.get((channels_last, min(padded, 256), kernel_size, operand, architecture))
    return exception or _rule(padded, kernel_size, operand, architecture, channels_last)


def _rule(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The default, by what compiles without spilling: a vector or two of x a thread, 2 or 4 rows of sums."""
    amd = architecture.startswith("gfx")
    if operand == "fp64":
        return Config(4, 4, 16, 16, 2 if amd else 4)
    # Datacentre Hopper and Blackwell multiply from shared memory; others hold both operands in registers.
    from_shared = architecture.startswith(("sm_9", "sm_10"))
    half = itemsize(operand) == 2
    large = kernel_size == 7
    if operand == "fp32" or (channels_last and not from_shared and not amd):
        outputs = min(channels, 64)
    else:
        outputs = min(channels, 256 if half and not (large or amd or channels_last) else 128)
    most_whole = 0 if amd or (large and channels_last) else 128 if half and outputs >= 128 else 64
    block = channels if channels <= most_whole else min(channels, 64 if half else 32)
    if channels_last:
        steps = half and block < channels and not (large or amd)
        threads = 128 if half and outputs <= 64 and not (steps or large) else 256
        # The taps of k = 7 take so many registers that a thread loads half a vector.
        positions = threads * full_vector(operand) // block // (2 if large else 1)
        rows = 2 if steps else 4
    else:
        threads = 128 if block < 64 and outputs <= 64 else 256
        positions = max(4, threads // block)
        rows = 4 if channels <= 64 and kernel_size == 3 else 2
    return Config(rows, positions, block, outputs, threads // (64 if amd else 32))
