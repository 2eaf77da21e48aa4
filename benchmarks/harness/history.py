"""What ``--save`` has kept over time: a line for each saved run, by commit and machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import files, machine
from .command import RESULTS
from .report import number

FILE = RESULTS / "history.jsonl"
Line = Mapping[str, Any]


def append(run: Mapping[str, Any], ratios: Mapping[str, float | None], file: Path | None = None) -> None:
    """Add a run in a few numbers: its :func:`machine.facts`, and ratios by their names."""
    versions = {name: run["versions"].get(name) for name in ("python", "torch", "triton")}
    line = {"date": run["date"], "commit": run["commit"], "machine": machine.name(run), "versions": versions,
            "ratios": {name: round(ratio, 4) for name, ratio in ratios.items() if ratio is not None}}
    file = FILE if file is None else file
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    files.write_text(file, f"{before}{json.dumps(line, ensure_ascii=False)}\n")


def read(file: Path | None = None) -> list[Line]:
    """All lines, the oldest run first."""
    file = FILE if file is None else file
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(lines, key=lambda line: line["date"])


MOST_RUNS = 6
"""Columns of a table: the newest runs."""


def tables(lines: Sequence[Line], match: str = "") -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """For each machine a title, a head and cells: a row for each ratio with ``match`` in its name, a column a commit.

    Runs of one commit on one day are one column, since a saved benchmark is several programs.
    """
    for name in dict.fromkeys(line["machine"] for line in lines):
        runs: dict[tuple[str, str], dict[str, float]] = {}
        for line in lines:
            found = {ratio: value for ratio, value in line["ratios"].items() if match in ratio}
            if line["machine"] == name and found:
                runs.setdefault((line["commit"] or "unknown", line["date"][:10]), {}).update(found)
        newest = list(runs.items())[-MOST_RUNS:]
        ratios = dict.fromkeys(ratio for _, found in newest for ratio in found)
        if ratios:
            yield (name, ["", *(f"{commit} {date}" for (commit, date), _ in newest)],
                   [[ratio, *(number(found.get(ratio)) for _, found in newest)] for ratio in ratios])
