"""Tiles that ConvReLU's kernels load, threshold and store, and their places among sites.

A tile is [sites, channels] whatever the layout in memory, but is loaded and stored in memory's order, so that
neighbouring threads access neighbouring elements. Positions, sizes, offsets and steps are tuples (d, h, w); a step is
the distance in memory between neighbours.
"""

from __future__ import annotations

from ...common.gpu.packed import maximum, minimum
from ...common.gpu.support import jit, tl


@jit
def in_memory(site, channel, CHANNELS_LAST: tl.constexpr):
    """A vector over sites and one over channels, shaped so that combining them gives a tile in memory's order."""
    if CHANNELS_LAST:
        return site[:, None], channel[None, :]
    else:
        return site[None, :], channel[:, None]


@jit
def tile_pointers(base, site, channel, CHANNELS_LAST: tl.constexpr):
    """Pointers to a tile, from its offsets along sites and along channels.

    They are made once and moved from tap to tap: offsets of every tap would be kept in registers through the loops.
    """
    site, channel = in_memory(site, channel, CHANNELS_LAST)
    return base + site + channel


@jit
def load_tile(pointers, has_site, has_channel, CHANNELS_LAST: tl.constexpr):
    """A tile; 0 where there is no such site or channel."""
    has_site, has_channel = in_memory(has_site, has_channel, CHANNELS_LAST)
    tile = tl.load(pointers, has_site & has_channel, 0.0)
    return tile if CHANNELS_LAST else tl.trans(tile)


@jit
def store_tile(base, tile, site, channel, has_site, has_channel, plane, ALL: tl.constexpr,
               CHANNELS_LAST: tl.constexpr):
    """Store a tile to a dense activation of ALL channels; sites count through its planes of ``plane`` sites.

    In NCHW as many go into a vector as the compiler knows to divide the sites and the plane.
    """
    if CHANNELS_LAST:
        site = site * ALL
    else:
        site = site // plane * (ALL * plane) + site % plane
        channel = channel * plane
        tile = tl.trans(tile)
    site, channel = in_memory(site, channel, CHANNELS_LAST)
    has_site, has_channel = in_memory(has_site, has_channel, CHANNELS_LAST)
    tl.store(base + (site + channel), tile.to(base.dtype.element_ty), has_site & has_channel)


@jit
def store_in_pieces(y, sums, site, has_site, first, plane, OUTPUTS: tl.constexpr, ALL: tl.constexpr):
    """Store to NCHW what begins with a group's output ``first``, which is at ``y``: the places of a whole tile's
    elements would not fit in registers, and those of pieces differ in ``y`` alone."""
    width: tl.constexpr = sums.shape[1]
    half: tl.constexpr = width // 2
    if width > 32:
        left, right = tl.split(tl.permute(tl.reshape(sums, (sums.shape[0], 2, half)), (0, 2, 1)))
        store_in_pieces(y, left, site, has_site, first, plane, OUTPUTS, ALL)
        store_in_pieces(y + half * plane, right, site, has_site, first + half, plane, OUTPUTS, ALL)
    else:
        output = tl.arange(0, width)
        store_tile(y, sums, site, output, has_site, first + output < OUTPUTS, plane, ALL, False)


@jit
def locate(site, size):
    """The image of a site that is counted through a batch, and the site's position there."""
    row = site // size[2]
    slab = row // size[1]
    return slab // size[0], (slab % size[0], row % size[1], site % size[2])


@jit
def plus(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@jit
def times(a, b):
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@jit
def sum_of(a):
    return a[0] + a[1] + a[2]


@jit
def is_below(place, size):
    """Whether 0 ≤ place < size: one comparison, where a negative place is a large one."""
    return tl.cast(place, tl.uint32) < tl.cast(size, tl.uint32)


@jit
def is_inside(position, size):
    return is_below(position[0], size[0]) & is_below(position[1], size[1]) & is_below(position[2], size[2])


@jit
def outside_unless(has_site, position):
    """The position, and where there is no site one that is in no x, whatever offset is added."""
    return position[0], position[1], tl.where(has_site, position[2], -(2**30))


@jit
def in_elements(step_d, step_h, step_w, VECTOR: tl.constexpr, index_type: tl.constexpr):
    """Steps in elements, of the type that offsets need, from steps in vectors."""
    return (tl.cast(step_d, index_type) * VECTOR, tl.cast(step_h, index_type) * VECTOR,
            tl.cast(step_w, index_type) * VECTOR)


@jit
def tap_offset(tap: tl.constexpr, TAPS: tl.constexpr):
    """The offset of a listed tap, each number a constant: before Triton 3.8 a tuple in a tuple is no argument."""
    d: tl.constexpr = TAPS[tap][0]
    h: tl.constexpr = TAPS[tap][1]
    w: tl.constexpr = TAPS[tap][2]
    return d, h, w


@jit
def grid_offset(tap, GRID: tl.constexpr):
    """The offset of a tap of GRID = (first, step, count)."""
    first: tl.constexpr = GRID[0]
    step: tl.constexpr = GRID[1]
    count: tl.constexpr = GRID[2]
    return offset_in(tap, first, step, count)


@jit
def offset_in(tap, first, step, count):
    """The offset of a tap of a grid."""
    place = tap // (count[1] * count[2]), tap // count[2] % count[1], tap % count[2]
    return plus(times(place, step), first)


@jit
def without_nan(threshold, below):
    """The threshold, which where it is NaN bounds nothing: what is ``below`` takes the minimum with it."""
    nothing = tl.where(below, float("inf"), float("-inf")).to(threshold.dtype)
    return tl.where(threshold == threshold, threshold, nothing)


@jit
def activated(x, threshold, BELOW: tl.constexpr):
    """max(x, θ), or min(x, θ) where BELOW, in x's dtype; θ has no NaN, and one in x stays."""
    if BELOW:
        return minimum(x, tl.broadcast_to(threshold[None, :], x.shape))
    else:
        return maximum(x, tl.broadcast_to(threshold[None, :], x.shape))


@jit
def load_matrix(pointers, has_row, has_column):
    return tl.load(pointers, has_row[:, None] & has_column[None, :], 0.0)
