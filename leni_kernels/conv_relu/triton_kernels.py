"""ConvReLU and its gradients in Triton: implicit matrix products that apply the threshold to what they load.

A convolution is a list of taps. Tap t of the output site q reads x at q·stride + offset, where a site outside x is 0,
and takes max(x, θ[c, t]) of it, or min(x, θ[c, t]) where the tap is *below*. So one, two and three dimensions, padding,
dilation, 'same' and Reborn's folded form (k² taps below, one above) are the same. The forward kernels are in
``triton_forward.py``.

Launches, where parameters have no gaps: forward and x's gradient 2 each, one of them to lay out weight and θ by tap;
the gradients of weight and θ 1 together, that of the bias 1, and 1 to sum, lay out and cast all three: 7 a step. x in
NCHW is copied to channels innermost, in backward y's gradient too: 1 more each.

Where groups have one channel (depthwise) there is no matrix to multiply, and the same kernels multiply elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby, product
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..architectures import compares_pairs, operand_types, warp_size
from ..triton_support import (
    LONGEST_RUN,
    CompileCase,
    architecture,
    ceil_div,
    float32_operand,
    itemsize,
    jit,
    launchable,
    on_device_of,
    tl,
    vector_length,
    wide,
)
from . import triton_layout
from .triton_configs import Config, choose, converts, swaps
from .triton_forward import forward_kernel, looped_kernel
from .triton_gradients import (
    bias_kernel,
    correlation_kernel,
    depthwise_correlation_kernel,
    input_gradient_kernel,
    sum_kernel,
)
from .triton_tiles import without_nan

# ---- parameters ------------------------------------------------------------------------------------------


@jit
def _lay_out_kernel(weight, threshold, weight_by_tap, threshold_by_tap, TAPS: tl.constexpr, BELOW: tl.constexpr,
                    CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
                    TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr):
    """Weight [outputs, channels of a group, T] and threshold [channels, T] by tap, and cast.

    In blocks of WIDTH channels of a group, the last one filled up with zeros: [blocks, T, outputs, WIDTH] and [blocks,
    T, groups, WIDTH]; a threshold has no NaN then, and BELOW says of each tap how, if any is. If TRANSPOSED, [T,
    channels, outputs of a group] and [T, channels].
    """
    width: tl.constexpr = OUTPUTS if TRANSPOSED else WIDTH
    rows: tl.constexpr = GROUPS * (CHANNELS if TRANSPOSED else OUTPUTS)
    numbers: tl.constexpr = TAPS * rows * (OUTPUTS if TRANSPOSED else ceil_div(CHANNELS, WIDTH) * WIDTH)
    programs: tl.constexpr = ceil_div(numbers, BLOCK)
    program = tl.program_id(0)
    if program < programs:
        number = program * BLOCK + tl.arange(0, BLOCK)
        row = number // width % rows
        tap = number // (width * rows) % TAPS
        if TRANSPOSED:
            output = row // CHANNELS * OUTPUTS + number % width
            channel = row % CHANNELS
        else:
            output = row
            channel = number // (width * rows * TAPS) * width + number % width
        mask = (number < numbers) & (channel < CHANNELS)
        values = tl.load(weight + (output * CHANNELS + channel) * TAPS + tap, mask, 0.0)
        tl.store(weight_by_tap + number, values.to(weight_by_tap.dtype.element_ty), number < numbers)
    else:
        number = (program - programs) * BLOCK + tl.arange(0, BLOCK)
        every: tl.constexpr = TAPS * GROUPS * (CHANNELS if TRANSPOSED else ceil_div(CHANNELS, WIDTH) * WIDTH)
        channels: tl.constexpr = CHANNELS if TRANSPOSED else WIDTH
        group = number // channels % GROUPS
        tap = number // (channels * GROUPS) % TAPS
        channel = number // (channels * GROUPS * TAPS) * channels + number % channels
        mask = (number < every) & (channel < CHANNELS)
        values = tl.load(threshold + (group * CHANNELS + channel) * TAPS + tap, mask, 0.0)
        if not TRANSPOSED:
            below = tap < 0
            for t in tl.static_range(len(BELOW)):
                below |= (tap == t) & BELOW[t]
            values = without_nan(values, below)
        tl.store(threshold_by_tap + number, values.to(threshold_by_tap.dtype.element_ty), number < every)


# ---- launches ----------------------------------------------------------------------------------------------
# The operators' signatures, those of the CPU's. x may have any strides; ``channels_last`` says along what it is read
# fast, and how y and dx are laid out.

_MOST_UNROLLED = 50
"""A grid of more taps is a loop of the compiled kernel: its code would not fit the instruction cache."""
_ENOUGH_PROGRAMS = 528
"""Four for each of Hopper's 132 multiprocessors."""
_OPERANDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


class _Problem(NamedTuple):
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

    def with_copy(self, x: Tensor) -> _Problem:
        """The same of a copy of x with channels innermost."""
        return self._replace(x=x, channels_last=True, copied=True)

    @property
    def matrix(self) -> bool:
        """Whether there are matrices to multiply; else groups have one channel, and a block runs through them all."""
        return self.channels > 1

    def blocks(self, count: int, block: int) -> int:
        """How many blocks cover ``count`` channels or outputs of every group."""
        return self.groups * ceil_div(count, block) if self.matrix else ceil_div(self.groups * count, block)


def conv_relu(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, stride: Sequence[int],
              pads: Sequence[int], dilation: Sequence[int], groups: int, channels_last: bool) -> Tensor:
    """Launch on x ``[N, C, *spatial]``, weight ``[O, C // groups, *kernel]``, threshold ``[C, *kernel]``; returns y.

    ``pads`` has two numbers per dimension, before and after. Parameters are of x's dtype, float32 or float64.
    """
    problem = _convolution(x, weight, stride, pads, dilation, groups, channels_last)
    return _forward(problem, weight.flatten(2), threshold.flatten(1), bias, x.dim() - 2)


def conv_relu_taps(x: Tensor, weight: Tensor, threshold: Tensor, bias: Tensor | None, offsets: Sequence[int],
                   below: Sequence[int], channels_last: bool) -> Tensor:
    """Launch a list of taps, such as Reborn folds into, on x ``[N, C, H, W]``; returns y ``[N, O, H, W]``.

    Weight is ``[O, C, T]``, threshold ``[C, T]``, ``offsets`` ``[2 · T]``, each tap's (h, w). A tap that is ``below``
    takes min(x, θ).
    """
    taps = tuple((0, *offset, bool(flag)) for *offset, flag in zip(offsets[::2], offsets[1::2], below, strict=True))
    problem = _Problem(x[:, :, None], taps, None, (1, 1, 1), (1, *x.shape[2:]), weight.shape[1], weight.shape[0], 1,
                       channels_last)
    return _forward(problem, weight, threshold, bias, 2)


def conv_relu_backward(grad: Tensor, x: Tensor, weight: Tensor, threshold: Tensor, stride: Sequence[int],
                       pads: Sequence[int], dilation: Sequence[int], groups: int, channels_last: bool, needs_x: bool,
                       needs_weight: bool, needs_threshold: bool,
                       needs_bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, threshold and bias for a ``grad`` of y; one that is not needed is empty.

    Where x equals the threshold the gradient is the threshold's; sites outside x count for the threshold.
    """
    problem = _convolution(x, weight, stride, pads, dilation, groups, channels_last)
    dx = _empty(x.shape, x, channels_last) if needs_x else x.new_empty(0)
    grad = _three_dimensional(grad)
    if x.numel() == 0 or grad.numel() == 0:
        return (dx.zero_(), weight.new_zeros(weight.shape if needs_weight else 0),
                threshold.new_zeros(threshold.shape if needs_threshold else 0),
                weight.new_zeros(weight.shape[0] if needs_bias else 0))
    if problem.converts and (needs_x or needs_weight or needs_threshold):
        grad = triton_layout.to_channels_last(grad)
        problem = problem.with_copy(triton_layout.to_channels_last(problem.x))
    if needs_x:
        _input_gradient(problem, grad, weight, threshold, dx)
    return dx, *_parameter_gradients(problem, grad, weight, threshold, needs_weight, needs_threshold, needs_bias)


def _forward(problem: _Problem, weight: Tensor, threshold: Tensor, bias: Tensor | None, dimensions: int) -> Tensor:
    """Launch with weight [O, C // groups, T] and threshold [C, T]; y has ``dimensions`` spatial dimensions."""
    x = problem.x
    shape = (x.shape[0], weight.shape[0], *problem.out_size[-dimensions:])
    y = _empty(shape, x, problem.channels_last)
    if y.numel() == 0:
        return y
    operand = _operand(x)
    config = choose("forward", problem.channels, problem.outputs, len(problem.taps), operand, architecture(x),
                    problem.channels_last)
    if problem.converts:
        problem = problem.with_copy(triton_layout.to_channels_last(x))
    kernel, constants = _forward_kernel(problem, config, operand, architecture(x))
    width = config.channels if kernel is looped_kernel else problem.channels
    by_tap = _laid_out(problem, weight, threshold, width)
    sites = y.numel() // y.shape[1]
    programs = ceil_div(sites, config.sites) * problem.blocks(problem.outputs, config.outputs)
    with on_device_of(x):
        launchable(kernel)[(programs,)](
            problem.x, *by_tap, None if bias is None else bias.contiguous(), y, sites, *problem.out_size, *x.shape[2:],
            *_steps_of(problem.x, constants["VECTOR"]), **constants, WIDE=wide(problem.x, y), num_warps=config.warps,
            num_stages=1)
    return y


def _input_gradient(problem: _Problem, grad: Tensor, weight: Tensor, threshold: Tensor, dx: Tensor) -> None:
    """Write dx, dense, in the user's layout."""
    x, operand, target = problem.x, _operand(problem.x), architecture(problem.x)
    config = choose("input", problem.channels, problem.outputs, len(problem.taps), operand, target,
                    problem.users_channels_last)
    span = tuple(ceil_div(size, stride) for size, stride in zip(x.shape[2:], problem.stride, strict=True))
    sites = x.shape[0] * math.prod(span)
    programs = (ceil_div(sites, config.sites) * math.prod(problem.stride)
                * problem.blocks(problem.channels, config.channels))
    constants = _input_constants(problem, config, operand, target, grad)
    with on_device_of(x):
        launchable(input_gradient_kernel)[(programs,)](
            x, *_laid_out(problem, weight, threshold, None), grad, dx, sites, *span, *x.shape[2:],
            *problem.out_size, *_steps_of(x, constants["VECTOR"]),
            *_steps_of(grad, constants["GRAD_VECTOR"]), **constants, WIDE=wide(x, dx, grad), num_warps=config.warps,
            num_stages=1)


_LAID_OUT = 1024
"""Of numbers, where a program lays out parameters."""
_SUMMED, _LANES = 128, 32
"""Of numbers and of their shares, where a program sums shares."""


def _parameter_gradients(problem: _Problem, grad: Tensor, weight: Tensor, threshold: Tensor, needs_weight: bool,
                         needs_threshold: bool, needs_bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of weight, threshold and bias, each in the shape and dtype of its parameter, or empty."""
    outs = (weight.new_empty(weight.shape if needs_weight else 0),
            threshold.new_empty(threshold.shape if needs_threshold else 0),
            weight.new_empty(weight.shape[0] if needs_bias else 0))
    shares = [None, None]
    if needs_weight or needs_threshold:
        shares = _correlation(problem, grad, weight, threshold, needs_weight, needs_threshold)
    shares = (*shares, _shares_of_bias(problem, grad) if needs_bias else None)
    programs = sum(ceil_div(out.numel(), _SUMMED) for out in outs)
    if programs > 0:
        with on_device_of(grad):
            launchable(sum_kernel)[(programs,)](
                *shares, *(None if share is None else out for share, out in zip(shares, outs, strict=True)),
                *(0 if share is None else share.shape[0] for share in shares), TAPS=len(problem.taps),
                CHANNELS=problem.channels, OUTPUTS=problem.outputs, GROUPS=problem.groups, BLOCK=_SUMMED, LANES=_LANES,
                num_warps=4)
    return outs


def _correlation(problem: _Problem, grad: Tensor, weight: Tensor, threshold: Tensor, needs_weight: bool,
                 needs_threshold: bool) -> tuple[Tensor | None, Tensor | None]:
    """The shares of weight's gradient and of θ's, a row of each sum; None of what is not needed."""
    x, operand, target = problem.x, _operand(problem.x), architecture(problem.x)
    taps = len(problem.taps)
    config = choose("weight", problem.channels, problem.outputs, taps, operand, target, problem.users_channels_last)
    is_wide = wide(x, grad)
    kernel, constants = _correlation_kernel(problem, config, operand, target, grad, is_wide)
    sizes = (x.shape[0], *problem.out_size)
    tiles = (math.prod(map(ceil_div, sizes, constants["WINDOW"])) if problem.matrix
             else ceil_div(math.prod(sizes), config.sites))
    blocks = problem.blocks(problem.outputs, config.outputs) * (
        ceil_div(taps * problem.channels, config.channels * config.products) if problem.matrix else taps)
    run, parts = _dealt_out(tiles, blocks)
    of_outputs = ceil_div(problem.outputs, config.outputs) if problem.matrix else 1
    rows = x.new_empty(parts, weight.numel(), dtype=_accumulator(x)) if needs_weight else None
    width = threshold.numel() * (1 if problem.matrix else problem.outputs)
    masked = x.new_empty(parts * of_outputs, width, dtype=_accumulator(x)) if needs_threshold else None
    with on_device_of(x):
        launchable(kernel)[(parts * blocks,)](
            x, threshold.contiguous(), grad, weight.contiguous() if needs_threshold else None, rows, masked,
            x.shape[0] if problem.matrix else math.prod(sizes), run, *problem.out_size, *x.shape[2:],
            *_steps_of(x, constants["VECTOR"]), *_steps_of(grad, constants["GRAD_VECTOR"]), **constants,
            WIDE=is_wide, num_warps=config.warps, num_stages=1)
    return rows, masked


def _shares_of_bias(problem: _Problem, grad: Tensor) -> Tensor:
    """The shares of the bias' gradient, a row of each sum."""
    outputs, sites, operand = grad.shape[1], grad.numel() // grad.shape[1], _operand(grad)
    config = choose("weight", 1, problem.outputs, 1, operand, architecture(grad), problem.channels_last)
    vector = _vector_of(grad, problem.channels_last)
    blocks = ceil_div(outputs, config.outputs)
    run, parts = _dealt_out(ceil_div(sites, config.sites), blocks)
    shares = grad.new_empty(parts, outputs, dtype=_accumulator(grad))
    with on_device_of(grad):
        launchable(bias_kernel)[(parts * blocks,)](
            grad, shares, sites, run, *problem.out_size, *_steps_of(grad, vector),
            **_bias_constants(config, outputs, vector, problem.channels_last), WIDE=wide(grad), num_warps=config.warps)
    return shares


def _dealt_out(tiles: int, blocks: int) -> tuple[int, int]:
    """How many tiles a program sums, and how many programs a block then has.

    Programs of many tiles write few shares; too few programs leave the GPU idle.
    """
    run = min(ceil_div(tiles, max(1, _ENOUGH_PROGRAMS // blocks)), LONGEST_RUN)
    return run, ceil_div(tiles, run)


def _window(sizes: tuple[int, ...], sites: int, columns: int) -> tuple[int, int, int, int]:
    """Parts of the ``sizes`` (images, d, h, w) whose product is ``sites``, few of which lie past the ends.

    Each part is a power of two. Along w it has ``columns``, if there are so many, for loads that follow columns.
    """
    window = [1, 1, 1, 1]

    def double(dimension: int, fits: Callable[[int, int], bool]) -> None:
        while math.prod(window) < sites and fits(sizes[dimension], 2 * window[dimension]):
            window[dimension] *= 2

    double(3, lambda size, part: part <= columns and part < 2 * size)
    for dimension in (3, 2, 1, 0):
        double(dimension, lambda size, part: part <= size and -size % part * 8 <= size)
    for dimension in (2, 3, 1):
        double(dimension, lambda size, part: part < 2 * size)
    double(0, lambda size, part: True)
    return tuple(window)


def _convolution(x: Tensor, weight: Tensor, stride: Sequence[int], pads: Sequence[int], dilation: Sequence[int],
                 groups: int, channels_last: bool) -> _Problem:
    missing = 5 - x.dim()
    none, one = (0,) * missing, (1,) * missing
    kernel, stride, dilation = ((*one, *each) for each in (weight.shape[2:], stride, dilation))
    before, after = (*none, *pads[::2]), (*none, *pads[1::2])
    x = _three_dimensional(x)
    offsets = product(*(range(-b, k * d - b, d) for b, k, d in zip(before, kernel, dilation, strict=True)))
    taps = tuple((*offset, False) for offset in offsets)
    grid = tuple(-b for b in before), dilation, kernel
    out_size = tuple((size + b + a - d * (k - 1) - 1) // s + 1 for size, b, a, d, k, s in zip(
        x.shape[2:], before, after, dilation, kernel, stride, strict=True))
    return _Problem(x, taps, grid, stride, out_size, weight.shape[1], weight.shape[0] // groups, groups,
                    channels_last)


def _three_dimensional(x: Tensor) -> Tensor:
    """x with the spatial dimensions that it lacks, of size 1, before those it has."""
    return x[(slice(None), slice(None), *[None] * (5 - x.dim()))]


def _empty(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    """A dense activation; there is no memory format of the name in one dimension."""
    if channels_last and len(shape) > 2:
        return like.new_empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return like.new_empty(shape)


def _operand(x: Tensor) -> str:
    return _OPERANDS.get(x.dtype) or float32_operand(architecture(x))


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _laid_out(problem: _Problem, weight: Tensor, threshold: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
    """Weight and threshold as :func:`_lay_out_kernel` leaves them, in x's dtype, transposed if without a width."""
    x, taps, channels = problem.x, len(problem.taps), problem.channels
    whole = channels if width is None else ceil_div(channels, width) * width
    by_tap = x.new_empty(weight.shape[0] * whole * taps), x.new_empty(problem.groups * whole * taps)
    below = tuple(tap[3] for tap in problem.taps) if problem.grid is None else ()
    with on_device_of(x):
        launchable(_lay_out_kernel)[(sum(ceil_div(tensor.numel(), _LAID_OUT) for tensor in by_tap),)](
            weight.contiguous(), threshold.contiguous(), *by_tap, TAPS=taps, BELOW=below, CHANNELS=channels,
            OUTPUTS=problem.outputs, GROUPS=problem.groups, WIDTH=width or channels, TRANSPOSED=width is None,
            BLOCK=_LAID_OUT, num_warps=4)
    return by_tap


def _constants(problem: _Problem, config: Config, operand: str) -> dict[str, Any]:
    return {
        "STRIDE": problem.stride, "CHANNELS": problem.channels, "OUTPUTS": problem.outputs, "GROUPS": problem.groups,
        "VECTOR": _vector_of(problem.x, problem.channels_last), "CHANNELS_LAST": problem.channels_last,
        "BLOCK_SITES": config.sites, "BLOCK_CHANNELS": config.channels, "BLOCK_OUTPUTS": config.outputs,
        "PRECISION": "tf32" if operand == "tf32" else "ieee",
    }


def _forward_kernel(problem: _Problem, config: Config, operand: str, architecture: str) -> tuple[Any, dict[str, Any]]:
    """The kernel that runs with this tiling, and its constants."""
    swapped = problem.matrix and swaps(config.outputs, config.stages, operand, architecture, problem.channels_last)
    y_last = problem.users_channels_last
    y_vector = 1 if y_last else vector_length(problem.x.dtype.itemsize, math.prod(problem.out_size))
    constants = _constants(problem, config, operand) | {
        "Y_VECTOR": y_vector, "Y_CHANNELS_LAST": y_last, "SWAPPED": swapped}
    if problem.channels_last and (config.stages > 1 or (swapped and config.channels < problem.channels)):
        runs = _runs(problem.taps)
        if runs is not None:
            return looped_kernel, constants | {"RUNS": runs, "TAPS": len(problem.taps), "STAGES": config.stages}
    looped = problem.grid is not None and len(problem.taps) > _MOST_UNROLLED
    return forward_kernel, constants | {
        "TAPS": None if looped else problem.taps, "GRID": problem.grid if looped else None}


@cache
def _runs(taps: tuple[tuple[int, int, int, bool], ...]) -> tuple[tuple[Any, ...], ...] | None:
    """The taps as grids (first, step, count, below) of at most 32, one after another, or None if they are not that."""
    runs = tuple(_run(tuple(run), below) for below, run in groupby(taps, itemgetter(3)))
    return None if None in runs else runs


def _run(taps: tuple[tuple[int, int, int, bool], ...], below: bool) -> tuple[Any, ...] | None:
    places = [tuple(dict.fromkeys(tap[axis] for tap in taps)) for axis in range(3)]
    first, count = tuple(place[0] for place in places), tuple(map(len, places))
    step = tuple(place[1] - place[0] if len(place) > 1 else 1 for place in places)
    grid = product(*(range(f, f + s * c, s) for f, s, c in zip(first, step, count, strict=True)))
    return (first, step, count, below) if len(taps) <= 32 and tuple((*at, below) for at in grid) == taps else None


def _gradient_constants(problem: _Problem, config: Config, operand: str, target: str,
                        grad: Tensor) -> dict[str, Any]:
    vector = _vector_of(grad, problem.channels_last)
    return _constants(problem, config, operand) | {
        "GRID": problem.grid, "GRAD_VECTOR": vector, "PAIRS": compares_pairs(target, operand)}


def _input_constants(problem: _Problem, config: Config, operand: str, target: str, grad: Tensor) -> dict[str, Any]:
    swapped = problem.matrix and swaps(config.channels, config.stages, operand, target, problem.channels_last)
    return _gradient_constants(problem, config, operand, target, grad) | {
        "DX_CHANNELS_LAST": problem.users_channels_last, "STAGES": config.stages, "SWAPPED": swapped}


def _correlation_kernel(problem: _Problem, config: Config, operand: str, target: str, grad: Tensor,
                        is_wide: bool) -> tuple[Any, dict[str, Any]]:
    """The kernel of weight's and θ's gradients, and its constants."""
    constants = _gradient_constants(problem, config, operand, target, grad)
    if not problem.matrix:
        others = ("CHANNELS", "BLOCK_CHANNELS", "PAIRS", "PRECISION")
        return depthwise_correlation_kernel, {name: constants[name] for name in constants if name not in others}
    # Wide offsets take the registers that a line of taps needs.
    columns = config.columns if _shares_columns(problem, config) and not is_wide else 1
    sizes = problem.x.shape[0], *problem.out_size
    if columns > 1:
        window = *_window((*sizes[:3], 1), config.sites, 1)[:3], columns
    else:
        window = _window(sizes, config.sites, 1 if problem.channels_last else 32)
    del constants["CHANNELS_LAST"], constants["BLOCK_CHANNELS"]
    return correlation_kernel, constants | {
        "WINDOW": window, "BLOCK_ROWS": config.channels, "PRODUCTS": config.products, "COLUMNS": columns,
        "STAGES": config.stages}


def _shares_columns(problem: _Problem, config: Config) -> bool:
    """Whether the blocks of a program can be a line of taps for whose columns of sites x is at neighbouring columns."""
    return (problem.channels % config.channels == 0 and config.products == problem.grid[2][2]
            and problem.stride[2] == problem.grid[1][2] == 1 and problem.out_size[2] >= config.columns)


def _bias_constants(config: Config, outputs: int, vector: int, channels_last: bool) -> dict[str, Any]:
    return {"OUTPUTS": outputs, "GRAD_VECTOR": vector, "CHANNELS_LAST": channels_last, "BLOCK_SITES": config.sites,
            "BLOCK_OUTPUTS": config.outputs}


def _vector_of(x: Tensor, channels_last: bool) -> int:
    """The length of an aligned vector of channels; along columns taps begin anywhere."""
    if not channels_last:
        return 1
    steps = [x.stride(dimension) for dimension in (0, 2, 3, 4) if x.shape[dimension] > 1]
    return vector_length(x.dtype.itemsize, *steps)


def _steps_of(x: Tensor, vector: int) -> tuple[int, ...]:
    """The steps of x along images and positions, in vectors, and along channels."""
    return *(x.stride(dimension) // vector for dimension in (0, 2, 3, 4)), x.stride(1)


# ---- compilation ahead of time -----------------------------------------------------------------------------


def compile_cases(architecture: str) -> Iterator[CompileCase]:
    """The kernels on a choice of layers, in the configurations that ``architecture`` gets; one half type on all."""
    found = operand_types(architecture)
    most = "bf16" if "bf16" in found else "fp16"
    layers = [(most, layer) for layer in (*_TYPICAL_LAYERS, *_OTHER_LAYERS)]
    layers += [(operand, layer) for operand in found if operand != most for layer in _TYPICAL_LAYERS]
    for kernel in ("forward", "input", "weight"):
        for channels_last in (True, False):
            for operand, layer in layers:
                yield _compile_case(kernel, layer, operand, architecture, channels_last)
            yield _compile_case(kernel, _TYPICAL_LAYERS[0], "fp16", architecture, channels_last, is_wide=True)
    yield _compile_case("weight", _TYPICAL_LAYERS[2], "fp16", architecture, True, is_wide=True)
    for channels_last in (True, False):
        for operand in found:
            yield _case_of_bias(operand, architecture, channels_last)
        yield _case_of_bias("fp16", architecture, channels_last).with_wide_offsets()
    yield _compile_case("forward", _TYPICAL_LAYERS[1], "fp16", architecture, True, is_wide=True)
    for operand in found:
        yield _compile_case("forward", _UNEVEN_LAYER, operand, architecture, False)
        yield from _cases_of_parameters(operand)
        yield triton_layout.compile_case(operand)
    yield triton_layout.compile_case("fp16").with_wide_offsets()


class _Layer(NamedTuple):
    """A layer that is compiled ahead of time."""

    channels: int
    outputs: int
    kernel: tuple[int, ...] = (3, 3)
    stride: int = 1
    groups: int = 1
    size: int = 64
    """Of x in each dimension."""

    def __str__(self) -> str:
        text = f"{self.channels}→{self.outputs} k={'×'.join(map(str, self.kernel))}"
        text += f" stride={self.stride}" * (self.stride > 1) + f" groups={self.groups}" * (self.groups > 1)
        return text + f" size={self.size}" * (self.size != 64)


_TYPICAL_LAYERS = (_Layer(64, 64), _Layer(256, 256), _Layer(64, 64, groups=64))
_OTHER_LAYERS = (
    _Layer(3, 64, (7, 7), 2), _Layer(16, 16), _Layer(32, 32), _Layer(128, 128), _Layer(64, 128, stride=2),
    _Layer(64, 256, (1, 1)), _Layer(256, 64, (1, 1)), _Layer(128, 128, (5,)), _Layer(32, 64, (3, 3, 3)),
    _Layer(64, 64, (67,)),
)
_UNEVEN_LAYER = _Layer(256, 256, size=7)
"""Whose planes in NCHW are not made of whole vectors."""


def _compile_case(kernel: str, layer: _Layer, operand: str, architecture: str, channels_last: bool,
                  is_wide: bool = False) -> CompileCase:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}.get(operand, torch.float32)
    like = torch.empty(0, dtype=dtype, device="meta")
    x = _empty((1, layer.channels, *[layer.size] * len(layer.kernel)), like, channels_last)
    weight = x.new_empty(layer.outputs, layer.channels // layer.groups, *layer.kernel)
    dimensions = len(layer.kernel)
    pads = [count for size in layer.kernel for count in (size // 2, size // 2)]
    problem = _convolution(x, weight, (layer.stride,) * dimensions, pads, (1,) * dimensions, layer.groups,
                           channels_last)
    config = choose(kernel, problem.channels, problem.outputs, len(problem.taps), operand, architecture, channels_last)
    grad = _empty((1, layer.outputs, *problem.out_size), x, channels_last)
    if problem.converts:
        problem = problem.with_copy(_three_dimensional(_empty(x.shape, like, True)))
        grad = _empty(grad.shape, like, True)
    unit = "step_c" if problem.channels_last else "step_w"
    if kernel == "forward":
        function, constants = _forward_kernel(problem, config, operand, architecture)
        constants[unit] = 1
    else:
        grad = _three_dimensional(grad)
        if kernel == "input":
            function = input_gradient_kernel
            constants = _input_constants(problem, config, operand, architecture, grad)
        else:
            function, constants = _correlation_kernel(problem, config, operand, architecture, grad, is_wide)
        constants |= {unit: 1, f"grad_{unit}": 1}
        # Triton takes sizes of 1 as constants.
        sizes = {"in": problem.x.shape[2:], "out": problem.out_size}
        constants |= {f"{which}_{axis}": 1 for which, size in sizes.items()
                      for axis, number in zip("dhw", size, strict=True) if number == 1}
    constants["WIDE"] = False
    element = "fp32" if operand == "tf32" else operand
    exact = "fp64" if operand == "fp64" else "fp32"
    pointers = {"x": element, "weight": element, "threshold": element, "grad": element, "y": element, "dx": element,
                "bias": exact, "weight_shares": exact, "threshold_shares": exact}
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32"
                 for name in function.arg_names if name not in constants}
    width = config.channels if kernel == "input" else config.outputs
    rows = config.channels if kernel == "weight" else width if constants.get("SWAPPED") else config.sites
    unrolled = len(problem.taps) if function is forward_kernel and constants["GRID"] is None else 1
    vector_bits, vector_loads = _loads(kernel, config, constants["VECTOR"], unrolled, operand, architecture)
    layout = "channels-last" if channels_last else "NCHW"
    case = CompileCase(f"conv_relu {kernel} {layout} {layer}", function, signature, constants, config.warps,
                       operand, rows if problem.matrix else 0, vector_bits, vector_loads, config.stages)
    return case.with_wide_offsets() if is_wide else case


def _case_of_bias(operand: str, architecture: str, channels_last: bool) -> CompileCase:
    exact, element = "fp64" if operand == "fp64" else "fp32", "fp32" if operand == "tf32" else operand
    config = choose("weight", 1, 64, 1, operand, architecture, channels_last)
    vector = 16 // itemsize(operand) if channels_last else 1
    constants = _bias_constants(config, 64, vector, channels_last) | {
        "out_d": 1, f"grad_step_{'c' if channels_last else 'w'}": 1, "WIDE": False}
    signature = {name: {"grad": f"*{element}", "bias_shares": f"*{exact}"}.get(name, "i32")
                 for name in bias_kernel.arg_names if name not in constants}
    loads = config.sites * config.outputs // (config.warps * warp_size(architecture) * vector)
    layout = "channels-last" if channels_last else "NCHW"
    return CompileCase(f"conv_relu bias {layout}", bias_kernel, signature, constants, config.warps, operand, 0,
                       vector * itemsize(operand) * 8, loads)


def _cases_of_parameters(operand: str) -> Iterator[CompileCase]:
    exact, element = "fp64" if operand == "fp64" else "fp32", "fp32" if operand == "tf32" else operand
    constants = {"TAPS": 9, "CHANNELS": 64, "OUTPUTS": 64, "GROUPS": 1, "BLOCK": _SUMMED, "LANES": _LANES}
    parameters = ("weight", "threshold", "bias")
    signature = {f"{name}_shares": f"*{exact}" for name in parameters}
    signature |= {f"d{name}": f"*{element}" for name in parameters} | {f"{name}_rows": "i32" for name in parameters}
    yield CompileCase("conv_relu sum", sum_kernel, signature, constants, 4, operand, 0, 32, 0)
    constants = {"TAPS": 9, "BELOW": (), "CHANNELS": 64, "OUTPUTS": 64, "GROUPS": 1, "WIDTH": 64, "TRANSPOSED": True,
                 "BLOCK": _LAID_OUT}
    signature = dict.fromkeys(("weight", "threshold", "weight_by_tap", "threshold_by_tap"), f"*{element}")
    yield CompileCase("conv_relu layout", _lay_out_kernel, signature, constants, 4, operand, 0, 32, 0)


def _loads(kernel: str, config: Config, vector: int, taps: int, operand: str, architecture: str) -> tuple[int, int]:
    """The bits of a load of an activation, and how many of them a thread should make in the hot loop, for so many taps.
    """
    channels = config.outputs if kernel == "input" else config.channels
    per_thread = max(1, config.sites * channels // (config.warps * warp_size(architecture)))
    vector = min(vector, per_thread)
    return vector * itemsize(operand) * 8, taps * per_thread // vector
