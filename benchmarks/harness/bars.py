"""The numbers to reach, and where a run stands against them; the numbers themselves lie with what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .blocks import every
from .report import geometric_mean

Row = dict[str, Any]


class Bar(NamedTuple):
    """One number to reach: where and how it is found in the results, the first bar and the moonshot."""

    work: str
    """The list of the results that it is found in."""

    what: str
    dtype: str
    ratio: str
    over: Callable[[Row], bool]
    """The rows that count."""

    combine: Callable[[Iterable[float]], float | None]
    first: float
    moonshot: float | None
    at_most: bool

    def measured(self, results: Mapping[str, Sequence[Row]]) -> float | None:
        """The number as measured; None if a case it needs has no time."""
        values = [row["ratios"].get(self.ratio) for row in results.get(self.work, ())
                  if row["dtype"] == self.dtype and self.over(row)]
        return None if not values or None in values else self.combine(values)

    def reached(self, value: float, bar: float) -> bool:
        return value <= bar if self.at_most else value >= bar


# ---- the kinds of numbers ----------------------------------------------------------------------------------


def slowest(work: str, what: str, dtype: str, ratio: str, first: float, moonshot: float | None = None,
            over: Callable[[Row], bool] = every) -> Bar:
    """Of the slowest case, a time as a multiple of another one's."""
    return Bar(work, what, dtype, ratio, over, max, first, moonshot, at_most=True)


def least(work: str, what: str, dtype: str, ratio: str, first: float, over: Callable[[Row], bool] = every) -> Bar:
    """Of the slowest case, how many times faster than something it is."""
    return Bar(work, what, dtype, ratio, over, min, first, None, at_most=False)


def mean(work: str, what: str, dtype: str, ratio: str, first: float, over: Callable[[Row], bool] = every) -> Bar:
    """The geometric mean of how many times faster than something the cases are."""
    return Bar(work, what, dtype, ratio, over, geometric_mean, first, None, at_most=False)


def overhead(what: str, work: str, first: float, of: str, *subjects: str) -> Bar:
    """The time of a call, for the slowest of the ``subjects``, by default the one called ``what``."""
    return slowest("overhead", f"{what}, {work}, tiny input: time / {of}", "float32", "ours/peer", first,
                   over=lambda row: row["work"] == work and row["subject"] in (subjects or (what,)))


def launches(subject: str, first: float) -> Bar:
    """How many kernels a GPU is given; ``gpu_`` marks what only ``gpu_check.py`` measures."""
    return slowest("gpu_launches", f"{subject}: kernels launched", "bfloat16", "launches", first,
                   over=lambda row: row["subject"] == subject)


def channels_last(row: Row) -> bool:
    """The rows in the layout that GPUs like best."""
    return row["layout"] == "channels_last"


# ---- all of them -------------------------------------------------------------------------------------------


def of_device(device: str) -> tuple[Bar, ...]:
    """The bars for a device type."""
    return tuple(_listed("GPU" if device == "cuda" else "CPU"))


def of_overhead() -> tuple[Bar, ...]:
    """What only ``overhead.py`` measures, on any device."""
    return tuple(_listed("OVERHEAD"))


def _listed(name: str) -> Iterator[Bar]:
    """The bars of every mechanism and of whole networks."""
    import cases  # these modules import this one
    from networks import bars as of_networks

    for module in (*cases.modules("bars").values(), of_networks):
        yield from getattr(module, name, ())
