"""How the ConvReLU kernels are tiled: the tables' tilings first, then a rule for everything else."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ...common.gpu import tilings
from ...common.gpu.architectures import is_amd, is_rdna, multiplies_from_shared, warps_of
from ...common.gpu.support import ceil_div, itemsize


class Config(NamedTuple):
    """One tiling: the sites, and the input and output channels of a group, that one product takes."""

    sites: int
    channels: int
    outputs: int
    warps: int
    stages: int = 1
    """How many iterations of the innermost loop overlap."""
    products: int = 1
    """How many blocks of channels share the other operand: "weight" only, where they run on from tap to tap."""
    columns: int = 1
    """How many neighbouring columns have ``sites`` each, if the blocks are as many neighbouring taps, which then share
    what they load of x: "weight" only."""


def choose(kernel: str, channels: int, outputs: int, taps: int, operand: str, architecture: str,
           channels_last: bool) -> Config:
    """The tiling for groups of C input and O output channels, "fp16", "bf16", "tf32", "fp32" or "fp64".

    The kernels are "forward", "input" (x's gradient) and "weight" (that of weight and threshold).
    """
    if channels == 1:
        return _depthwise(operand, architecture, channels_last)
    key = tilings.key(f"conv_relu {kernel}", channels, outputs, taps, operand, architecture, channels_last)
    return (tilings.find(Config, key)
            or _rule(kernel, key.channels, key.outputs, taps, operand, architecture,
                     channels_last or converts(channels, taps)))


def converts(channels: int, taps: int) -> bool:
    """Whether x and y's gradient in NCHW are copied to channels innermost first, for groups of so many channels.

    The copy moves 2T, and spares the kernel single elements, of every tap again: of one tap they take less.
    """
    return taps > 1 and channels % 16 == 0


@cache
def _rule(kernel: str, channels: int, outputs: int, taps: int, operand: str, architecture: str,
          channels_last: bool) -> Config:
    """The default, by what compiles without spilling: 32 or 64 sums a thread, and loads of 128 bits."""
    if operand == "fp64":
        return Config(32 if kernel == "input" else 64, 16, 16, 4)
    amd = is_amd(architecture)
    half = itemsize(operand) == 2
    warps = warps_of(256, architecture)
    stages = 1 if amd else 3
    # The depth of a product. In NCHW a thread keeps a pointer to each element that it loads.
    depth = (64 if channels_last else 32) // (1 if half else 2)
    rdna = is_rdna(architecture)
    if kernel == "forward":
        if rdna and operand != "fp32":
            return Config(64, 16, min(outputs, 64), warps)
        if architecture == "sm_90" and operand != "fp32":
            return _forward_on_hopper(channels, outputs, depth, channels_last)
        if channels > depth or outputs > 64 or (architecture.startswith("sm_10") and not channels_last):
            depth = max(16, depth // 2)
        sites = 64 if operand == "fp32" and (outputs > 64 or not channels_last) else 128
        return Config(sites, min(channels, depth), min(outputs, 128 if channels_last else 64), warps)
    if kernel == "input":
        if architecture == "sm_90" and channels_last:
            return _input_on_hopper(channels, outputs, depth, operand)
        narrow = not channels_last or (operand == "tf32" and not multiplies_from_shared(architecture))
        sites = 64 if rdna or operand == "fp32" else 128
        if half and channels_last and outputs <= depth:
            stages = min(stages, 2)  # registers for two programs on a multiprocessor
        return Config(sites, min(channels, 32 if narrow else 64), min(outputs, depth), warps, stages)
    if architecture == "sm_90" and half and channels_last:
        if min(channels, outputs) >= 128:
            return Config(64, 128, 128, 8, 3)
        if channels % 64 == 0 and taps % 3 == 0:
            # Of three taps, as of a line of 3×3. Four warps have each row once, and registers for two programs.
            return Config(32, 64, min(outputs, 64), 4, 3, 3, 4)
        block = 128 if outputs <= 32 else 64
        # More blocks have more sums than registers hold.
        products = 3 if ceil_div(taps * channels, block) % 3 == 0 else 1
        rows = block * products
        return Config(32 if rows > 256 else 64, block, min(outputs, 64), 8 if rows > 64 else 4, 3, products)
    if operand == "fp32":
        # Of more sites at a time Triton 3.6 spills.
        return Config(16, min(channels, 64), min(outputs, 32), warps, stages)
    # Blackwell's sums lie in its tensor memory, and pass through registers all at once.
    warps = warps if architecture.startswith("sm_10") else warps // 2
    return Config(depth, min(channels, 64), min(outputs, 64), warps, stages)


def _forward_on_hopper(channels: int, outputs: int, depth: int, channels_last: bool) -> Config:
    """Tiles as large as the sums fit in registers, in a pipeline where a product takes longer than its loads do."""
    if channels_last and min(channels, outputs) >= 128:
        return Config(32768 // outputs, depth, outputs, 8, 3)
    if channels > depth:
        outputs = max(outputs, 64)
    few = outputs <= min(64, 2 * channels)
    return Config(128, min(channels, depth), min(outputs, 128), 4 if few else 8)


def _input_on_hopper(channels: int, outputs: int, depth: int, operand: str) -> Config:
    """Of few channels or outputs y's gradient comes through L1, which serves the taps, to two programs on a
    multiprocessor; of many in a pipeline, as the weights must, to tiles as large as two sums fit in registers."""
    half = itemsize(operand) == 2
    if half and min(channels, outputs) >= 128:
        return Config(128, 128, depth, 8, 3)
    # A loop over outputs takes registers, as products without matrix units do.
    sites = 64 if operand == "fp32" or (half and outputs > depth) else 128
    return Config(sites, min(channels, 64), min(outputs, depth), 4 if half else 8)


def swaps(rows: int, stages: int, operand: str, architecture: str, channels_last: bool) -> bool:
    """Whether a product is of weight and sites, not of sites and weight: it has as many ``rows`` then. What the sites
    bring goes to shared memory, x once activated, each element once; and a thread has few rows, which have a threshold
    each in x's gradient. Hopper's units multiply 64 rows, and tf32 along memory only."""
    operands = ("fp16", "bf16", "tf32") if channels_last else ("fp16", "bf16")
    return architecture == "sm_90" and operand in operands and rows >= 64 and stages == 1


def _depthwise(operand: str, architecture: str, channels_last: bool) -> Config:
    """Without a product: 16 elements a thread, half as many of float64, neighbours along memory."""
    width, warps = 64 if itemsize(operand) == 2 else 32, warps_of(128, architecture)
    return Config(32, width, width, warps) if channels_last else Config(64 if operand == "fp64" else 128, 16, 16, warps)
