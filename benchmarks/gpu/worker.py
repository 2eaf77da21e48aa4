"""The process of one step: ``python -m gpu.worker STEP --output DIR --until TIME [--rehearse] [--short]``.

Runs the cases that its file of results does not have yet. Ends with 0, or with :data:`DEAD` if an error has made
CUDA unusable in this process: the next one goes on with the next case.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import command

from leni_kernels.common.gpu import support

from . import device, interpreter, plan, records

DEAD = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step, or what is left of it; returns the exit status."""
    parser = argparse.ArgumentParser(description="The process of one step of gpu_check.py.")
    parser.add_argument("step", choices=[step.name for step in plan.STEPS])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="when no further case is begun, as time.time()")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--of", nargs="+", default=[], metavar="STEP", help="whose kernels ahead compiles")
    options = parser.parse_args(arguments)
    path = options.output / f"{options.step}.jsonl"
    step = importlib.import_module(f"gpu.{options.step}")
    here = device.here(options.rehearse)
    if support.interpreting:
        interpreter.patch_once()
    _prepare(timed=options.step in ("speed", "kernels", "whole"))
    if options.step == "ahead":
        step.run_all(path, here, options.of, options.short, options.until)
        return 0
    cases, found = step.cases(here, options.short), records.read(path)
    for case in cases:
        if str(case) not in found:
            records.append(path, {"case": str(case), "status": records.LEFT_OUT})  # until it is begun
    found = records.read(path)
    for case in cases:
        if found[str(case)]["status"] != records.LEFT_OUT or time.time() > options.until:
            continue
        torch.manual_seed(0)
        record = records.run(path, str(case), lambda case=case: {**case._asdict(), **step.run(case, here)})
        if record["status"] == records.FAILED and not here.alive():
            return DEAD
    return 0


def _prepare(timed: bool) -> None:
    warnings.filterwarnings("ignore", message=".*deterministic")
    # Full float32 for the library's convolutions and products: what is compared is exact, or says that it is not.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = timed


if __name__ == "__main__":
    sys.exit(command.run(main))
