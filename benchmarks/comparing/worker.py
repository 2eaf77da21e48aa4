"""A process that times one commit's package, turn by turn, as it is told on its standard input.

    python -m comparing.worker FOLDER DEVICE [THREADS]

Reads a JSON object a line and answers each with one: ``{"subject": NAME}`` prepares what is timed from then on,
``{"seconds": S}`` takes a turn. Imports ``leni_kernels`` from FOLDER, and nothing of it that is not public.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import timing

import leni_kernels as lk

from . import found, subjects

LEAST_CALLS = 3


def main(folder: str, device_type: str, threads: str | None = None) -> int:
    """Answer until there is nothing more to answer; returns the exit status."""
    answers, device = _own_output(), torch.device(device_type)
    if Path(folder).resolve() not in Path(lk.__file__).resolve().parents:
        print(f"leni_kernels is {lk.__file__}, not of {folder}", file=sys.stderr)
        return 1
    if threads is not None:
        torch.set_num_threads(int(threads))
    timing.keep_freed_memory()
    # Full float32 on a GPU as well, for PyTorch's convolutions and products as for ours.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    named = {str(subject): subject for subject in found.subjects()}
    clock, call = timing.timer(device), None
    for line in sys.stdin:
        request = json.loads(line)
        if "subject" in request:
            call, answer = None, {}
            try:
                call, backend, sizes = subjects.prepare(named[request["subject"]], device)
                answer = {"backend": backend, "sizes": sizes}
            except Exception as error:  # whatever a commit cannot do is an answer too
                answer = {"missing": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        else:
            answer = turn(call, clock, request["seconds"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _own_output() -> Any:
    """The standard output, for answers alone: what else is printed goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def turn(call: Callable[[], Any], clock: Callable[[timing.Side], float], seconds: float) -> dict[str, float]:
    """The median of as many calls as fit into ``seconds``, after one that wakes the threads and fills the caches.

    Beside it stands how often a second a thread had to leave its core.
    """
    call()
    samples, before, begin = [], timing.interruptions(), time.perf_counter()
    while len(samples) < LEAST_CALLS or time.perf_counter() < begin + seconds:
        samples.append(clock(call))
    interrupted = (timing.interruptions() - before) / (time.perf_counter() - begin)
    return {"seconds": statistics.median(samples), "interrupted": interrupted}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
