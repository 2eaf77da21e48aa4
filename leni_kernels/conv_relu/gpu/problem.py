"""A convolution as ConvReLU's Triton kernels take it: a list of taps over three dimensions.

Tap t of the output site q reads x at q·stride + offset, where a site outside x is 0, and takes max(x, θ[c, t]) of it,
or min(x, θ[c, t]) where the tap is *below*. So one, two and three dimensions, padding, dilation, 'same' and Reborn's
folded form (k² taps below, one above) are the same. Where groups have one channel (depthwise) there is no matrix to
multiply, and the same kernels multiply elementwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...common.gpu.architectures import compares_pairs
from ...common.gpu.support import ceil_div, vector_length
from .configs import Config, converts


class Problem(NamedTuple):
    """A convolution as a list of taps over three spatial dimensions, of which the missing ones have size 1."""

    x: Tensor
    taps: tuple[tuple[int, int, int, bool], ...]
    """(d, h, w, below) of each."""
    grid: tuple[tuple[int, ...], ...] | None
    """(first, step, count) of the taps, if they form a grid, as those of a convolution do."""
    stride: tuple[int, ...]
    out_size: tuple[int, ...]
    channels: int
    outputs: int
    groups: int
    channels_last: bool
    copied: bool = False
    """Whether x, and y's gradient, are copies with channels innermost of what is in NCHW."""

    @property
    def users_channels_last(self) -> bool:
        """How the user's tensors are laid out, for which tilings are listed."""
        return self.channels_last and not self.copied

    @property
    def converts(self) -> bool:
        """Whether x is to be copied to channels innermost."""
        return not self.channels_last and converts(self.channels, len(self.taps))

    def with_copy(self, x: Tensor) -> Problem:
        """The same of a copy of x with channels innermost."""
        return self._replace(x=x, channels_last=True, copied=True)

    @property
    def matrix(self) -> bool:
        """Whether there are matrices to multiply; else groups have one channel, and a block runs through them all."""
        return self.channels > 1

    def blocks(self, count: int, block: int) -> int:
        """How many blocks cover ``count`` channels or outputs of every group."""
        return self.groups * ceil_div(count, block) if self.matrix else ceil_div(self.groups * count, block)


def convolution(x: Tensor, weight: Tensor, stride: Sequence[int], pads: Sequence[int], dilation: Sequence[int],
                groups: int, channels_last: bool) -> Problem:
    missing = 5 - x.dim()
    none, one = (0,) * missing, (1,) * missing
    kernel, stride, dilation = ((*one, *each) for each in (weight.shape[2:], stride, dilation))
    before, after = (*none, *pads[::2]), (*none, *pads[1::2])
    x = three_dimensional(x)
    offsets = product(*(range(-b, k * d - b, d) for b, k, d in zip(before, kernel, dilation, strict=True)))
    taps = tuple((*offset, False) for offset in offsets)
    grid = tuple(-b for b in before), dilation, kernel
    out_size = tuple((size + b + a - d * (k - 1) - 1) // s + 1 for size, b, a, d, k, s in zip(
        x.shape[2:], before, after, dilation, kernel, stride, strict=True))
    return Problem(x, taps, grid, stride, out_size, weight.shape[1], weight.shape[0] // groups, groups,
                   channels_last)


def three_dimensional(x: Tensor) -> Tensor:
    """x with the spatial dimensions that it lacks, of size 1, before those it has."""
    return x[(slice(None), slice(None), *[None] * (5 - x.dim()))]


def empty_activation(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    """A dense activation; there is no memory format of the name in one dimension."""
    if channels_last and len(shape) > 2:
        return like.new_empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return like.new_empty(shape)


def accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def constants_of(problem: Problem, config: Config, operand: str) -> dict[str, Any]:
    return {
        "STRIDE": problem.stride, "CHANNELS": problem.channels, "OUTPUTS": problem.outputs, "GROUPS": problem.groups,
        "VECTOR": vector_of(problem.x, problem.channels_last), "CHANNELS_LAST": problem.channels_last,
        "BLOCK_SITES": config.sites, "BLOCK_CHANNELS": config.channels, "BLOCK_OUTPUTS": config.outputs,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


def gradient_constants(problem: Problem, config: Config, operand: str, target: str, grad: Tensor) -> dict[str, Any]:
    vector = vector_of(grad, problem.channels_last)
    return constants_of(problem, config, operand) | {
        "GRID": problem.grid, "GRAD_VECTOR": vector, "PAIRS": compares_pairs(target, operand)}


def vector_of(x: Tensor, channels_last: bool) -> int:
    """The length of an aligned vector of channels; along columns taps begin anywhere."""
    if not channels_last:
        return 1
    steps = [x.stride(dimension) for dimension in (0, 2, 3, 4) if x.shape[dimension] > 1]
    return vector_length(x.dtype.itemsize, *steps)


def steps_of(x: Tensor, vector: int) -> tuple[int, ...]:
    """The steps of x along images and positions, in vectors, and along channels."""
    return *(x.stride(dimension) // vector for dimension in (0, 2, 3, 4)), x.stride(1)
