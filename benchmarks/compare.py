"""Whether one commit is slower than another: both built, and measured in turns in one run.

    python benchmarks/compare.py HEAD~1                          everything, some minutes after the builds
    python benchmarks/compare.py v0.1.0 main --only conv_relu    one mechanism
    python benchmarks/compare.py --history                       what saved benchmarks found over time

BASE and HEAD are commits as git names them; HEAD is by default ".", the files as they are, also those that are not
committed. Each is built in a folder of its own below benchmarks/out/builds, once. Then a process of each takes turns
with the other at the same module and inputs, through the package's public names only, so that old commits can be
measured too. A case past the threshold is measured again, with new processes, before it counts as slower.

Shown are the base's time, the median over all rounds of head / base, and between which two values half of the rounds
lie. Exits with 1 if a case, or the geometric mean of all, is slower by more than the threshold, or cannot be compared:
times that other processes disturbed say nothing, and so does the program.

--history compares nothing: for each machine it shows the ratios that each benchmark run with --save has left in
benchmarks/results/history.jsonl, by commit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cases
import torch
from comparing import checkouts, found, turns
from comparing.checkouts import CannotCompare, Checkout
from comparing.subjects import Subject
from harness import command, files, history, machine, report

BUILDS = command.OUT / "builds"

PASSES = 3
"""Pairs of processes that measure everything, one pair after the other: where a process's memory lies has a say."""

SECONDS = 0.05
"""Of a turn."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, measure and report; returns the exit status."""
    options = _options(arguments)
    if options.history:
        return _show_history(options.match)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    wanted = found.subjects(options.only, options.match)
    if not wanted:
        print(f"compare.py: --match: no case has {options.match!r} in its name", file=sys.stderr)
        return 2
    try:
        with files.named(BUILDS):
            sides = {side: checkouts.checkout(getattr(options, side), BUILDS, options.device == "cpu")
                     for side in turns.SIDES}
        rows = _measured(sides, wanted, options)
    except CannotCompare as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    results = {**machine.facts(torch.device(options.device)), "threshold": options.threshold,
               **{side: {"commit": checkout.commit, "tree": checkout.tree} for side, checkout in sides.items()},
               "compared": [{"case": str(subject), **row} for subject, row in zip(wanted, rows, strict=True)]}
    path = options.output / f"compare-{results['base']['commit']}-{results['head']['commit']}.json"
    report.write_json(path, results)
    report.table(heading(results), HEAD, cells(results))
    return _conclude(results, path)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    parser.add_argument("base", metavar="BASE", nargs="?", help="the commit to compare with")
    parser.add_argument("head", metavar="HEAD", nargs="?", default=checkouts.WORKING_TREE,
                        help="the commit to judge; default: the files as they are")
    parser.add_argument("--only", metavar="MECHANISM", choices=cases.mechanisms(),
                        help=f"one of {', '.join(cases.mechanisms())}")
    parser.add_argument("--match", metavar="TEXT", default="", help="only cases with this in their name")
    parser.add_argument("--threshold", metavar="PERCENT", type=float, default=5.0, help="default: %(default)g")
    parser.add_argument("--rounds", metavar="N", type=int, default=5,
                        help=f"of each of {PASSES} pairs of processes; default: %(default)s")
    command.add_device(parser)
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads; default: as PyTorch chooses")
    parser.add_argument("--history", action="store_true", help="show what saved benchmarks found over time instead")
    command.add_output(parser)
    options = command.parse(parser, arguments)
    if (options.base is None) != options.history:
        command.refuse(parser, "either BASE, a commit to compare with, or --history")
    if options.base is not None:
        command.check_folder(parser, BUILDS)
    return options


# ---- the measurement ---------------------------------------------------------------------------------------


def _measured(sides: dict[str, Checkout], wanted: Sequence[Subject],
              options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each case: measured once, and once more if it is past the threshold."""
    rows = _passes(sides, wanted, options)
    limit = 1 + options.threshold / 100
    doubtful = [index for index, row in enumerate(rows) if ratio(row) is not None and ratio(row) > limit]
    if doubtful:
        report.say(f"{len(doubtful)} of {len(wanted)} cases are past the threshold, and measured again.")
        again = _passes(sides, [wanted[index] for index in doubtful], options)
        for index, row in zip(doubtful, again, strict=True):
            rows[index] = turns.together((rows[index], row))
    return rows


def _passes(sides: dict[str, Checkout], wanted: Sequence[Subject],
            options: argparse.Namespace) -> list[dict[str, Any]]:
    passes: list[list[dict[str, Any]]] = []
    with report.progress(PASSES * len(wanted)) as step:
        for _ in range(PASSES):
            with ExitStack() as stack:
                workers = {side: stack.enter_context(turns.Worker(checkout, options.device, options.threads))
                           for side, checkout in sides.items()}
                passes.append([])
                for subject in wanted:
                    step(str(subject))
                    passes[-1].append(turns.measure(workers, subject, options.rounds, SECONDS))
    return [turns.together(rows) for rows in zip(*passes, strict=True)]


def _show_history(match: str) -> int:
    found = list(history.tables(history.read(), match))
    for table in found:
        report.table(*table)
    if not found:
        print(f"compare.py: --history: nothing was saved{f' with {match!r} in its name' if match else ''}",
              file=sys.stderr)
    return 0 if found else 2


# ---- what it found -----------------------------------------------------------------------------------------


def ratio(row: dict[str, Any]) -> float | None:
    """The median over the rounds of the head's time as a multiple of the base's; None without times."""
    return statistics.median(turns.ratios(row)) if not row["missing"] else None


def mean(rows: Iterable[dict[str, Any]]) -> float | None:
    """The geometric mean of the rows' ratios."""
    return report.geometric_mean(ratio(row) for row in rows if not row["missing"])


def heading(results: dict[str, Any]) -> str:
    """What the table shows."""
    base, head = (results[side]["commit"] for side in turns.SIDES)
    return f"{head} against {base}, {machine.name(results)}: milliseconds, and head / base"


HEAD = ("case", "base", "head / base", "half of the rounds", "backend", "")


def cells(results: dict[str, Any]) -> Iterator[list[str]]:
    """The table, and the geometric mean."""
    for row in results["compared"]:
        backend = " → ".join(dict.fromkeys(row["backend"].values()))
        if row["missing"]:
            yield [row["case"], "—", "—", "—", backend, "not compared"]
            continue
        low, median, high = turns.quartiles(turns.ratios(row))
        base = 1e3 * statistics.median(row["seconds"]["base"])
        verdict = "disturbed" if not turns.is_quiet(row) else "slower" if _slower(median, results) else ""
        yield [row["case"], f"{base:.3f}", f"{median:.3f}", f"{low:.3f} to {high:.3f}", backend, verdict]
    overall = mean(results["compared"])
    if overall is not None:
        yield ["geometric mean", "", f"{overall:.3f}", "", "", "slower" if _slower(overall, results) else ""]


def _slower(value: float, results: dict[str, Any]) -> bool:
    return value > 1 + results["threshold"] / 100


def _conclude(results: dict[str, Any], path: Path) -> int:
    """Say what is slower, and return the exit status."""
    rows, overall = results["compared"], mean(results["compared"])
    for row in rows:
        for side, reason in row["missing"].items():
            report.say(f"Not compared: {row['case']}: {side}: {reason}")
    measured = [row for row in rows if not row["missing"]]
    slower = [row for row in measured if _slower(ratio(row), results)]
    for row in slower:
        low, median, high = turns.quartiles(turns.ratios(row))
        report.say(f"SLOWER by {100 * (median - 1):.1f} % (half of the rounds: {100 * (low - 1):+.1f} % to "
                   f"{100 * (high - 1):+.1f} %): {row['case']}")
    report.say(f"{len(slower)} of {len(rows)} cases are slower by more than {results['threshold']:g} %. "
               f"Times in {path}.")
    disturbed = [row for row in measured if not turns.is_quiet(row)]
    if disturbed:
        report.say(f"NO VERDICT on {len(disturbed)} of them: other processes had the cores.")
    compared = not disturbed and all(not row["missing"] or _on_reference(row) for row in rows) and overall is not None
    return 0 if compared and not slower and not _slower(overall, results) else 1


def _on_reference(row: dict[str, Any]) -> bool:
    return set(row["backend"].values()) == {"reference"}


if __name__ == "__main__":
    sys.exit(command.run(main))
