"""Writes the measured numbers into README.md and the pages of docs/, between their markers, from benchmarks/results.

All tables go to docs/performance.md, the parameters of the papers' networks too, a dozen numbers to the README, and
what was measured where to whichever page asks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import memory
import overhead
import parameters
import throughput
from harness import bars, command, files, learned, machine, report, tables
from harness.blocks import Table
from harness.report import number
from networks import table1

ROOT = Path(__file__).parents[1]
RESULTS = command.RESULTS
CPUS, GPUS = [f"cpu-{isa}" for isa in machine.ISAS], ["cuda"]
PAGES = ("README.md", "docs/performance.md", "docs/accuracy.md", "docs/how/backends.md")
NOTHING = "Nothing has been measured yet: `make throughput` measures, and writes this section.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the pages; returns the exit status."""
    parser = command.parser(__file__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    options = command.parse(parser, arguments)
    wanted = pages(RESULTS)
    if options.check:
        stale = [path for path, page in wanted.items() if path.read_text(encoding="utf-8") != page]
        for path in stale:
            report.say(f"{path.relative_to(ROOT)} says anything else than the results: run benchmarks/readme.py")
        return int(bool(stale))
    for path, page in wanted.items():
        files.write_text(path, page)
    return 0


# ---- the pages ---------------------------------------------------------------------------------------------


def pages(results: Path) -> dict[Path, str]:
    """The pages that show measured numbers, as a folder of results wants them."""
    texts = {"measured": section(results), "highlights": highlights(results), "where": where(results),
             "accuracy": accuracy(results), "parameters": counts(results),
             "gpus": "\n".join(["", *_where_on_gpus(results), ""])}
    return {ROOT / name: _filled(ROOT / name, texts) for name in PAGES}


def _filled(path: Path, texts: dict[str, str]) -> str:
    page = path.read_text(encoding="utf-8")
    names = [name for name in texts if _begin(name) in page]
    if not names:
        raise ValueError(f"{path.name} must have the markers of one of {', '.join(texts)}")
    up = "../" * (len(path.relative_to(ROOT).parts) - 1)
    for name in names:
        # Links are relative to the page.
        page = replaced(page, name, texts[name].replace("](benchmarks/", f"]({up}benchmarks/"))
    return page


def _begin(name: str) -> str:
    return f"<!-- {name}: written by benchmarks/readme.py -->"


def replaced(page: str, name: str, text: str) -> str:
    """A page with ``text`` between the markers of a name.

    Raises:
        ValueError: if the page lacks a marker.
    """
    begin, end = _begin(name), f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"a page of numbers must have the markers {begin!r} and {end!r}")
    return f"{before}{begin}\n{text}{end}{after}"


def _read(results: Path, name: str, kinds: Iterable[str]) -> dict[Path, dict[str, Any]]:
    paths = (results / f"{name}-{kind}.json" for kind in kinds)
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()}


def _newest(runs: dict[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    return max(runs.items(), key=lambda item: item[1]["date"])


def _link(path: Path) -> Path:
    return path.relative_to(path.parents[2])


def _file(path: Path) -> str:
    return f"[{path.name}]({_link(path)})"


# ---- a dozen numbers ---------------------------------------------------------------------------------------

HIGHLIGHTS = (
    ("LENI, inference: times faster than composed", ("leni_inference",), "eager/ours"),
    ("LENI, inference: times faster than folded by hand, under `torch.compile`", ("leni_inference",), "compiled/ours"),
    ("LENI, training step: times faster than composed", ("leni_training",), "eager/ours"),
    ("LENI, training step: times faster than under `torch.compile`", ("leni_training",), "compiled/ours"),
    ("Reborn, training step: times faster than composed", ("reborn_training",), "composed/ours"),
    ("ConvReLU, inference: time / conv(relu(x))", ("conv_relu_inference",), "ours/relu_conv"),
    ("ConvReLU, training step: time / conv(relu(x))", ("conv_relu_training",), "ours/relu_conv"),
    ("AdaReLU, inference and training step: time / ReLU", ("pointwise_inference", "pointwise_training"),
     "AdaReLU/ReLU"),
    ("FullyParametricReLU, inference and training step: time / ReLU", ("pointwise_inference", "pointwise_training"),
     "FPReLU/ReLU"),
)
"""What the README shows of the throughput benchmark, over all shapes and both layouts in float32."""

HIGHLIGHT_LEGEND = ("*Composed* is the same made of PyTorch's layers. Each row is the geometric mean over all that was "
                    "measured, and the lowest and the highest value.")


def highlights(results: Path) -> str:
    """The newest runs on a CPU in a dozen numbers, as Markdown."""
    rows, sources = [], {}
    for found, source in (_of_throughput(results), _of_memory(results), _of_overhead(results), _of_networks(results)):
        rows += found
        sources |= source
    if not rows:
        return NOTHING
    marks = {path: str(index) for index, path in enumerate(sources, 1)}
    cells = ([what, _mean(values), f"{number(min(values))} – {number(max(values))}", marks[path]]
             for what, values, path in rows)
    picture = next((path.with_suffix(".png") for path in sources if path.name.startswith("throughput")), None)
    lines = [] if picture is None else [
        f"\n![LENI inference: time of every contender in multiples of the limit]({_link(picture)})"]
    lines += [f"\n{HIGHLIGHT_LEGEND}\n",
              *_table(("float32", "mean", "lowest – highest", "measured on"), cells), ""]
    lines += [f"{marks[path]}. {tables.title(run)}: {_file(path)}" for path, run in sources.items()]
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    return number(report.geometric_mean(values))


Highlights = tuple[list[tuple[str, list[float], Path]], dict[Path, dict[str, Any]]]
"""Rows (what, the values, the file they are from), and the runs by their files."""


def _of_throughput(results: Path) -> Highlights:
    runs = _read(results, "throughput", CPUS)
    if not runs:
        return [], {}
    path, run = _newest(runs)
    rows = [(what, [row["ratios"][ratio] for part in parts for row in run.get(part, ())
                    if row["dtype"] == "float32" and ratio in row["ratios"]], path)
            for what, parts, ratio in HIGHLIGHTS]
    return [row for row in rows if row[1]], {path: run}


def _of_memory(results: Path) -> Highlights:
    runs = _read(results, "memory", ("cpu",))
    rows = [(f"LENI block, {what}: kept for backward / what a ReLU keeps",
             [row["bytes"][side] / row["bytes"]["relu"] for row in run["blocks"] if side in row["bytes"]], path)
            for path, run in runs.items() for side, what in (("ours", "ours"), ("composed", "composed"))]
    return [row for row in rows if row[1]], runs


def _of_overhead(results: Path) -> Highlights:
    runs = _read(results, "overhead", CPUS)
    if not runs:
        return [], {}
    path, run = _newest(runs)
    rows = [("A call of LENI on a tiny input, inference and training step: time / composed",
             [row["ratios"]["ours/peer"] for row in run["overhead"]
              if row["subject"] == "LENI2d" and "ours/peer" in row["ratios"]], path)]
    return [row for row in rows if row[1]], {path: run}


def _of_networks(results: Path) -> Highlights:
    """Of Table 1, the first layer alone."""
    runs = _read(results, "throughput", [f"{kind}-table1" for kind in CPUS])
    if not runs:
        return [], {}
    path, run = _newest(runs)
    rows = [row for row in run["table1"] if row["layers"] == 1 and row["dtype"] == "float32"]
    found = [(f"{len(rows)} whole networks, LENI in layer 1, {what}: images/s / the stock network's",
              [1 + row["change_percent"][side] / 100 for row in rows if side in row["change_percent"]], path)
             for side, what in (("ours", "ours"), ("composed", "composed"))]
    return [row for row in found if row[1]], {path: run}


# ---- what was measured where -------------------------------------------------------------------------------


def where(results: Path) -> str:
    """On which processors the kernels have been timed, each time checked against float64, and on which not."""
    lines, measured = [""], set()
    for name in ("throughput", "overhead"):
        runs = _read(results, name, CPUS)
        for run in runs.values():
            older = "" if run["commit"] == _newest(runs)[1]["commit"] else ", an earlier commit than the newest"
            without = "".join(f", without {what}" for what in run.get("left_out", {}))
            lines.append(f"- **{tables.kind(run)}**, {name}: {run['machine']['cpu']}, {run['date'][:10]}, commit "
                         f"{run['commit']}{older}{without}.")
            measured.add(run["kernels_isa"])
    unmeasured = [isa for isa in machine.ISAS if isa not in measured and isa not in ("generic", "None")]
    if unmeasured:
        lines.append(f"- **{', '.join(unmeasured)}**: no times, and no speed is claimed. Where there is no such CPU, "
                     "these kernels are checked in emulation.")
    return "\n".join([*lines, *(f"- {line}" for line in _where_on_gpus(results)), ""])


def _where_on_gpus(results: Path) -> Iterator[str]:
    """A sentence for each GPU that kernels have run on, or that there is none."""
    checked = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("gpu-check-*.json"))]
    runs = [*_read(results, "throughput", GPUS).values(), *(run for run in checked if not run.get("rehearsal"))]
    for run in runs:
        yield f"**{run['machine']['gpu']['name']}**: {run['date'][:10]}, commit {run['commit']}."
    if not runs:
        yield ("**GPUs** (Triton, for NVIDIA and AMD): the kernels have not run on one yet. Their results are checked "
               f"in Triton's interpreter, and {_compiled(results)}. No speed is claimed.")


def _compiled(results: Path) -> str:
    """How many kernels compile for which architectures, in the words of a sentence's second half."""
    path = results / "codegen.json"
    if not path.exists():
        return "nothing is known of their machine code"
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = [(architecture, of) for architectures in found.values() for architecture, of in architectures.items()]
    names = sorted({architecture for architecture, _ in counts})
    return (f"{sum(of['compiled'] for _, of in counts):,} of {sum(of['cases'] for _, of in counts):,} compilations "
            f"ahead of time for {', '.join(names)} succeeded ({_file(path)})")


# ---- what was trained --------------------------------------------------------------------------------------

GAIN_LEGEND = ("*Less ReLU's* is the mean, over the seeds, of a method's accuracy less that of the full network with "
               "ReLU, and beside it the 95 % confidence interval of Student's t for paired samples. *Published* is the "
               "paper's accuracy in its full setting.")


PICTURES = {"": "Test accuracy by epoch",
            "-maps": "Values and maps around the first activation, as in LENI's Figs. 2-3 and Reborn's Fig. 4",
            "-thresholds": "Learned thresholds, as in ConvReLU's Fig. 6"}
"""What the files are that lie beside the results of a training run."""


def accuracy(results: Path) -> str:
    """Every table of a paper that was trained, as Markdown."""
    runs = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("accuracy-*.json"))}
    lines = [] if runs else ["Nothing has been trained yet."]
    for path, run in runs.items():
        pictures = {path.with_name(f"{path.stem}{kind}.png"): words for kind, words in PICTURES.items()}
        lines += [f"\n**{run['settings']['table']}, on {learned.title(run)}**\n", _measured_on(path, run),
                  f"{GAIN_LEGEND}\n", *_table(learned.HEAD, learned.cells(run)), "",
                  *(f"![{words}]({_link(picture)})\n" for picture, words in pictures.items() if picture.exists())]
    return "\n".join(lines) + "\n"


# ---- the papers' parameters --------------------------------------------------------------------------------


def counts(results: Path) -> str:
    """The networks' parameters beside the published ones, and which methods' are never these."""
    path = results / "parameters.json"
    if not path.exists():
        return "Nothing has been counted yet: `python benchmarks/parameters.py --save` counts.\n"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    stock: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["method"] == "ReLU":
            stock.setdefault(row["network"], row)
    cells = ([f"{name}, {row['reading']}", row["table"], row["published"], f"{row['count']:,}", row["difference"]]
             for name, row in stock.items())
    agreed = [row["method"] for row in rows if row["difference"] in parameters.AGREED]
    never = [f'"{method}"' for method in dict.fromkeys(row["method"] for row in rows) if method not in agreed]
    lines = ["", *_table(("with ReLU", "printed in", "published", "here", "difference"), cells), "",
             f"With all activations and all ways to read the LENI paper, {len(agreed)} of {len(rows)} counts are the "
             f"published ones ({_file(path)}); never are those of {', '.join(never) or 'none'}."]
    return "\n".join(lines) + "\n"


# ---- all tables --------------------------------------------------------------------------------------------

RATIOS = ("Of blocks, a time is the median over rounds in which all sides take their turn, and a ratio is that of two "
          "such medians; *geometric mean* is of the column above it.")


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


def _runs(runs: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Runs on one type of device: all against the numbers to reach, and the newest in full."""
    newest, run_in_full = _newest(runs)
    yield "\nMeasured on:\n"
    for path, run in runs.items():
        older = "" if run["commit"] == run_in_full["commit"] else "; of an earlier commit than the newest"
        without = "".join(f"; without {what}: {why}" for what, why in run.get("left_out", {}).items())
        yield f"- {tables.title(run)}: {_file(path)}{older}{without}"
    yield "\n**Against the numbers to reach**\n"
    yield from _table(*tables.of_bars([*runs.values()]))
    if len(runs) > 1:
        yield f"\nWhat follows is the newest of these runs, on {tables.kind(run_in_full)}."
    yield f"\n{RATIOS}"
    yield from _run(newest, run_in_full)


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
            yield f"\n**{module.TITLE}, LENI in layer 1**: {tables.NETWORKS}\n"
            yield f"{tables.NETWORK_LEGEND}\n"
            yield from _table(tables.NETWORK_HEAD, tables.network_cells(run[name]))


def _table1(path: Path, run: dict[str, Any]) -> Iterator[str]:
    yield f"\n**{table1.TITLE}**: {tables.NETWORKS}\n"
    yield _measured_on(path, run)
    yield f"{tables.NETWORK_LEGEND}\n"
    yield from _table(tables.NETWORK_HEAD, tables.network_cells(run["table1"]))


def _memory(path: Path, run: dict[str, Any]) -> Iterator[str]:
    yield f"\n**{memory.heading(run)}, float32, MiB an image** (parameters not included)\n"
    yield _measured_on(path, run)
    yield f"![{memory.heading(run)}]({_link(path).with_suffix('.png')})\n"
    yield from _table(memory.HEAD, memory.cells(run))


def _overhead(runs: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """Runs on one type of device: each in full, and all against the numbers to reach."""
    for path, run in runs.items():
        yield f"\n**{overhead.heading(run)}**\n"
        yield _measured_on(path, run)
        yield f"{overhead.LEGEND}\n"
        yield from _table(overhead.head(run), overhead.cells(run))
    if runs:
        yield "\n**Call overhead against the numbers to reach**\n"
        yield from _table(*tables.of_bars([*runs.values()], bars.of_overhead()))


def _measured_on(path: Path, run: dict[str, Any]) -> str:
    return f"Measured on: {tables.title(run)}. Raw numbers: {_file(path)}.\n"


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
             for mean in tables.means(table, (row for row in rows if row["layout"] == layout), columns))
    yield [table.average, *map(number, means)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(command.run(main))
