"""The main job: how fast the mechanisms are, block by block and in whole networks.

    python benchmarks/throughput.py [--quick] [--only PART | --networks] [--every-peer] [--device cpu|cuda]
                                    [--threads N] [--images DIR] [--output DIR]

Takes the GPU if there is one, else the CPU. Leaves tables on the terminal, and a JSON file and a PNG plot in
the output folder. Exits with 1 if an output differed from the float64 reference; such a case shows no time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bars
import conv_relu_inference
import conv_relu_training
import leni_inference
import leni_training
import pointwise
import reborn_training
import torch
from harness import machine, report, timing
from harness.blocks import Table
from harness.report import number
from networks import comparison, first_activation, table1
from networks import inference as networks_inference
from networks import training as networks_training

from leni_kernels.common import extension

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "leni": {"leni_inference": leni_inference},
    "training": {"leni_training": leni_training},
    "conv_relu": {"conv_relu_inference": conv_relu_inference, "conv_relu_training": conv_relu_training},
    "reborn": {"reborn_training": reborn_training},
    "pointwise": {"pointwise": pointwise},
    "networks": {"networks": networks_inference, "networks_training": networks_training},
    "table1": {"table1": table1},
}
"""What ``--only`` can name, and the modules that measure it by the name of their list in the results. ``table1``,
Table 1 of the LENI paper in full, runs only if named.

Each module has ``TITLE``, ``SECONDS`` to sample a case ("cpu", "cuda", "quick"), ``cases(quick)`` and ``measure``.
One that measures blocks also says how its rows are shown: ``TABLE``, and ``PICTURE`` or None.
"""

NETWORKS = PARTS["networks"] | PARTS["table1"]
BLOCKS = {name: module for part in PARTS.values() for name, module in part.items() if name not in NETWORKS}
LISTS = [*BLOCKS, *NETWORKS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    device = torch.device(options.device)
    path = options.output / f"throughput-{machine.kind(device)}{_suffix(options)}.json"
    _prepare(options)
    cases, left_out = _cases(options)
    images = _images(options) if any(name in NETWORKS for name, _, _ in cases) else None
    results = {**machine.facts(device), "kernels_isa": extension.cpu_isa(), "arguments": _plain(options),
               "left_out": left_out, **{name: [] for name in LISTS}}
    began = time.perf_counter()
    # A run that is stopped leaves a partial file, and the last whole one as it was.
    partial = path.with_suffix(".partial.json")
    try:
        with report.progress(len(cases)) as step:
            for name, module, case in cases:
                step(f"{module.TITLE}: {case}")
                seconds = module.SECONDS["quick" if options.quick else device.type]
                inputs = (images,) if name in NETWORKS else ()
                results[name].append(module.measure(case, device, seconds, *inputs))
                report.write_json(partial, results)
        results["complete"] = True
    except KeyboardInterrupt:
        results["complete"] = False
        path = partial
        report.say("Interrupted; what follows is what was measured so far.")
    results["seconds"] = round(time.perf_counter() - began, 1)
    partial.unlink(missing_ok=True)
    report.write_json(path, results)
    _show(results)
    _draw(path, results)
    return _conclude(results, path)


# ---- what to run -------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times single blocks and whole networks.")
    parser.add_argument("--quick", action="store_true", help="a few cases, within a minute")
    parser.add_argument("--only", choices=tuple(PARTS), help="one of the parts")
    parser.add_argument("--networks", dest="only", action="store_const", const="table1",
                        help="Table 1 of the LENI paper in full, the same as --only table1")
    parser.add_argument("--every-peer", action="store_true",
                        help="compile the composed block for every training step: some minutes more")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one",
                        default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; default: as PyTorch chooses")
    parser.add_argument("--images", metavar="DIR", help="pictures for the networks; default: noise")
    parser.add_argument("--output", metavar="DIR", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def _suffix(options: argparse.Namespace) -> str:
    """What keeps a partial run from passing for a full one."""
    return "".join(f"-{part}" for part in ("quick" if options.quick else None, options.only) if part)


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "output"}


def _prepare(options: argparse.Namespace) -> None:
    if not timing.keep_freed_memory():
        report.say("malloc cannot be told to keep memory here: page faults are part of all times.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    load, cores = machine.load(), machine.cores()
    if load is not None and load > 0.5 * cores:
        report.say(f"Something else is running here (load {load} on {cores} cores): times will be off.")
    if options.every_peer:
        leni_training.compile_every_case()
    torch.manual_seed(0)
    # Full float32 on a GPU as well, for the matrix products as for the convolutions: parity is to 1e-5.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def _images(options: argparse.Namespace) -> torch.Tensor:
    count = max(*comparison.BATCHES[options.device].values(), *table1.BATCHES[options.device].values())
    if options.images is None:
        return first_activation.noise(count)
    try:
        return first_activation.pictures(options.images, count)
    except ValueError as error:
        sys.exit(f"throughput.py: {error}")


def _cases(options: argparse.Namespace) -> tuple[list[tuple[str, Any, Any]], dict[str, str]]:
    """Everything to measure (the list of the results it belongs to, what measures it, the case), and what is not."""
    parts = {options.only: PARTS[options.only]} if options.only else dict(PARTS)
    if not options.only:
        del parts["table1"]
    obstacles = {}
    if parts.keys() & {"networks", "table1"}:
        obstacles["whole networks"] = first_activation.why_missing()
    obstacles["bfloat16"] = machine.why_no_bfloat16(torch.device(options.device))
    left_out = {what: why for what, why in obstacles.items() if why is not None}
    for what, why in left_out.items():
        report.say(f"No {what}: {why}.")
    if "whole networks" in left_out:
        parts = {name: part for name, part in parts.items() if name not in ("networks", "table1")}
    cases = [(name, module, case) for part in parts.values() for name, module in part.items()
             for case in module.cases(options.quick) if case.dtype not in left_out]
    return cases, left_out


# ---- what it found -----------------------------------------------------------------------------------------


def _show(results: dict[str, Any]) -> None:
    report.say(title(results))
    for name, module in BLOCKS.items():
        for dtype, layout in dict.fromkeys((row["dtype"], row["layout"]) for row in results[name]):
            rows = [row for row in results[name] if (row["dtype"], row["layout"]) == (dtype, layout)]
            heading = f"{module.TITLE}, {dtype}, {layout.replace('_', '-')}: milliseconds and ratios"
            report.table(heading, *_block_table(module.TABLE, rows))
    if any(results[name] for name in BLOCKS) and results["complete"] and not results["arguments"]["quick"]:
        report.table("Against the numbers to reach", bar_head([results]), bar_cells([results]))
    for name, module in NETWORKS.items():
        if results[name]:
            report.table(f"{module.TITLE}: images/s, and the change against stock", NETWORK_HEAD,
                         network_cells(results[name]))


def title(results: dict[str, Any]) -> str:
    """One line on where and with what the times were taken."""
    facts, versions = results["machine"], results["versions"]
    threads = results["threads"]
    cpu = f"{facts['cpu']} ({results['kernels_isa'] or 'no kernels'}), {threads} thread{'s' * (threads != 1)}"
    where = facts["gpu"]["name"] if "gpu" in facts else cpu
    commit = results["commit"] or "unknown"
    return f"{where}, torch {versions['torch']}, commit {commit}, {results['date'][:10]}"


def _block_table(table: Table, rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table."""
    times, ratios = _measured(table.times, rows, "seconds"), _measured(table.ratios, rows, "ratios")
    cells = [[table.label(row), *(number(1e3 * row["seconds"][name]["median"] if name in row["seconds"] else None)
                                  for name in times),
              *(number(row["ratios"].get(ratio)) for ratio in ratios), row["backend"] or "—"] for row in rows]
    cells.append([table.average, *[""] * len(times), *map(number, means(table, rows, ratios)), ""])
    return [table.head, *times, *ratios, "backend"], cells


def _measured(names: Iterable[str], rows: list[dict[str, Any]], kind: str) -> list[str]:
    """Those of the columns that some row has."""
    return [name for name in names if any(name in row[kind] for row in rows)]


def means(table: Table, rows: Iterable[dict[str, Any]], ratios: Iterable[str]) -> list[float | None]:
    """The geometric mean of each ratio over the rows that have it and that ``table`` averages."""
    rows = [row for row in rows if table.averaged(row)]
    return [report.geometric_mean(row["ratios"][ratio] for row in rows if ratio in row["ratios"]) for ratio in ratios]


def bar_head(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The head of the table of numbers to reach, with a column for each run."""
    return ["", "dtype", "first bar", "moonshot", *(kind(run) for run in runs)]


def kind(run: dict[str, Any]) -> str:
    """The kind of machine a run was on, in a word."""
    gpu = run["machine"].get("gpu")
    return gpu["name"] if gpu else str(run["kernels_isa"])


def bar_cells(runs: Sequence[dict[str, Any]], wanted: Iterable[bars.Bar] | None = None) -> Iterator[list[str]]:
    """The numbers to reach and those measured in runs on one type of device, as the cells of a table.

    The numbers are those ``wanted``, by default the device's.
    """
    for bar in bars.of_device(runs[0]["device"]) if wanted is None else wanted:
        sign = "≤" if bar.at_most else "≥"
        goals = [f"{sign} {goal}" if goal else "—" for goal in (bar.first, bar.moonshot)]
        yield [bar.what, bar.dtype, *goals, *(_reached(bar, bar.measured(run)) for run in runs)]


def _reached(bar: bars.Bar, value: float | None) -> str:
    if value is None:
        return "—"
    if bar.moonshot and bar.reached(value, bar.moonshot):
        return f"{number(value)}, moonshot"
    return f"{number(value)}, {'first bar' if bar.reached(value, bar.first) else 'no'}"


NETWORK_HEAD = ("network", "dtype", "N", "stock", "composed", "ours", "composed, change", "ours, change",
                "backend")


def network_cells(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Images/s and their change, as the cells of a table."""
    for row in rows:
        speeds = (number(row["images_per_second"].get(name), 1) for name in ("stock", "composed", "ours"))
        changes = (row["change_percent"].get(name) for name in ("composed", "ours"))
        yield [row["network"], row["dtype"], str(row["batch"]), *speeds,
               *("—" if change is None else f"{change:+.1f} %" for change in changes), row["backend"] or "—"]


def picture(path: Path, module: Any) -> Path:
    """Where a module's picture belongs, beside the results in ``path``."""
    return path.with_name(f"{path.stem}{module.PICTURE.suffix}.png")


def _draw(path: Path, results: dict[str, Any]) -> None:
    try:
        from harness import plot

        for name, module in BLOCKS.items():
            if results[name] and module.PICTURE:
                plot.draw(picture(path, module), results[name], f"{module.TITLE} in multiples of the limit L",
                          f"{module.PICTURE.limit}.  {title(results)}", module.PICTURE.compiled)
    except ImportError as error:
        report.say(f"No plot: {error}.")


def _conclude(results: dict[str, Any], path: Path) -> int:
    """Say what is missing and what was refused, and return the exit status."""
    rows = [(name, row) for name in LISTS for row in results[name]]
    reasons = (f"{name}: {reason}" for _, row in rows for name, reason in row["missing"].items())
    for reason in dict.fromkeys(reasons):
        report.say(f"No time for {reason}")
    refused = [f"{_name(work, row)} {name}: error {verdict['error']}, allowed {verdict['allowed']}"
               for work, row in rows for name, verdict in row["parity"].items() if not verdict["passed"]]
    for line in refused:
        report.say(f"REFUSED, differs from the reference: {line}")
    report.say(f"Results in {path}, {results['seconds']:.0f} s.")
    return 0 if results["complete"] and not refused else 1


def _name(work: str, row: dict[str, Any]) -> str:
    where = row["network"] if work in NETWORKS else f"{BLOCKS[work].TABLE.label(row)} {row['layout']}"
    return f"{work}: {where} {row['dtype']}"


if __name__ == "__main__":
    sys.exit(main())
