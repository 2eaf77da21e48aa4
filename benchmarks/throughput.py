"""How fast the mechanisms are, block by block and in whole networks: the main benchmark.

    python benchmarks/throughput.py                     everything, some five minutes on a CPU
    python benchmarks/throughput.py --quick             a few cases, within a minute
    python benchmarks/throughput.py --only leni         one mechanism
    python benchmarks/throughput.py --networks --save   Table 1 of the LENI paper in full, to be committed

All sides run in one process, in turns, and medians count. Every output, and every gradient of a block, is compared
with float64 before it is timed: what differs gets no time, and the program exits with 1. Leaves tables on the
terminal, and a JSON file and PNG plots in the output folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cases
import torch
from harness import command, history, machine, report, tables, timing
from harness.blocks import Table
from harness.report import number
from networks import comparison, first_activation, table1
from networks import inference as networks_inference
from networks import training as networks_training

BLOCKS = cases.parts()
"""What measures blocks, by the name of its list in the results."""

NETWORKS = {"networks": networks_inference, "networks_training": networks_training, "table1": table1}
"""What measures whole networks; ``table1``, Table 1 of the LENI paper in full, runs only if named."""

LISTS = [*BLOCKS, *NETWORKS]
CHOICES = (*cases.mechanisms(), *BLOCKS, "networks", "table1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    device = torch.device(options.device)
    path = options.output / f"throughput-{machine.kind(device)}{_suffix(options)}.json"
    _prepare(options)
    wanted, left_out = _cases(options)
    try:
        images = _images(options) if any(name in NETWORKS for name, _, _ in wanted) else None
    except ValueError as error:
        print(f"throughput.py: --images: {error}", file=sys.stderr)
        return 2
    results = {**machine.facts(device), "arguments": _plain(options), "left_out": left_out,
               **{name: [] for name in LISTS}}
    began = time.perf_counter()
    # A run that is stopped leaves a partial file, and the last whole one as it was.
    partial = path.with_suffix(".partial.json")
    try:
        with report.progress(len(wanted)) as step:
            for name, module, case in wanted:
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
    if command.saves(options) and results["complete"] and not _suffix(options):
        history.append(results, summary(results))
    return _conclude(results, path)


# ---- what to run -------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    parser.add_argument("--quick", action="store_true", help="a few cases, within a minute")
    parser.add_argument("--only", metavar="PART", choices=CHOICES, help=f"one of {', '.join(CHOICES)}")
    parser.add_argument("--networks", dest="only", action="store_const", const="table1",
                        help="Table 1 of the LENI paper in full, the same as --only table1")
    parser.add_argument("--every-peer", action="store_true",
                        help="compile the composed block for every training step: some minutes more")
    command.add_device(parser)
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads; default: as PyTorch chooses")
    parser.add_argument("--images", metavar="DIR", help="pictures for the networks; default: noise")
    command.add_output(parser)
    options = command.parse(parser, arguments)
    if set(_parts(options)) & NETWORKS.keys():
        command.need(parser, ("torchvision", *(("timm",) if options.only == "table1" else ())))
    if command.saves(options):
        command.need(parser, ("matplotlib",))
    if options.images is not None and not Path(options.images).is_dir():
        command.refuse(parser, f"--images: {options.images} is no folder")
    return options


def _parts(options: argparse.Namespace) -> dict[str, Any]:
    """The modules to run, by the name of their list."""
    everything = {**BLOCKS, **NETWORKS}
    if options.only is None:
        return {name: module for name, module in everything.items() if name != "table1"}
    named = {name for name in everything if name == options.only or name.rpartition("_")[0] == options.only}
    return {name: module for name, module in everything.items() if name in named}


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
    noise = machine.why_not_quiet()
    if noise is not None:
        report.say(noise)
    if options.every_peer:
        BLOCKS["leni_training"].compile_every_case()
    torch.manual_seed(0)
    # Full float32 on a GPU as well, for the matrix products as for the convolutions: parity is to 1e-5.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def _images(options: argparse.Namespace) -> torch.Tensor:
    """What the networks see: pictures, or noise.

    Raises:
        ValueError: if the pictures cannot be read.
    """
    count = max(*comparison.BATCHES[options.device].values(), *table1.BATCHES[options.device].values())
    return first_activation.noise(count) if options.images is None else first_activation.pictures(options.images, count)


def _cases(options: argparse.Namespace) -> tuple[list[tuple[str, Any, Any]], dict[str, str]]:
    """Everything to measure (the list of the results it belongs to, what measures it, the case), and what is not."""
    obstacles = {"bfloat16": machine.why_no_bfloat16(torch.device(options.device))}
    left_out = {what: why for what, why in obstacles.items() if why is not None}
    for what, why in left_out.items():
        report.say(f"No {what}: {why}.")
    wanted = [(name, module, case) for name, module in _parts(options).items()
              for case in module.cases(options.quick) if case.dtype not in left_out]
    return wanted, left_out


# ---- what it found -----------------------------------------------------------------------------------------


def _show(results: dict[str, Any]) -> None:
    report.say(tables.title(results))
    for name, module in BLOCKS.items():
        for dtype, layout in dict.fromkeys((row["dtype"], row["layout"]) for row in results[name]):
            rows = [row for row in results[name] if (row["dtype"], row["layout"]) == (dtype, layout)]
            heading = f"{module.TITLE}, {dtype}, {layout.replace('_', '-')}: milliseconds and ratios"
            report.table(heading, *_block_table(module.TABLE, rows))
    if any(results[name] for name in BLOCKS) and results["complete"] and not results["arguments"]["quick"]:
        report.table("Against the numbers to reach", *tables.of_bars([results]))
    for name, module in NETWORKS.items():
        if results[name]:
            report.table(f"{module.TITLE}: {tables.NETWORKS}", tables.NETWORK_HEAD, tables.network_cells(results[name]))


def _block_table(table: Table, rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table."""
    times, ratios = _measured(table.times, rows, "seconds"), _measured(table.ratios, rows, "ratios")
    cells = [[table.label(row), *(number(1e3 * row["seconds"][name]["median"] if name in row["seconds"] else None)
                                  for name in times),
              *(number(row["ratios"].get(ratio)) for ratio in ratios), row["backend"] or "—"] for row in rows]
    cells.append([table.average, *[""] * len(times), *map(number, tables.means(table, rows, ratios)), ""])
    return [table.head, *times, *ratios, "backend"], cells


def summary(results: dict[str, Any]) -> dict[str, float | None]:
    """The geometric means of a run, by part, dtype and ratio: what its history keeps."""
    return {f"{module.TITLE}, {dtype}, {ratio}": tables.means(module.TABLE, of_dtype, [ratio])[0]
            for name, module in BLOCKS.items() for dtype in dict.fromkeys(row["dtype"] for row in results.get(name, ()))
            for of_dtype in [[row for row in results[name] if row["dtype"] == dtype]]
            for ratio, shown in module.TABLE.ratios.items() if shown}


def _measured(names: Iterable[str], rows: list[dict[str, Any]], kind: str) -> list[str]:
    """Those of the columns that some row has."""
    return [name for name in names if any(name in row[kind] for row in rows)]


def picture(path: Path, module: Any) -> Path:
    """Where a module's picture belongs, beside the results in ``path``."""
    return path.with_name(f"{path.stem}{module.PICTURE.suffix}.png")


def _draw(path: Path, results: dict[str, Any]) -> None:
    try:
        from harness import plot

        for name, module in BLOCKS.items():
            if results[name] and module.PICTURE:
                plot.draw(picture(path, module), results[name], f"{module.TITLE} in multiples of the limit L",
                          f"{module.PICTURE.limit}.  {tables.title(results)}", module.PICTURE.compiled)
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
    sys.exit(command.run(main))
