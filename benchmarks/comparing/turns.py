"""Two processes, one for each commit, that take turns at the same work."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import subjects
from .checkouts import CannotCompare, Checkout

SIDES = ("base", "head")
BENCHMARKS = Path(__file__).parents[1]
OF_TURNS = ("seconds", "interrupted")
"""What each turn of each side has."""

QUIET = 100.0
"""Interruptions a second that a case's turns may have. Where another process wants the cores there are hundreds, and a
call takes whole slices of the scheduler's, the same for both sides, since its threads wait for one that is not running.
"""


class Worker:
    """A process that times one commit's package."""

    def __init__(self, checkout: Checkout, device: str, threads: int | None) -> None:
        self.name = checkout.commit
        command = [sys.executable, "-m", "comparing.worker", str(checkout.folder), device,
                   *([] if threads is None else [str(threads)])]
        path = os.pathsep.join([str(checkout.folder), str(BENCHMARKS)])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        self.process = subprocess.Popen(command, env=environment, cwd=checkout.folder, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            CannotCompare: if the process has ended.
        """
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise CannotCompare(f"the process of {self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(workers: Mapping[str, Any], subject: subjects.Subject, rounds: int, seconds: float) -> dict[str, Any]:
    """The times of both sides, round by round; without any where they cannot be compared, and why.

    Every second round begins with the other side.
    """
    answers = {side: workers[side].ask(subject=str(subject)) for side in SIDES}
    missing = {side: answer["missing"] for side, answer in answers.items() if "missing" in answer}
    row = {"missing": missing, **{name: {side: [] for side in SIDES} for name in OF_TURNS},
           "backend": {side: answer["backend"] for side, answer in answers.items() if side not in missing}}
    if missing:
        return row
    if set(row["backend"].values()) == {"reference"}:
        row["missing"] = dict.fromkeys(SIDES, "runs on the reference")
        return row
    if not subjects.agree(*(answer["sizes"] for answer in answers.values()), subject.dtype):
        row["missing"] = dict.fromkeys(SIDES, "the results differ between the two")
        return row
    for count in range(rounds):
        for side in SIDES if count % 2 == 0 else reversed(SIDES):
            answer = workers[side].ask(seconds=seconds)
            for name in OF_TURNS:
                row[name][side].append(answer[name])
    return row


def together(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The rows of one subject, measured by several pairs of processes, as one."""
    rows = list(rows)
    joined = {name: {side: [value for row in rows for value in row[name][side]] for side in SIDES} for name in OF_TURNS}
    return {**rows[-1], **joined}


def is_quiet(row: Mapping[str, Any]) -> bool:
    """Whether the times of a row are the package's, and not those of other processes."""
    return statistics.median(value for side in SIDES for value in row["interrupted"][side]) <= QUIET


def ratios(row: Mapping[str, Any]) -> list[float]:
    """The head's time in each round as a multiple of the base's."""
    return [head / base for base, head in zip(*(row["seconds"][side] for side in SIDES), strict=True)]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))
