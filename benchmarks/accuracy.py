"""Trains the papers' networks with any activation, and says how well they do.

    python benchmarks/accuracy.py                                        digits, about a minute on two cores
    python benchmarks/accuracy.py --dataset fashion-mnist --data DIR --networks convnet8 --recipe reborn
    python benchmarks/accuracy.py --table reborn-2 --dataset fashion-mnist --data DIR
    torchrun --standalone --nproc-per-node 4 benchmarks/accuracy.py --sync-batch-norm

With --table it trains what a table of a paper lists, by that paper's recipe, and prints the published accuracies
beside its own; --networks and --methods take some of its rows, and --activations adds others. Without it, it trains
each network with each activation. No data set is downloaded: --data names the folder of its files, or one in which a
folder of the set's name is.

Everything is trained from each seed. A run that is stopped goes on where its last whole epoch ended when the same
command is given again, with the same result; one that is finished is not trained again (--fresh does). Leaves a table,
the learning curves as a PNG, and a JSON file with the machine and the versions in the output folder; --figures adds
the pictures of the papers: the values and maps around the first activation (LENI paper, Figs. 2-3, Reborn paper,
Fig. 4) and the learned thresholds (ConvReLU paper, Fig. 6).

Under torchrun all processes train each run together, on GPUs one each: every batch is the one that a single process
would see, cut into parts. With --sync-batch-norm the norms see the whole batch too; the result is that of one process
but for rounding, and goes on with any number of them. Without it each part is normalised by itself: such runs are kept
apart by the number of parts, and the last batch of an epoch is left out if a part of it has a single image.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import catalogue as datasets
from datasets.source import BadData, Source
from harness import command, learned, learning, machine, processes, report
from harness.learning import RECIPES, BadCheckpoint, Learner, Recipe, Run
from networks import published
from networks.activations import ACTIVATIONS, chosen
from networks.catalogue import NETWORKS, TEXTS
from networks.tables import TABLES, Row

COMPARED = ("relu", "prelu", "leni", "reborn", "conv_relu")
USUAL_WIDTH = {"digits": 0.25}
"""Factors on the channels, unless the command says otherwise, of what trains in a minute."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and report; returns the exit status."""
    options = _options(arguments)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    with processes.joined(options.device) as device:
        try:
            for dataset in options.dataset:
                job = _job(options, dataset)
                learners = _train(job, device, options)
                if processes.first():
                    _report(job, device, options, learners)
        except KeyboardInterrupt:
            if processes.first():
                report.say("Interrupted: the same command goes on from the last whole epoch.")
            return 1
        except (BadCheckpoint, BadData) as error:
            print(f"accuracy.py: {error}", file=sys.stderr)
            return 2
    return 0


class Job(NamedTuple):
    """What is trained on one data set: a run for each row and seed."""

    data: Source
    rows: Sequence[Row]
    runs: Sequence[Run]
    recipe: Recipe
    width: float


def _train(job: Job, device: torch.device, options: argparse.Namespace) -> list[Learner]:
    checkpoints = _checkpoints(options)
    if options.fresh and processes.first():
        for run in job.runs:
            (checkpoints / run.file()).unlink(missing_ok=True)
    epochs = len(job.runs) * job.recipe.epochs
    shown = report.progress(epochs) if processes.first() else contextlib.nullcontext(lambda _: None)
    data = job.data.to(device)
    with shown as begin:
        return [learning.train(run, data, device, checkpoints, begin) for run in job.runs]


def _report(job: Job, device: torch.device, options: argparse.Namespace, learners: list[Learner]) -> None:
    rows = [row for _ in options.seeds for row in job.rows]
    results = {**machine.facts(device), "settings": _settings(job, options),
               "runs": [{"method": row.method, **learning.result(learner)}
                        for row, learner in zip(rows, learners, strict=True)]}
    results["summary"] = learned.summary(results)
    name = options.name or "-".join(filter(None, [options.table, job.data.name]))
    path = options.output / f"accuracy-{device.type}-{name}.json"
    report.write_json(path, results)
    report.table(learned.title(results), learned.HEAD, learned.cells(results))
    _draw(path, results, learners if options.figures else [])
    report.say(f"Results in {path}.")


# ---- the command -------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    parser.add_argument("--table", choices=tuple(TABLES), metavar="NAME",
                        help=f"a table of a paper: {', '.join(TABLES)}")
    parser.add_argument("--dataset", nargs="+", choices=tuple(datasets.DATASETS), metavar="NAME",
                        help="default: all of the table's, without one digits; of "
                        f"{', '.join(datasets.DATASETS)}")
    parser.add_argument("--data", metavar="DIR", type=Path, help="where the files of the data sets are")
    parser.add_argument("--networks", nargs="+", metavar="NAME", choices=NETWORKS,
                        help=f"default: all of the table's, without one convnet8; of {', '.join(NETWORKS)}")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="rows of the table, as printed; default: all")
    parser.add_argument("--activations", nargs="+", metavar="NAME", choices=tuple(ACTIVATIONS),
                        help=f"default: the table's rows, without one {' '.join(COMPARED)}; of "
                        f"{', '.join(ACTIVATIONS)}")
    parser.add_argument("--where", default="all", metavar="PLACES",
                        help="which activations --activations stand for: all, first:N, first-block, last-block; "
                        "default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="default: the table's, without one short")
    parser.add_argument("--epochs", type=int, help="default: as the recipe says")
    parser.add_argument("--width", type=float, help="factor on the channels; default: 1, digits 0.25")
    parser.add_argument("--examples", type=int, metavar="N", help="train on the first N only; default: all")
    command.add_device(parser)
    parser.add_argument("--sync-batch-norm", action="store_true",
                        help="under torchrun: batch norms see the batch of all processes")
    parser.add_argument("--figures", action="store_true", help="also draw values, maps and thresholds")
    parser.add_argument("--fresh", action="store_true", help="forget the checkpoints of these runs")
    parser.add_argument("--name", help="of the results' files; default: the table's and the data set's")
    command.add_output(parser)
    options = command.parse(parser, arguments)
    _complete(parser, options)
    command.check_folder(parser, _checkpoints(options))
    command.need(parser, ("matplotlib", "scipy", "sklearn", "torchvision", "timm"))
    return options


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fill in what the command leaves to the table, and refuse what does not go together."""
    table = TABLES.get(options.table)
    options.dataset = options.dataset or (list(table.datasets) if table else ["digits"])
    options.recipe = options.recipe or (table.recipe if table else "short")
    for name in ("epochs", "examples", "width"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            command.refuse(parser, f"--{name} must be positive, got {value}")
    if table is None and options.methods:
        command.refuse(parser, "--methods are rows of a table: name one with --table")
    missing = processes.why_no_device(options.device)
    if missing is not None:
        command.refuse(parser, f"--device {options.device}: {missing}")
    if not options.dataset:
        command.refuse(parser, f"--table {options.table} prints parameters only, which parameters.py counts; "
                       "--dataset NAME trains its rows")
    for dataset in options.dataset:
        if options.data is None and dataset not in datasets.WITHOUT_FILES:
            command.refuse(parser, f"--dataset {dataset} needs --data DIR: {datasets.FILES[dataset]}")
    try:
        chosen(options.where, ())
        rows = _rows(options)
    except ValueError as error:
        command.refuse(parser, str(error))
    for dataset in options.dataset:
        for row in rows:
            if (row.network in TEXTS) != (dataset in datasets.READERS):
                command.refuse(parser, f"--networks {row.network} does not read --dataset {dataset}")


def _rows(options: argparse.Namespace) -> list[Row]:
    """What is to be trained: rows of the table, then the activations asked for.

    Raises:
        ValueError: if the table has no such network or method.
    """
    if options.table is None:
        networks, activations = options.networks or ["convnet8"], options.activations or COMPARED
        return [Row(network, activation, activation, options.where)
                for network in networks for activation in activations]
    table = TABLES[options.table]
    rows = list(table.rows)
    for column, wanted in (("network", options.networks), ("method", options.methods)):
        there = list(dict.fromkeys(getattr(row, column) for row in table.rows))
        strange = [name for name in wanted or () if name not in there]
        if strange:
            raise ValueError(f"--{column}s {strange[0]}: the table {options.table} has {', '.join(there)}")
        rows = [row for row in rows if not wanted or getattr(row, column) in wanted]
    return rows + [Row(network, activation, activation, options.where)
                   for network in dict.fromkeys(row.network for row in rows)
                   for activation in options.activations or ()]


def _checkpoints(options: argparse.Namespace) -> Path:
    """Where checkpoints are, which no one commits."""
    return (command.OUT if command.saves(options) else options.output) / "checkpoints"


def _job(options: argparse.Namespace, dataset: str) -> Job:
    """What to train on a data set, seed by seed, so that a run that is stopped has all rows as far as it came.

    Raises:
        BadData: if its files are missing, or are not what they should be.
    """
    data = datasets.load(dataset, options.data).of_size(options.examples)
    reader = datasets.READERS.get(dataset)  # the tables have one name for what reads characters or words
    rows = [row._replace(network=reader or row.network) for row in _rows(options)]
    recipe = learning.recipe(options.recipe, dataset, options.epochs)
    width = options.width or USUAL_WIDTH.get(dataset, 1.0)
    parts = 1 if options.sync_batch_norm else processes.count()
    runs = [Run(row.network, row.activation, seed, dataset, data.count, width * row.width, row.where, recipe, parts)
            for seed in options.seeds for row in rows]
    return Job(data, rows, runs, recipe, width)


def _settings(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    return {"table": options.table, "dataset": job.data.name, "examples": job.data.count,
            "test_examples": job.data.test_count, "width": job.width, "seeds": options.seeds,
            "processes": processes.count(), "sync_batch_norm": options.sync_batch_norm,
            "recipe": {"name": options.recipe, "whole": learning.recipe(options.recipe, job.data.name).epochs,
                       **job.recipe._asdict()},
            "rows": [{**row._asdict(), "published": options.table and published.accuracy(
                options.table, shown.network, row.method, job.data.name.removesuffix("-words"))}
                     for row, shown in zip(job.rows, _rows(options), strict=True)]}


def _draw(path: Path, results: dict[str, Any], learners: list[Learner]) -> None:
    from harness import figures  # which needs matplotlib

    figures.learning_curves(path.with_suffix(".png"), results, learned.title(results))
    first_seed = {f"{learner.run.network}, {run['method']}": learner
                  for run, learner in zip(results["runs"], learners, strict=False)
                  if learner.run.seed == results["settings"]["seeds"][0] and learner.run.network not in TEXTS}
    if first_seed:
        figures.maps(path.with_name(f"{path.stem}-maps.png"), first_seed)
        figures.thresholds(path.with_name(f"{path.stem}-thresholds.png"), first_seed)


if __name__ == "__main__":
    sys.exit(command.run(main))
