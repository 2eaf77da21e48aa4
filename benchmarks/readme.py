"""Writes the measured numbers into README.md, between its markers, from the JSON files of benchmarks/results.

python benchmarks/readme.py          rewrites the README
python benchmarks/readme.py --check  exits with 1 if the README says anything else than the results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import throughput
from harness.report import geometric_mean, number

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DEVICES = ("cpu", "cuda")
BEGIN, END = "<!-- measured: written by benchmarks/readme.py -->", "<!-- end of measured -->"
NOTHING = "Nothing has been measured yet: `make throughput` measures, and writes this section.\n"


def main() -> int:
    """Rewrite or check the README; returns the exit status."""
    written = README.read_text(encoding="utf-8")
    wanted = replaced(written, section(ROOT / "benchmarks" / "results"))
    if "--check" in sys.argv[1:]:
        return int(written != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


def replaced(readme: str, measured: str) -> str:
    """The README with ``measured`` between its markers.

    Raises:
        ValueError: if the README lacks a marker.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must have the markers {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{measured}{END}{after}"


def section(results: Path) -> str:
    """What the full runs in a folder of results amount to, as Markdown."""
    paths = [results / f"throughput-{device}.json" for device in DEVICES]
    runs = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.exists()]
    return "\n".join(line for path, run in runs for line in _run(path, run)) + "\n" if runs else NOTHING


def _run(path: Path, run: dict[str, Any]) -> Iterator[str]:
    link = path.relative_to(path.parents[2])
    yield f"![Time of every contender in multiples of the limit]({link.with_suffix('.png')})"
    yield f"\nMeasured on: {throughput.title(run)}. Raw numbers: [{path.name}]({link})."
    yield "\n**Against the numbers to reach** (C ≤ 256, both layouts)\n"
    yield from _table(throughput.BAR_HEAD, throughput.bar_cells(run))
    for dtype in dict.fromkeys(row["dtype"] for row in run["leni_inference"]):
        yield f"\n**LENI inference, {dtype}**\n"
        rows = [row for row in run["leni_inference"] if row["dtype"] == dtype]
        yield from _table(SHAPE_HEAD, _shape_cells(rows))
    low, high = throughput.networks.PUBLISHED
    yield ("\n**Whole networks, LENI in layer 1**: images/s, and their change against the stock network "
           f"(the paper's Table 1: {low} % to {high} %)\n")
    yield from _table(throughput.NETWORK_HEAD, throughput.network_cells(run["networks"]))


LAYOUTS = {"channels_first": "NCHW", "channels_last": "channels-last"}
COLUMNS = {
    "ours/L": "time / L",
    "eager/ours": "× composed",
    "compiled/ours": "× compiled",
    "ours/relu": "time / ReLU",
}
SHAPE_HEAD = ("C, H×W", *(f"{layout}: {name}" for layout in LAYOUTS.values() for name in COLUMNS.values()))


def _shape_cells(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """A row for every shape, both layouts side by side, and the geometric means up to C = 256."""
    ratios = {(row["channels"], row["size"], row["layout"]): row["ratios"] for row in rows}
    for channels, size in dict.fromkeys((row["channels"], row["size"]) for row in rows):
        found = [ratios.get((channels, size, layout), {}) for layout in LAYOUTS]
        cells = (number(case.get(ratio)) for case in found for ratio in COLUMNS)
        yield [f"{channels}, {size}×{size}", *cells]
    means = (geometric_mean(row["ratios"][ratio] for row in rows
                            if row["layout"] == layout and row["channels"] <= 256 and ratio in row["ratios"])
             for layout in LAYOUTS for ratio in COLUMNS)
    yield ["geometric mean, C ≤ 256", *map(number, means)]


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
