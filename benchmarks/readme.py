"""Writes the measured numbers into README.md and docs/performance.md, between their markers, from benchmarks/results.

python benchmarks/readme.py          rewrites the pages: all tables in docs/performance.md, a dozen numbers in README.md
python benchmarks/readme.py --check  exits with 1 if a page says anything else than the results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bars
import memory
import overhead
import throughput
from harness import machine, report
from harness.blocks import Table
from harness.report import number
from networks import table1

ROOT = Path(__file__).parents[1]
CPUS, GPUS = [f"cpu-{isa}" for isa in machine.ISAS], ["cuda"]
BEGIN, END = "<!-- measured: written by benchmarks/readme.py -->", "<!-- end of measured -->"
NOTHING = "Nothing has been measured yet: `make throughput` measures, and writes this section.\n"


def main() -> int:
    """Rewrite or check the pages; returns the exit status."""
    wanted = pages(ROOT / "benchmarks" / "results")
    if "--check" in sys.argv[1:]:
        return int(any(path.read_text(encoding="utf-8") != page for path, page in wanted.items()))
    for path, page in wanted.items():
        path.write_text(page, encoding="utf-8")
    return 0


def pages(results: Path) -> dict[Path, str]:
    """The pages that show measured numbers, as a folder of results wants them."""
    # Links are relative to the page.
    measured = {ROOT / "README.md": summary(results),
                ROOT / "docs" / "performance.md": section(results).replace("](benchmarks/", "](../benchmarks/")}
    return {path: replaced(path.read_text(encoding="utf-8"), text) for path, text in measured.items()}


def replaced(page: str, measured: str) -> str:
    """A page with ``measured`` between its markers.

    Raises:
        ValueError: if the page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a page of measured numbers must have the markers {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{measured}{END}{after}"


SUMMARY = (
    ("LENI, inference", "leni_inference", {
        "eager/ours": "times faster than the block of PyTorch layers",
        "compiled/ours": "times faster than the same, folded by hand, under `torch.compile`"}),
    ("LENI, training step", "leni_training", {
        "eager/ours": "times faster than the block of PyTorch layers",
        "compiled/ours": "times faster than the same under `torch.compile`"}),
    ("Reborn, training step", "reborn_training", {"composed/ours": "times faster than the block of PyTorch layers"}),
    ("ConvReLU, inference", "conv_relu_inference", {
        "ours/relu_conv": "of the time of ReLU and convolution", "composed/ours": "times faster than composed"}),
    ("ConvReLU, training step", "conv_relu_training", {
        "ours/relu_conv": "of the time of ReLU and convolution", "composed/ours": "times faster than composed"}),
    ("AdaReLU, forward and step", "pointwise", {"AdaReLU/ReLU": "of the time of ReLU"}),
    ("FullyParametricReLU, forward and step", "pointwise", {"FPReLU/ReLU": "of the time of ReLU"}),
)
"""What the README shows: of each part of the benchmark some ratios, and what they say."""


def summary(results: Path) -> str:
    """The newest run on a CPU in a dozen numbers, as Markdown."""
    runs = _read(results, "throughput", CPUS)
    if not runs:
        return NOTHING
    path = max(runs, key=lambda path: runs[path]["date"])
    picture = _link(path).with_suffix(".png")
    lines = [f"\n![LENI inference: time of every contender in multiples of the limit]({picture})",
             f"\n{throughput.title(runs[path])}, float32:\n"]
    lines += _table(("", "geometric mean", "range", ""), _summary_cells(runs[path]))
    for memory_run in _read(results, "memory", ("cpu",)).values():
        block = memory_run["blocks"][-1]
        times = (block["bytes"][side] / block["bytes"]["relu"] for side in ("ours", "composed"))
        lines.append("\nKept for backward by a LENI block: {:.2f} times what a ReLU keeps; composed, {:.2f} times."
                     .format(*times))
    return "\n".join(lines) + "\n"


def _summary_cells(run: dict[str, Any]) -> Iterator[list[str]]:
    for work, part, ratios in SUMMARY:
        for ratio, meaning in ratios.items():
            found = [row["ratios"][ratio] for row in run[part] if row["dtype"] == "float32" and ratio in row["ratios"]]
            if found:
                yield [work, number(report.geometric_mean(found)), f"{number(min(found))} – {number(max(found))}",
                       meaning]


def section(results: Path) -> str:
    """What the full runs in a folder of results amount to, as Markdown."""
    lines = []
    for kinds in (CPUS, GPUS):
        runs = _read(results, "throughput", kinds)
        if runs:
            lines += _runs(runs)
        for path, run in _read(results, "throughput", [f"{kind}-table1" for kind in kinds]).items():
            lines += _table1(path, run)
    for path, run in _read(results, "memory", ("cpu", "cuda")).items():
        lines += _memory(path, run)
    for kinds in (CPUS, GPUS):
        lines += _overhead(_read(results, "overhead", kinds))
    return "\n".join(lines) + "\n" if lines else NOTHING


def _read(results: Path, name: str, kinds: Iterable[str]) -> dict[Path, dict[str, Any]]:
    paths = (results / f"{name}-{kind}.json" for kind in kinds)
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()}


def _runs(runs: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Runs on one type of device: all against the numbers to reach, and the newest in full."""
    newest = max(runs, key=lambda path: runs[path]["date"])
    yield "\nMeasured on:\n"
    for path, run in runs.items():
        older = "" if run["commit"] == runs[newest]["commit"] else "; of an earlier commit than the newest"
        without = "".join(f"; without {what}: {why}" for what, why in run.get("left_out", {}).items())
        yield f"- {throughput.title(run)}: [{path.name}]({_link(path)}){older}{without}"
    yield "\n**Against the numbers to reach**\n"
    yield from _table(throughput.bar_head([*runs.values()]), throughput.bar_cells([*runs.values()]))
    if len(runs) > 1:
        yield f"\nWhat follows is the newest of these runs, on {throughput.kind(runs[newest])}."
    yield from _run(newest, runs[newest])


def _run(path: Path, run: dict[str, Any]) -> Iterator[str]:
    for name, module in throughput.BLOCKS.items():
        rows = run.get(name, [])
        if rows and module.PICTURE:
            picture = _link(throughput.picture(path, module))
            yield f"\n![{module.TITLE}: time of every contender in multiples of the limit]({picture})"
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            yield f"\n**{module.TITLE}, {dtype}**\n"
            yield from _shapes(module.TABLE, [row for row in rows if row["dtype"] == dtype])
    for name, module in throughput.NETWORKS.items():
        if run.get(name):
            yield f"\n**{module.TITLE}, LENI in layer 1**: images/s, and their change against the stock network\n"
            yield from _table(throughput.NETWORK_HEAD, throughput.network_cells(run[name]))


def _table1(path: Path, run: dict[str, Any]) -> Iterator[str]:
    yield f"\n**{table1.TITLE}**: images/s, and their change against the stock network\n"
    yield f"Measured on: {throughput.title(run)}. Raw numbers: [{path.name}]({_link(path)}).\n"
    yield from _table(throughput.NETWORK_HEAD, throughput.network_cells(run["table1"]))


def _memory(path: Path, run: dict[str, Any]) -> Iterator[str]:
    link = _link(path)
    yield f"\n**{memory.heading(run)}, float32, MiB an image** (parameters not included)\n"
    yield f"Measured on: {throughput.title(run)}. Raw numbers: [{path.name}]({link}).\n"
    yield f"![{memory.heading(run)}]({link.with_suffix('.png')})\n"
    yield from _table(memory.HEAD, memory.cells(run))


def _overhead(runs: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Runs on one type of device: each in full, and all against the numbers to reach."""
    for path, run in runs.items():
        yield f"\n**{overhead.heading(run)}**\n"
        yield f"Measured on: {throughput.title(run)}. Raw numbers: [{path.name}]({_link(path)}).\n"
        yield f"{overhead.LEGEND}\n"
        yield from _table(overhead.head(run), overhead.cells(run))
    if runs:
        yield "\n**Call overhead against the numbers to reach**\n"
        yield from _table(throughput.bar_head([*runs.values()]), throughput.bar_cells([*runs.values()], bars.OVERHEAD))


def _link(path: Path) -> Path:
    return path.relative_to(path.parents[2])


LAYOUTS = {"channels_first": "NCHW", "channels_last": "channels-last"}


def _shapes(table: Table, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A table with a row for every shape, its layouts side by side, and the geometric means."""
    columns = {ratio: heading for ratio, heading in table.ratios.items()
               if heading and any(ratio in row["ratios"] for row in rows)}
    layouts = {layout: name for layout, name in LAYOUTS.items() if any(row["layout"] == layout for row in rows)}
    head = (table.head, *(f"{name}: {heading}" for name in layouts.values() for heading in columns.values()))
    yield from _table(head, _shape_cells(table, rows, columns, layouts))


def _shape_cells(table: Table, rows: Sequence[dict[str, Any]], columns: Iterable[str],
                 layouts: Iterable[str]) -> Iterator[list[str]]:
    ratios = {(table.label(row), row["layout"]): row["ratios"] for row in rows}
    for label in dict.fromkeys(map(table.label, rows)):
        found = [ratios.get((label, layout), {}) for layout in layouts]
        yield [label, *(number(case.get(ratio)) for case in found for ratio in columns)]
    means = (mean for layout in layouts
             for mean in throughput.means(table, (row for row in rows if row["layout"] == layout), columns))
    yield [table.average, *map(number, means)]


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
