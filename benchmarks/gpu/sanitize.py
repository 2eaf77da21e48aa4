"""NVIDIA's compute-sanitizer over every kind of launch at a tiny shape: memory errors, and races in shared memory.

The step's process starts one of the tool for each check, all at once; under it ``python -m gpu.sanitize`` runs the
launches, and prints the name of each before it begins.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import leni_kernels as lk

from . import device, smoke
from .device import Gpu
from .records import Record

CHECKS = ("memcheck", "racecheck")
SECONDS = 29
"""How long the tool may take; it slows every launch down."""

USUAL_PLACE = Path("/usr/local/cuda/bin/compute-sanitizer")
RUNNING = "running "
FOUND = 9
"""The tool's status where it has found something."""

_ERROR = re.compile(r"=+ (Invalid|Error|Race|Potential|Out-of-range|Misaligned|Internal)")
"""How it begins a report. Not "Program hit": PyTorch asks CUDA for functions that an older driver does not have."""


class Case(NamedTuple):
    """All checks of the tool, which run side by side, over all launches or a few."""

    checks: tuple[str, ...]
    short: bool

    def __str__(self) -> str:
        return "compute-sanitizer"


def cases(here: Gpu, short: bool) -> list[Case]:
    """The one case."""
    return [Case(CHECKS, short)]


def run(case: Case, here: Gpu) -> Record:
    """Run the launches under each check of the tool."""
    tool = None if here.rehearses else _tool()
    if tool is None and not here.rehearses:
        return {"failures": ["compute-sanitizer is not installed here"]}
    # Memory from PyTorch's cache would hide what lies beyond a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    program = [sys.executable, "-m", "gpu.sanitize", *(["--rehearse"] if here.rehearses else []),
               *(["--short"] if case.short else [])]
    running, until = {}, time.monotonic() + here.size(SECONDS, 10 * SECONDS)
    for check in case.checks:
        under = [] if tool is None else [tool, "--tool", check, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        running[check] = subprocess.Popen([*under, *program], env=environment, text=True, stdout=subprocess.PIPE,
                                          stderr=subprocess.STDOUT)
    verdicts = {check: _verdict(process, max(1.0, until - time.monotonic())) for check, process in running.items()}
    return {"failures": [f"{check}: {text}" for check, verdict in verdicts.items() for text in verdict["failures"]],
            **verdicts}


def _tool() -> str | None:
    return shutil.which("compute-sanitizer") or (str(USUAL_PLACE) if USUAL_PLACE.exists() else None)


def _verdict(process: subprocess.Popen[str], seconds: float) -> Record:
    """What a check found: of all launches, or of those that it came to in time."""
    try:
        output, _ = process.communicate(timeout=seconds)
        late = False
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        late = True
    return read(output, process.returncode, late)


def read(output: str, status: int, late: bool) -> Record:
    """The tool's errors, each with the launch it came up in, and how many launches were run."""
    launches, failures = [], []
    for line in output.splitlines():
        if line.startswith(RUNNING):
            launches.append(line.removeprefix(RUNNING))
        elif _ERROR.match(line):
            failures.append(f"{line.lstrip('= ')} ({launches[-1] if launches else 'before the first launch'})")
    if status not in (0, FOUND) and not late:
        failures.append(f"ended with {status}: {output.strip().splitlines()[-1] if output.strip() else 'no output'}")
    if late and not launches:
        failures.append("its time was up before the first launch")
    return {"failures": failures[:10], "errors": len(failures), "launches": len(launches), "finished": not late}


def launch(case: Case, here: Gpu) -> None:
    """Launch what is launched under the tool."""
    for each in launched(case.short):
        smoke.launch(each, here)


def main(rehearse: bool, short: bool) -> None:
    """Run every launch once, from memory of exactly its size."""
    here = device.here(rehearse)
    for case in launched(short):
        print(f"{RUNNING}{case}", flush=True)
        with lk.use_backend("triton"):
            smoke.launch(case, here)
        here.synchronize()


def launched(short: bool) -> list[smoke.Case]:
    """Every operator in both layouts, in one half precision and in float32, at the shape with odd sizes."""
    found = [smoke.Case(operator, "tails", layout, dtype) for dtype in ("bfloat16", "float32")
             for operator in smoke.OPERATORS for layout in smoke.LAYOUTS]
    return found[::16] if short else found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main("--rehearse" in sys.argv, "--short" in sys.argv)
