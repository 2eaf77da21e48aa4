"""How the rows of a block's measurements are shown: what each module that measures blocks says of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


def every(row: Row) -> bool:
    """Whether means include a row: they include all."""
    return True


class Table(NamedTuple):
    """The columns of a table of rows. Times and ratios that no row has are left out."""

    times: tuple[str, ...]
    ratios: Mapping[str, str | None]
    """The ratios, and what the README calls them, if it shows them."""

    label: Callable[[Row], str]
    """A row's first cell: its shape."""

    head: str = ""
    """The heading of the first column: how labels are to be read."""

    average: str = "geometric mean"
    """The first cell of the row of means."""

    averaged: Callable[[Row], bool] = every
    """Whether means include a row."""


class Picture(NamedTuple):
    """What a picture of rows in multiples of the limit says of them."""

    suffix: str
    """What its file's name ends in."""

    limit: str
    compiled: str
