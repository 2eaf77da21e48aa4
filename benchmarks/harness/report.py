"""What a run leaves behind: a progress bar while it lasts, tables at its end, and a JSON file throughout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import files

try:
    import rich
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:
    rich = None

WIDTH = 140
"""Columns of a table where the output is no terminal."""


def write_json(path: Path, report: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write the report, creating its folder."""
    files.write_text(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table, or a dash where there is none."""
    return "—" if value is None else f"{value:.{digits}f}"


# ---- on the terminal ---------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """One plain line."""
    print(text, flush=True)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar over ``total`` steps; the value is called with a step's name as the step begins."""
    if rich is None or not sys.stderr.isatty():
        yield _lines(total)
        return
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = False

        def step(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, advance=1 if begun else 0)
            begun = True

        yield step


def _lines(total: int) -> Callable[[str], None]:
    count = 0

    def step(name: str) -> None:
        nonlocal count
        count += 1
        print(f"[{count}/{total}] {name}", file=sys.stderr, flush=True)

    return step


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    rows = [list(row) for row in rows]
    if rich is None:
        _plain_table(title, head, rows)
        return
    view = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, name in enumerate(head):
        view.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        view.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(view)


def _plain_table(title: str, head: Sequence[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    say(f"\n{title}")
    for row in [list(head), ["-" * width for width in widths], *rows]:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join([row[0].ljust(len(first)), *others]))
