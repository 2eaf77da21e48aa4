"""What came out of training: accuracies over the seeds, and how they differ from ReLU's."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from .report import number

BASELINE, CONFIDENCE = "relu", 0.95


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each row mean and deviation of the accuracy over the seeds, and its gain on ReLU, in points of per cent."""
    rows, runs = results["settings"]["rows"], results["runs"]
    found = {(row["network"], row["method"]): runs[place::len(rows)] for place, row in enumerate(rows)}
    return [{"network": row["network"], "method": row["method"], "published": row["published"],
             "parameters": found[row["network"], row["method"]][0]["parameters"],
             **_spread(_accuracies(found[row["network"], row["method"]])),
             "gain": _gain(row, rows, found)} for row in rows]


def _accuracies(runs: Sequence[dict[str, Any]]) -> list[float]:
    return [run["accuracy"] for run in runs]


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"accuracy": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def _gain(row: dict[str, Any], rows: Sequence[dict[str, Any]],
          found: dict[tuple[str, str], Sequence[dict[str, Any]]]) -> dict[str, float | None] | None:
    """The accuracy less that of the same network, not halved, with ReLU; None where no row has that.

    It is the mean over the seeds, each of which gives both the same data in the same order, with the interval of
    Student's t for paired samples; there is none with one seed.
    """
    stock = next((other for other in rows if (other["network"], other["activation"], other["width"])
                  == (row["network"], BASELINE, 1)), None)
    if stock is None or stock is row:
        return None
    differences = [ours - theirs for ours, theirs in zip(
        _accuracies(found[row["network"], row["method"]]), _accuracies(found[stock["network"], stock["method"]]),
        strict=True)]
    low, high = _interval(differences)
    return {"mean": statistics.mean(differences), "low": low, "high": high}


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    error = statistics.stdev(values) / len(values) ** 0.5
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return statistics.mean(values) - reach, statistics.mean(values) + reach


# ---- as a table --------------------------------------------------------------------------------------------


def title(results: dict[str, Any]) -> str:
    """One line on what was trained how; a setting smaller than the paper's is called reduced."""
    settings = results["settings"]
    recipe = settings["recipe"]
    seeds = len(settings["seeds"])
    reduced = recipe["epochs"] < recipe["whole"] or recipe["name"].startswith("short") or settings["width"] < 1
    return (f"{settings['dataset']}, {'reduced setting: ' * reduced}{settings['examples']:,} training examples, "
            f"width {settings['width']:g}, {recipe['epochs']} epochs ({recipe['name']} recipe), "
            f"{seeds} seed{'s' * (seeds != 1)}")


HEAD = ("network", "method", "parameters", "test accuracy, %", "± std", "less ReLU's", "95 % of it", "published")


def cells(results: dict[str, Any]) -> Iterator[list[str]]:
    """The table; the papers' accuracies are those of their full setting."""
    for row in results["summary"]:
        gain = row["gain"] or {"mean": None, "low": None, "high": None}
        interval = "—" if gain["low"] is None else f"{gain['low']:+.2f} to {gain['high']:+.2f}"
        yield [row["network"], row["method"], f"{row['parameters']:,}", number(row["accuracy"]),
               number(row["deviation"]), "—" if gain["mean"] is None else f"{gain['mean']:+.2f}", interval,
               row["published"] or "—"]
