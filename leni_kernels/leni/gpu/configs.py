"""How the LENI kernels are tiled: the tables' tilings first, then a rule for everything else."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ...common.gpu.architectures import is_amd, multiplies_from_shared, warps_of
from ...common.gpu.support import full_vector, itemsize, power_of_two
from ...two_branch.gpu.configs import StatisticsConfig, Tiling, listed, positions_of, statistics_rule


class Config(NamedTuple):
    """One tiling. A position is ``rows`` pixels under each other (in NCHW, of one 128-bit vector)."""

    rows: int
    positions: int
    channels: int
    """Input channels of one step; all of them where they fit, so that the weights stay on the chip."""
    outputs: int
    warps: int


def folded(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The tiling for C channels of operands ``operand`` ("fp16", "bf16", "tf32", "fp32", "fp64")."""
    where = operand, architecture, channels_last
    return (listed("leni folded", Config, channels, kernel_size**2, *where)
            or _rule(max(16, power_of_two(channels)), kernel_size, *where))


@cache
def _rule(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The default, by what compiles without spilling: a vector or two of x a thread, 2 or 4 rows of sums."""
    amd = is_amd(architecture)
    if operand == "fp64":
        return Config(4, 4, 16, 16, warps_of(128, architecture))
    half = itemsize(operand) == 2
    large = kernel_size == 7
    hopper = half and kernel_size == 3 and architecture.startswith("sm_90")
    if channels_last and hopper and (channels == 16 or channels >= 128):
        # Of few channels as many rows as registers hold: half as much then goes through shared memory. Weights that do
        # not stay on the chip are read for as many pixels and outputs as registers can sum.
        rows, positions, block, warps = {16: (8, 32, 16, 4), 128: (4, 16, 64, 4), 256: (8, 16, 64, 8)}.get(
            channels, (4, 32, 32, 8))
        return Config(rows, positions, block, min(channels, 256), warps)
    if operand == "fp32" or (channels_last and not multiplies_from_shared(architecture) and not amd):
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
        # Of 64 outputs a product has 64 rows, which are one warpgroup's: a second would form them once more.
        threads = 128 if outputs <= 64 and (block < 64 or hopper) else 256
        positions = max(4, threads // block)
        rows = 4 if channels <= 64 and kernel_size == 3 else 2
    return Config(rows, positions, block, outputs, warps_of(threads, architecture))


def for_vectors(config: Tiling, vector: int, operand: str, channels_last: bool, least_rows: int = 2) -> Tiling:
    """A tiling for NCHW's narrow vectors, as planes of 28, 14 or 7 columns have them: more warps, and fewer rows of the
    narrowest, since a thread has more vectors then, and a halo of each. Of one row Triton 3.6 aborts in training."""
    full = full_vector(operand)
    if channels_last or vector == full:
        return config
    rows = max(min(config.rows, least_rows), config.rows * 2 * vector // full)
    return config._replace(rows=rows, warps=max(config.warps, min(2 * config.warps, 8)))


def for_height(config: Config, height: int, channels_last: bool) -> Config:
    """A channels-last tiling for planes of 7 or 14 rows, as ImageNet's smallest are: 7 rows rather than 8."""
    sevens = channels_last and config.rows == 8 and height % 8 != 0 and height % 7 == 0
    return config._replace(rows=7) if sevens else config


def for_offsets(config: Config, wide: bool) -> Config:
    """A tiling of the weight's gradient for 64-bit offsets, where they are: they leave room for half as many pixels."""
    if not wide:
        return config
    if config.rows > 2:
        return config._replace(rows=config.rows // 2)
    return config._replace(positions=max(1, config.positions // 2))


def statistics(channels: int, kernel_size: int, operand: str, architecture: str,
               channels_last: bool) -> StatisticsConfig:
    """The tiling of the statistics' pass."""
    where = operand, architecture, channels_last
    return (listed("leni statistics", StatisticsConfig, channels, kernel_size**2, *where)
            or statistics_rule(channels, kernel_size, *where))


def weight_gradient(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The tiling of the weight's gradient: rows of pixels, and blocks of channels and outputs of dy."""
    where = operand, architecture, channels_last
    return (listed("leni weight gradient", Config, channels, kernel_size**2, *where)
            or _weight_gradient_rule(channels, kernel_size, *where))


@cache
def _weight_gradient_rule(channels: int, kernel_size: int, operand: str, architecture: str,
                          channels_last: bool) -> Config:
    """The default, by what compiles without spilling."""
    padded = max(16, power_of_two(channels))
    if operand == "fp64":
        return Config(2, positions_of(16, operand, channels_last), 16, 16, 4)
    large = kernel_size > 3
    on_hopper = itemsize(operand) == 2 and multiplies_from_shared(architecture) and not large
    # z is recomputed for each block of outputs.
    outputs = min(padded, 256 if on_hopper else 128)
    narrow = large or not multiplies_from_shared(architecture) if channels_last else kernel_size == 7
    block = min(padded, 32 if narrow else 64)
    threads = 256 if outputs >= 128 or (channels_last and (block == 64 or (large and block == 32))) else 128
    elements = max(1, full_vector(operand) // (4 if large and narrow else 1))
    positions = positions_of(max(8, threads * elements // block), operand, channels_last)
    rows = 2 if large or channels_last else 4
    if on_hopper:
        # What fits beside the sums of products: as many rows as can be, of which a thread reads half as often.
        few = channels_last and channels < 16
        rows = 4 if few or outputs == 64 or (channels_last and outputs >= 128) else 2
        if outputs == 256:
            positions, block = (positions // 4, 64) if channels_last else (positions // 2, 32)
        elif channels_last and (few or outputs == 128):
            positions //= 4 if few else 2
    elif not (large or channels_last or is_amd(architecture)) and itemsize(operand) == 2 and outputs == 128:
        positions, block = positions // 2, 32
    return Config(rows, positions, block, outputs, warps_of(threads, architecture))


def negative_gradient(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The tiling of the gradient of z: rows of pixels, a block of channels, and dy's of one step of the product."""
    where = operand, architecture, channels_last
    return (listed("leni negative gradient", Config, channels, kernel_size**2, *where)
            or _negative_gradient_rule(channels, kernel_size, *where))


@cache
def _negative_gradient_rule(channels: int, kernel_size: int, operand: str, architecture: str,
                            channels_last: bool) -> Config:
    """The default, by what compiles without spilling."""
    block, outputs = _branch_gradient_blocks(channels, operand, architecture)
    if operand == "fp64":
        return Config(2, positions_of(16, operand, channels_last), block, outputs, 4)
    if operand == "fp32" and channels_last and 32 < channels <= 64:
        outputs = 64  # in two steps Triton 3.8 spills
    rows = 4 if kernel_size == 3 else 2
    elements = max(1, full_vector(operand) // ({3: 1, 5: 2, 7: 4}[kernel_size] if channels_last else 1))
    if channels_last and channels < 16:
        elements = max(1, elements // 2)
    positions = positions_of(max(8, 128 * elements // block), operand, channels_last)
    return Config(rows, positions, block, outputs, warps_of(128, architecture))


def input_gradient(channels: int, kernel_size: int, operand: str, architecture: str, channels_last: bool) -> Config:
    """The tiling of the gradient of x, as :func:`negative_gradient`."""
    where = operand, architecture, channels_last
    return (listed("leni input gradient", Config, channels, kernel_size**2, *where)
            or _input_gradient_rule(channels, kernel_size, *where))


@cache
def _input_gradient_rule(channels: int, kernel_size: int, operand: str, architecture: str,
                         channels_last: bool) -> Config:
    """The default, by what compiles without spilling: of each element a thread keeps k² sums in channels-last."""
    block, outputs = _branch_gradient_blocks(channels, operand, architecture)
    if operand == "fp64":
        return Config(2, positions_of(8 if channels_last else 16, operand, channels_last), block, outputs, 4)
    rows = 4 if kernel_size == 3 else 2
    threads = 256 if channels_last else 128
    elements = {3: 4, 5: 2, 7: 1}[kernel_size] if channels_last else full_vector(operand)
    if channels_last and itemsize(operand) == 2 and multiplies_from_shared(architecture):
        # Two programs fit on a multiprocessor, of which one multiplies while the other reads.
        threads, block, outputs = 128, min(block, 32), outputs if outputs <= 128 else 64
    elif operand == "tf32" and (channels > 64 or kernel_size == 5):
        elements = max(1, elements // 2)
    elif not channels_last and kernel_size == 7 and itemsize(operand) == 2:
        block, elements = min(block, 32), 2
    pixels = threads * elements // block
    positions = positions_of(pixels if channels_last else max(8, pixels), operand, channels_last)
    return Config(rows, positions, block, outputs, warps_of(threads, architecture))


def _branch_gradient_blocks(channels: int, operand: str, architecture: str) -> tuple[int, int]:
    """Channels of a program, and of dy in one step: all where they fit, so that the weights stay on the chip."""
    padded = max(16, power_of_two(channels))
    if operand == "fp64":
        return 16, 16
    if operand == "fp32" or not multiplies_from_shared(architecture):
        return min(padded, 32), min(padded, 32)
    if operand == "tf32":
        return min(padded, 32), min(padded, 64)
    return min(padded, 64), min(padded, 256)
