"""The tables that results are shown in, on the terminal and on pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import bars, machine, report
from .blocks import Table
from .report import number

Run = dict[str, Any]
Cells = Iterator[list[str]]


def title(run: Run) -> str:
    """One line on where and with what the times were taken."""
    commit = run["commit"] or "unknown"
    return f"{machine.name(run)}, torch {run['versions']['torch']}, commit {commit}, {run['date'][:10]}"


def kind(run: Run) -> str:
    """The kind of machine a run was on, in a word."""
    gpu = run["machine"].get("gpu")
    return gpu["name"] if gpu else str(run["kernels_isa"])


def means(table: Table, rows: Iterable[dict[str, Any]], ratios: Iterable[str]) -> list[float | None]:
    """The geometric mean of each ratio over the rows that have it and that ``table`` averages."""
    rows = [row for row in rows if table.averaged(row)]
    return [report.geometric_mean(row["ratios"][ratio] for row in rows if ratio in row["ratios"]) for ratio in ratios]


# ---- against the numbers to reach --------------------------------------------------------------------------


def of_bars(runs: Sequence[Run], wanted: Iterable[bars.Bar] | None = None) -> tuple[list[str], Cells]:
    """The numbers to reach, by default the device's, and those measured in runs on one type of device."""
    wanted = bars.of_device(runs[0]["device"]) if wanted is None else wanted
    return ["", "dtype", "first bar", "moonshot", *map(kind, runs)], _bar_cells(runs, wanted)


def _bar_cells(runs: Sequence[Run], wanted: Iterable[bars.Bar]) -> Cells:
    for bar in wanted:
        sign = "≤" if bar.at_most else "≥"
        goals = [f"{sign} {goal}" if goal else "—" for goal in (bar.first, bar.moonshot)]
        yield [bar.what, bar.dtype, *goals, *(_reached(bar, bar.measured(run)) for run in runs)]


def _reached(bar: bars.Bar, value: float | None) -> str:
    if value is None:
        return "—"
    if bar.moonshot and bar.reached(value, bar.moonshot):
        return f"{number(value)}, moonshot"
    return f"{number(value)}, {'first bar' if bar.reached(value, bar.first) else 'no'}"


# ---- whole networks ----------------------------------------------------------------------------------------

NETWORKS = "images/s of the stock network, and their change with LENI"
NETWORK_LEGEND = ("The three networks run in turns. *Stock* is the median of the stock network's images/s; a change is "
                  "the median over the rounds of what the other network makes of that round's.")
NETWORK_HEAD = ("network", "dtype", "N", "stock, images/s", "composed, change", "ours, change", "backend")


def network_cells(rows: Iterable[dict[str, Any]]) -> Cells:
    """Images/s and their change.

    Those of the other networks are not shown: on a machine that is not steady their median is of other rounds than the
    change, and seems to contradict it.
    """
    for row in rows:
        changes = (row["change_percent"].get(name) for name in ("composed", "ours"))
        yield [row["network"], row["dtype"], str(row["batch"]), number(row["images_per_second"].get("stock"), 1),
               *("—" if change is None else f"{change:+.1f} %" for change in changes), row["backend"] or "—"]
