"""The main job: how fast LENI is, block by block and in whole networks.

    python benchmarks/throughput.py [--quick] [--only leni|training|networks] [--device cpu|cuda]
                                    [--threads N] [--images DIR] [--output DIR]

Takes the GPU if there is one, else the CPU. Leaves tables on the terminal, and a JSON file and a PNG plot in
the output folder. Exits with 1 if an output differed from the float64 reference; such a case shows no time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bars
import leni_inference
import leni_training
import torch
from harness import machine, report, timing
from harness.report import number
from networks import comparison, first_activation
from networks import inference as networks_inference
from networks import training as networks_training

from leni_kernels import extension

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "leni": {"leni_inference": leni_inference},
    "training": {"leni_training": leni_training},
    "networks": {"networks": networks_inference, "networks_training": networks_training},
}
"""What ``--only`` can name, and the modules that measure it by the name of their list in the results."""

LISTS = [name for part in PARTS.values() for name in part]
SECONDS = {
    "cpu": {"leni_inference": 1.2, "leni_training": 0.6, "networks": 3.0, "networks_training": 3.0},
    "cuda": {"leni_inference": 0.4, "leni_training": 0.4, "networks": 2.0, "networks_training": 2.0},
}
QUICK_SECONDS = {"leni_inference": 0.4, "leni_training": 0.4, "networks": 1.5, "networks_training": 1.5}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    device = torch.device(options.device)
    path = options.output / f"throughput-{device.type}{_suffix(options)}.json"
    _prepare(options)
    cases = _cases(options)
    images = _images(options) if any(module in PARTS["networks"].values() for _, module, _ in cases) else None
    results = {**machine.facts(device), "kernels_isa": extension.cpu_isa(), "arguments": _plain(options),
               **{name: [] for name in LISTS}}
    began = time.perf_counter()
    # A run that is stopped leaves a partial file, and the last whole one as it was.
    partial = path.with_suffix(".partial.json")
    try:
        with report.progress(len(cases)) as step:
            for name, module, case in cases:
                step(f"{case}{' training' * ('training' in name)}")
                seconds = (QUICK_SECONDS if options.quick else SECONDS[device.type])[name]
                inputs = (images,) if name in PARTS["networks"] else ()
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
    parser = argparse.ArgumentParser(description="Times LENI: single blocks and networks.")
    parser.add_argument("--quick", action="store_true", help="a few cases, within a minute")
    parser.add_argument("--only", choices=tuple(PARTS), help="one of the parts")
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
    torch.manual_seed(0)
    # Full float32 on a GPU as well, for the matrix products as for the convolutions: parity is to 1e-5.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def _images(options: argparse.Namespace) -> torch.Tensor:
    count = max(comparison.BATCHES[options.device].values())
    if options.images is None:
        return first_activation.noise(count)
    try:
        return first_activation.pictures(options.images, count)
    except ValueError as error:
        sys.exit(f"throughput.py: {error}")


def _cases(options: argparse.Namespace) -> list[tuple[str, Any, Any]]:
    """Everything to measure: the list of the results it belongs to, what measures it, and the case."""
    parts = {options.only: PARTS[options.only]} if options.only else dict(PARTS)
    obstacle = first_activation.why_missing() if "networks" in parts else None
    if obstacle is not None:
        report.say(f"No whole networks: {obstacle}.")
        del parts["networks"]
    return [(name, module, case) for part in parts.values() for name, module in part.items()
            for case in module.cases(options.quick)]


# ---- what it found -----------------------------------------------------------------------------------------


def _show(results: dict[str, Any]) -> None:
    report.say(title(results))
    for name, work in BLOCKS.items():
        for dtype, layout in dict.fromkeys((row["dtype"], row["layout"]) for row in results[name]):
            rows = [row for row in results[name] if (row["dtype"], row["layout"]) == (dtype, layout)]
            head, ratios = _block_head(rows)
            heading = f"{work}, {dtype}, {layout.replace('_', '-')}: milliseconds and ratios"
            report.table(heading, (*head, *ratios, "backend"),
                         [*(_block_cells(row, head, ratios) for row in rows), _mean_cells(rows, head, ratios)])
    if any(results[name] for name in BLOCKS) and results["complete"] and not results["arguments"]["quick"]:
        report.table("Against the numbers to reach (C ≤ 256, both layouts)", BAR_HEAD, bar_cells(results))
    for name, work in NETWORKS.items():
        if results[name]:
            report.table(f"{work}: images/s, and the change against stock", NETWORK_HEAD,
                         network_cells(results[name]))


LOW, HIGH = networks_inference.PUBLISHED
BLOCKS = {"leni_inference": "LENI inference", "leni_training": "LENI training step"}
NETWORKS = {
    "networks": f"Whole networks, inference (published: {LOW} % to {HIGH} %)",
    "networks_training": "Whole networks, training step",
}


def title(results: dict[str, Any]) -> str:
    """One line on where and with what the times were taken."""
    facts, versions = results["machine"], results["versions"]
    threads = results["threads"]
    cpu = f"{facts['cpu']} ({results['kernels_isa'] or 'no kernels'}), {threads} thread{'s' * (threads != 1)}"
    where = facts["gpu"]["name"] if "gpu" in facts else cpu
    commit = results["commit"] or "unknown"
    return f"{where}, torch {versions['torch']}, commit {commit}, {results['date'][:10]}"


def _block_head(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of times and of ratios."""
    relu = any("relu" in row["seconds"] for row in rows)
    return (("C×H²", "copy", "product", *(("relu",) if relu else ()), "eager", "compiled", "ours"),
            ("ours/L", "eager/ours", "compiled/ours", "ours/relu" if relu else "best/ours"))


def _block_cells(row: dict[str, Any], head: tuple[str, ...], ratios: tuple[str, ...]) -> list[str]:
    times = (row["seconds"].get(name) for name in head[1:])
    return [f"{row['channels']}×{row['size']}²",
            *(number(None if time is None else 1e3 * time["median"]) for time in times),
            *(number(row["ratios"].get(ratio)) for ratio in ratios), row["backend"] or "—"]


def _mean_cells(rows: list[dict[str, Any]], head: tuple[str, ...], ratios: tuple[str, ...]) -> list[str]:
    means = (report.geometric_mean(row["ratios"][ratio] for row in rows
                                   if row["channels"] <= 256 and ratio in row["ratios"]) for ratio in ratios)
    return ["mean, C ≤ 256", *[""] * (len(head) - 1), *map(number, means), ""]


BAR_HEAD = ("", "dtype", "measured", "first bar", "moonshot", "reached")


def bar_cells(results: dict[str, Any]) -> Iterator[list[str]]:
    """The numbers to reach and those measured, as the cells of a table."""
    for bar in bars.of_device(results["device"]):
        value = bar.measured(results)
        sign = "≤" if bar.at_most else "≥"
        goals = [f"{sign} {goal}" if goal else "—" for goal in (bar.first, bar.moonshot)]
        yield [bar.what, bar.dtype, number(value), *goals, _reached(bar, value)]


def _reached(bar: bars.Bar, value: float | None) -> str:
    if value is None:
        return "—"
    if bar.moonshot and bar.reached(value, bar.moonshot):
        return "moonshot"
    return "first bar" if bar.reached(value, bar.first) else "no"


NETWORK_HEAD = ("network", "dtype", "N", "stock", "composed", "ours", "composed, change", "ours, change",
                "backend")


def network_cells(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Images/s and their change, as the cells of a table."""
    for row in rows:
        speeds = (number(row["images_per_second"].get(name), 1) for name in ("stock", "composed", "ours"))
        changes = (row["change_percent"].get(name) for name in ("composed", "ours"))
        yield [row["network"], row["dtype"], str(row["batch"]), *speeds,
               *("—" if change is None else f"{change:+.1f} %" for change in changes), row["backend"] or "—"]


def pictures(path: Path) -> dict[str, Path]:
    """Where the pictures of the blocks belong, beside the results in ``path``."""
    steps = path.with_name(f"{path.stem}-steps.png")
    return {"leni_inference": path.with_suffix(".png"), "leni_training": steps}


LIMITS = {
    "leni_inference": "L = the slower of a copy of x and the bare product [pixels × 2C]·[2C × C]",
    "leni_training": "L = the slower of 4 copies of x and 3 bare products [pixels × 2C]·[2C × C]",
}
PEERS = {"leni_inference": "folded by hand, torch.compile", "leni_training": "composed, torch.compile"}


def _draw(path: Path, results: dict[str, Any]) -> None:
    try:
        from harness import plot

        for name, picture in pictures(path).items():
            if results[name]:
                plot.draw(picture, results[name], f"{BLOCKS[name]} in multiples of the limit L",
                          f"{LIMITS[name]}.  {title(results)}", PEERS[name])
    except ImportError as error:
        report.say(f"No plot: {error}.")


def _conclude(results: dict[str, Any], path: Path) -> int:
    """Say what is missing and what was refused, and return the exit status."""
    rows = [(name, row) for name in LISTS for row in results[name]]
    reasons = (f"{name}: {reason}" for _, row in rows for name, reason in row["missing"].items())
    for reason in dict.fromkeys(reasons):
        report.say(f"No time for {reason}")
    refused = [f"{work} {_name(row)} {name}: error {verdict['error']}, allowed {verdict['allowed']}"
               for work, row in rows for name, verdict in row["parity"].items() if not verdict["passed"]]
    for line in refused:
        report.say(f"REFUSED, differs from the reference: {line}")
    report.say(f"Results in {path}, {results['seconds']:.0f} s.")
    return 0 if results["complete"] and not refused else 1


def _name(row: dict[str, Any]) -> str:
    where = row.get("network") or f"LENI {row['channels']}×{row['size']}² {row['layout']}"
    return f"{where} {row['dtype']}"


if __name__ == "__main__":
    sys.exit(main())
