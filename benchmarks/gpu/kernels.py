"""What the GPU spends in each kernel of ours, at the large cases of :mod:`gpu.speed` in half precision.

What is left of the time that :mod:`gpu.speed` measured goes to launches and the gaps between them. Whether the results
are right is said there too. This is a step of its own because the profiler slows down what is launched after it in the
same process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import leni_kernels as lk

from . import speed
from .device import Gpu, Kernel
from .records import Record
from .speed import Case

launch = speed.launch
MOST_OF_A_NAME = 120
"""Characters: a library's kernel has its template arguments in its name."""


def cases(here: Gpu, short: bool) -> list[Case]:
    """The large cases in bfloat16, the most important first."""
    return [case for case in speed.cases(here, short)
            if case.kind == "large" and case.dtype == "bfloat16" and case.work != "ceilings"]


def run(case: Case, here: Gpu) -> Record:
    """Look on while every input is met once."""
    with lk.use_backend("triton"):
        work = speed.work_of(case, here)

        def calls() -> None:
            for each in work.inputs:
                work.functions["ours"](each)

        calls()  # what is allocated once, or chosen by trial, is not looked at
        found = here.kernels(calls)
    rows = by_name(found, len(work.inputs))
    return {"failures": [] if rows else ["the profiler saw no kernels"], "kernels": rows, "bytes": work.bytes,
            "microseconds": round(sum(row["microseconds"] for row in rows), 2)}


def by_name(found: Iterable[Kernel], calls: int) -> list[dict[str, Any]]:
    """What one of so many equal calls spends in the kernels of each name, and how often it launches them.

    Those that take the most come first.
    """
    spent: dict[str, list[float]] = {}
    for kernel in found:
        spent.setdefault(kernel.name[:MOST_OF_A_NAME], []).append(kernel.microseconds)
    rows = [{"name": name, "launches": round(len(times) / calls, 2), "microseconds": round(sum(times) / calls, 2)}
            for name, times in spent.items()]
    return sorted(rows, key=lambda row: -row["microseconds"])
