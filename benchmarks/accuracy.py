"""Trains the papers' networks with any activation, and says how well they do.

    python benchmarks/accuracy.py                                        digits, about a minute on two cores
    python benchmarks/accuracy.py --dataset fashion-mnist --data DIR --networks convnet8 --recipe paper
    torchrun --standalone --nproc-per-node 4 benchmarks/accuracy.py --sync-batch-norm

Each network is trained with each activation from each seed. A run that is stopped goes on where its last whole epoch
ended when the same command is given again, with the same result; one that is finished is not trained again (--fresh
does). Leaves a table, the learning curves as a PNG, and a JSON file with the machine and the versions in the output
folder; --figures adds the pictures of the papers: the values and maps behind the first activation (LENI paper,
Figs. 2-3) and the learned thresholds (ConvReLU paper, Fig. 6).

Under torchrun all processes train each run together, on GPUs one each: every batch is the one that a single process
would see, cut into parts. With --sync-batch-norm the norms see the whole batch too; the result is that of one process
but for rounding, and goes on with any number of them. Without it each part is normalised by itself: such runs are kept
apart by the number of parts, and the last batch of an epoch is left out if a part of it has a single image.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import command, datasets, learning, machine, processes, report
from harness.learning import RECIPES, BadCheckpoint, Learner, Recipe, Run
from harness.report import number
from networks.activations import ACTIVATIONS
from networks.catalogue import NETWORKS
from networks.published import FASHION_MNIST, NOT_AVAILABLE

COMPARED = ("relu", "prelu", "leni", "reborn", "conv_relu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and report; returns the exit status."""
    options = _options(arguments)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        data = _data(options).of_size(options.images)
    except ValueError as error:
        print(f"accuracy.py: {error}", file=sys.stderr)
        return 2
    recipe = RECIPES[options.recipe]
    if options.epochs is not None:
        recipe = recipe._replace(epochs=options.epochs)
    with processes.joined(options.device) as device:
        try:
            learners = _train(options, data.to(device), recipe)
        except KeyboardInterrupt:
            if processes.first():
                report.say("Interrupted: the same command goes on from the last whole epoch.")
            return 1
        except BadCheckpoint as error:
            print(f"accuracy.py: {error}", file=sys.stderr)
            return 2
        if processes.first():
            _report(options, data, recipe, device, learners)
    return 0


def _train(options: argparse.Namespace, data: datasets.Dataset, recipe: Recipe) -> list[Learner]:
    runs, checkpoints = _runs(options, data, recipe), _checkpoints(options)
    if options.fresh and processes.first():
        for run in runs:
            (checkpoints / run.file()).unlink(missing_ok=True)
    shown = report.progress(len(runs) * recipe.epochs) if processes.first() else contextlib.nullcontext(lambda _: None)
    with shown as begin:
        return [learning.train(run, data, checkpoints, begin) for run in runs]


def _report(options: argparse.Namespace, data: datasets.Dataset, recipe: Recipe, device: torch.device,
            learners: list[Learner]) -> None:
    results = {**machine.facts(device), "settings": _settings(options, data, recipe),
               "runs": [learning.result(learner) for learner in learners]}
    results["summary"] = _summary(results["runs"])
    path = options.output / f"accuracy-{device.type}-{options.name or options.dataset}.json"
    report.write_json(path, results)
    _show(results)
    _draw(path, results, learners if options.figures else [])
    report.say(f"Results in {path}.")


# ---- what to train -----------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    parser.add_argument("--dataset", choices=("digits", "fashion-mnist"), default="digits", help="default: %(default)s")
    parser.add_argument("--data", metavar="DIR", type=Path, help="where the IDX files of fashion-mnist are")
    parser.add_argument("--networks", nargs="+", default=["convnet8"], metavar="NAME", choices=_images(NETWORKS),
                        help=f"default: convnet8; of {', '.join(_images(NETWORKS))}")
    parser.add_argument("--activations", nargs="+", default=list(COMPARED), metavar="NAME", choices=tuple(ACTIVATIONS),
                        help=f"default: {' '.join(COMPARED)}; of {', '.join(ACTIVATIONS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="short", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, help="default: as the recipe says")
    parser.add_argument("--width", type=float, default=None, help="factor on the channels; default: 1, digits 0.25")
    parser.add_argument("--first", type=int, metavar="N", help="replace the first N activations only; default: all")
    parser.add_argument("--images", type=int, metavar="N", help="train on the first N images only; default: all")
    command.add_device(parser)
    parser.add_argument("--sync-batch-norm", action="store_true",
                        help="under torchrun: batch norms see the batch of all processes")
    parser.add_argument("--figures", action="store_true", help="also draw values, maps and thresholds")
    parser.add_argument("--fresh", action="store_true", help="forget the checkpoints of these runs")
    parser.add_argument("--name", help="of the results' files; default: the data set's")
    command.add_output(parser)
    options = command.parse(parser, arguments)
    if options.dataset == "fashion-mnist" and options.data is None:
        command.refuse(parser, "--dataset fashion-mnist needs --data DIR")
    for name in ("epochs", "images", "width"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            command.refuse(parser, f"--{name} must be positive, got {value}")
    if options.first is not None and options.first < 0:
        command.refuse(parser, f"--first must not be negative, got {options.first}")
    missing = processes.why_no_device(options.device)
    if missing is not None:
        command.refuse(parser, f"--device {options.device}: {missing}")
    command.check_folder(parser, _checkpoints(options))
    if options.width is None:
        options.width = 0.25 if options.dataset == "digits" else 1.0
    command.need(parser, ("matplotlib", "sklearn" if options.dataset == "digits" else "torchvision"))
    return options


def _checkpoints(options: argparse.Namespace) -> Path:
    """Where checkpoints are, which no one commits."""
    return (command.OUT if command.saves(options) else options.output) / "checkpoints"


def _images(networks: Sequence[str]) -> tuple[str, ...]:
    """The networks that read images, as both data sets are."""
    return tuple(name for name in networks if name != "text")


def _data(options: argparse.Namespace) -> datasets.Dataset:
    return datasets.digits() if options.dataset == "digits" else datasets.fashion_mnist(options.data)


def _runs(options: argparse.Namespace, data: datasets.Dataset, recipe: Recipe) -> list[Run]:
    """Seed by seed, so that a run that is stopped has all the contenders as far as it came."""
    parts = 1 if options.sync_batch_norm else processes.count()
    return [Run(network, activation, seed, data.name, len(data.images), options.width, options.first, recipe, parts)
            for seed in options.seeds for network in options.networks for activation in options.activations]


def _settings(options: argparse.Namespace, data: datasets.Dataset, recipe: Recipe) -> dict[str, Any]:
    return {"dataset": data.name, "images": len(data.images), "test_images": len(data.test_images),
            "width": options.width, "first": options.first, "seeds": options.seeds,
            "processes": processes.count(), "sync_batch_norm": options.sync_batch_norm,
            "recipe": {"name": options.recipe, **recipe._asdict()}}


# ---- what came out -----------------------------------------------------------------------------------------


def _summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the accuracy over the seeds, for each network and activation."""
    rows = []
    for network, activation in dict.fromkeys((run["network"], run["activation"]) for run in runs):
        found = [run for run in runs if (run["network"], run["activation"]) == (network, activation)]
        accuracies = [run["accuracy"] for run in found]
        rows.append({
            "network": network, "activation": activation, "parameters": found[0]["parameters"],
            "accuracy": statistics.mean(accuracies),
            "deviation": statistics.stdev(accuracies) if len(found) > 1 else None,
        })
    return rows


def title(results: dict[str, Any]) -> str:
    """One line on what was trained how; a setting smaller than the papers' is called reduced."""
    settings = results["settings"]
    recipe = settings["recipe"]
    reduced = "reduced setting: " if recipe["name"] != "paper" or settings["width"] < 1 else ""
    seeds = len(settings["seeds"])
    return (f"{settings['dataset']}, {reduced}{settings['images']:,} training images, width {settings['width']:g}, "
            f"{recipe['epochs']} epochs ({recipe['name']} recipe), {seeds} seed{'s' * (seeds != 1)}")


HEAD = ("network", "activation", "parameters", "test accuracy, %", "± std", "published")


def cells(results: dict[str, Any]) -> Iterator[list[str]]:
    """The table; the papers' accuracies are those of their full setting."""
    known = FASHION_MNIST if results["settings"]["dataset"] == "fashion-mnist" else {}
    for row in results["summary"]:
        yield [row["network"], row["activation"], f"{row['parameters']:,}", number(row["accuracy"]),
               number(row["deviation"]), known.get((row["network"], row["activation"]), "—")]


def _show(results: dict[str, Any]) -> None:
    report.table(title(results), HEAD, cells(results))
    if results["settings"]["dataset"] == "fashion-mnist" and not FASHION_MNIST:
        report.say(f"The papers' accuracies on Fashion-MNIST: {NOT_AVAILABLE}.")


def _draw(path: Path, results: dict[str, Any], learners: list[Learner]) -> None:
    from harness import figures  # which needs matplotlib

    figures.learning_curves(path.with_suffix(".png"), results, title(results))
    first_seed = {str(learner.run): learner for learner in learners
                  if learner.run.seed == results["settings"]["seeds"][0]}
    if first_seed:
        figures.maps(path.with_name(f"{path.stem}-maps.png"), list(first_seed.values()))
        figures.thresholds(path.with_name(f"{path.stem}-thresholds.png"), list(first_seed.values()))


if __name__ == "__main__":
    sys.exit(command.run(main))
