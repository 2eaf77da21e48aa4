"""Results case by case: each a line of JSON, on the disk before the next case begins, so that a kill loses one."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import files

Record = dict[str, Any]

BEGUN, PASSED, FAILED, LEFT_OUT = "begun", "passed", "failed", "left out"


def append(path: Path, record: Record) -> None:
    """Add a line, and see to it that it is on the disk.

    Raises:
        CannotWrite: if it cannot be written.
    """
    with files.named(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Record]:
    """The last record of every case, by its name, in order of their first; a line cut off by a kill is dropped."""
    found: dict[str, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[record["case"]] = record
    return found


def in_one_line(error: BaseException) -> str:
    """An exception in a line: the first of its message, and the last, which for a compiler is the one that tells."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    told = lines[0] if len(lines) == 1 else f"{lines[0][:150]} … {lines[-1]}"
    return f"{type(error).__name__}: {told}"[:400]


def run(path: Path, case: str, work: Callable[[], Record]) -> Record:
    """Do the ``work`` of a case and record it; what it returns has "failures" if the case did not pass."""
    append(path, {"case": case, "status": BEGUN})
    began = time.perf_counter()
    try:
        found = work()
    except Exception as error:
        traceback.print_exc()
        found = {"failures": [in_one_line(error)]}
    record = {"case": case, "status": FAILED if found.get("failures") else PASSED,
              "seconds": round(time.perf_counter() - began, 3), **found}
    append(path, record)
    return record
