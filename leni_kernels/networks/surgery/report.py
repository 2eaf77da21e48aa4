"""What surgery did, as rows and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One call of a ReLU.

    ``note`` says what stands there now, or why nothing new does, and ``module`` the path of the new module.
    ``parameters`` and ``flops`` are what was added, the latter for one sample: additions and multiplications of the
    folded form, comparisons not counted.
    """

    name: str
    site: str
    shape: tuple[int, ...]
    replaced: bool
    note: str
    parameters: int = 0
    flops: int = 0
    module: str = ""


@dataclass(frozen=True)
class Report:
    """What :func:`replace_relu` did: a row for each call in order of execution, and what else is to be known."""

    kind: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def replaced(self) -> int:
        """How many calls were replaced."""
        return sum(row.replaced for row in self.rows)

    @property
    def parameters(self) -> int:
        """Parameters added."""
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        """FLOPs added, for one sample."""
        return sum(row.flops for row in self.rows)

    def __str__(self) -> str:
        header = ("name", "site", "shape", "now", "parameters", "FLOPs")
        lines = [(row.name, row.site, "x".join(map(str, row.shape)), row.note if row.replaced else f"left: {row.note}",
                  f"{row.parameters:+,}" if row.replaced else "", f"{row.flops:+,}" if row.replaced else "")
                 for row in self.rows]
        total = (f"{self.replaced} of {len(self.rows)} replaced", "", "", "", f"{self.parameters:+,}",
                 f"{self.flops:+,}")
        widths = [max(map(len, column)) for column in zip(header, *lines, total, strict=True)]
        rule = "  ".join("-" * width for width in widths)

        def line(cells: Sequence[str]) -> str:
            return "  ".join(cell.rjust(width) if column > 3 else cell.ljust(width)
                             for column, (cell, width) in enumerate(zip(cells, widths, strict=True))).rstrip()

        return "\n".join((line(header), rule, *map(line, lines), rule, line(total), *self.notes))
