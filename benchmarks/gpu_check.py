"""Proves the GPU kernels on the machine at hand, within seven minutes, and without a GPU rehearses that.

Steps: ahead, smoke, speed, kernels, whole, behaviour, sanitize (gpu/plan.py has the seconds of each). Nothing is
installed or built, and nothing is fetched. Each step runs in a process of its own and records case by case, so that a
crash, a hang or a kill loses one case. Leaves gpu-check-CARD.json, summary.txt and log.txt in the output
folder, $OUT or gpu-check; exits with 1 if a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from gpu import plan, records, summary
from gpu.plan import Step
from harness import command, files, report

ROOT = Path(__file__).parents[1]
NAMES = tuple(step.name for step in plan.STEPS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and sum them up; returns the exit status."""
    began, options = time.time(), _options(arguments)
    (options.output / "log.txt").unlink(missing_ok=True)
    # A kill that leaves time for it is an end like any other, in the background too: what was found is summed up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with _cache(options) as cache:
        facts = _facts(options, cache)
        if facts is None:
            report.say("PyTorch sees no GPU here; --rehearse does what can be done without one.")
            return 2
        results = {**facts, "rehearsal": options.rehearse, "complete": False, "step_seconds": {}, "step_kernels": {},
                   "steps": {}}
        try:
            for step in (step for step in plan.STEPS if step.name in {"ahead", *options.only}):
                report.say(f"== {step.name}, up to {step.seconds * _stretch(options)} s")
                start, before = time.time(), _kernels(cache)
                try:
                    _run(step, options, cache)
                finally:
                    results["steps"][step.name] = records.read(_path(step.name, options))
                    results["step_seconds"][step.name] = round(time.time() - start, 1)
                    results["step_kernels"][step.name] = _kernels(cache) - before
            results["complete"] = True
        except KeyboardInterrupt:
            report.say("Interrupted; what follows is what was found so far.")
    results["seconds"] = round(time.time() - began, 1)
    return _conclude(results, options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="STEP",
                        help=f"{', '.join(NAMES)}; the first, which compiles for the others, precedes them always")
    parser.add_argument("--rehearse", action="store_true",
                        help="without a GPU: tiny shapes in Triton's interpreter, compilation for sm_90")
    parser.add_argument("--short", action="store_true", help="with --rehearse: a few cases of each step")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path(os.environ.get("OUT") or "gpu-check"),
                        help="default: $OUT, or gpu-check")
    options = command.parse(parser, arguments)
    options.output = options.output.resolve()
    if options.short and not options.rehearse:
        parser.error("--short is for a rehearsal")
    return options


def _cache(options: argparse.Namespace) -> AbstractContextManager[str]:
    """Where Triton keeps what it compiles: for the next check too, but each rehearsal compiles everything."""
    if options.rehearse:
        return tempfile.TemporaryDirectory()
    folder = Path(tempfile.gettempdir()) / f"gpu-check-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return nullcontext(str(folder))


def _kernels(cache: str) -> int:
    """How many compiled kernels Triton's cache holds."""
    return sum(1 for _ in Path(cache, "triton").glob("*/*.cubin"))


def _stretch(options: argparse.Namespace) -> int:
    return plan.REHEARSED if options.rehearse else 1


# ---- one step ----------------------------------------------------------------------------------------------


def _path(step: str, options: argparse.Namespace) -> Path:
    return options.output / f"{step}.jsonl"


def _run(step: Step, options: argparse.Namespace, cache: str) -> None:
    """Run a step to its end, in one process after another where cases end them."""
    path, until, finished = _path(step.name, options), time.time() + step.seconds * _stretch(options), -1
    path.unlink(missing_ok=True)
    while time.time() < until:
        status = _process(step, options, path, until, cache)
        found = records.read(path)
        begun = [case for case, record in found.items() if record["status"] == records.BEGUN]
        for case in begun:
            records.append(path, {"case": case, "status": records.FAILED, "failures": [f"its process {status}"]})
        if status == "ended":
            return
        done = len(begun) + sum(record["status"] in (records.PASSED, records.FAILED) for record in found.values())
        if done <= max(0, finished):  # no process gets any further
            reason = f"its process {status}; see log.txt"
            records.append(path, {"case": "the step itself", "status": records.FAILED, "failures": [reason]})
            return
        finished = done
        report.say(f"   a process of {step.name} {status} after {done} cases")


def _process(step: Step, options: argparse.Namespace, path: Path, until: float, cache: str) -> str:
    """Run a process of a step, and stop it if a case takes too long; returns how it ended."""
    command = _command(step, options, until - _last_case(step) * _stretch(options))
    log = options.output / "log.txt"
    with files.named(log), log.open("a", encoding="utf-8") as lines:
        lines.write(f"== {step.name}\n")
    with log.open("a") as output:
        process = subprocess.Popen(command, env=_environment(step.name, options, cache), cwd=ROOT, stdout=output,
                                   stderr=output, start_new_session=True)
        try:
            return _watch(process, path, until, step.case_seconds * _stretch(options))
        finally:
            _stop(process)


def _command(step: Step, options: argparse.Namespace, until: float) -> list[str]:
    flags = [f"--{name}" for name in ("rehearse", "short") if getattr(options, name)]
    of = NAMES if set(options.only) == {"ahead"} else options.only
    return [sys.executable, "-m", "gpu.worker", step.name, "--output", str(options.output), "--until", str(until),
            *flags, "--of", *of]


def _last_case(step: Step) -> float:
    """Seconds before a step's end from when on no case is begun: most take less."""
    return min(3.0, step.seconds / 10)


def _watch(process: subprocess.Popen[bytes], path: Path, until: float, case_seconds: float) -> str:
    begun = time.time()
    while True:
        try:
            status = process.wait(0.2)
            return "ended" if status == 0 else f"died with {status}"
        except subprocess.TimeoutExpired:
            pass
        now = time.time()
        if now > until:
            return "was out of time"
        if now - max(begun, path.stat().st_mtime if path.exists() else 0.0) > case_seconds:
            return f"was given up after {case_seconds:.0f} s in one case"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, the ones that are left."""
    for number, seconds in ((signal.SIGINT, 3), (signal.SIGKILL, 3)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            continue


def _environment(step: str, options: argparse.Namespace, cache: str) -> dict[str, str]:
    """Where Python finds the checkout and Triton keeps what it compiles; in a rehearsal, its interpreter."""
    path = [str(ROOT / "benchmarks"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1",
                   "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment |= {f"{name}_CACHE_DIR": str(Path(cache) / name.lower()) for name in ("TRITON", "TORCHINDUCTOR")}
    for name in ("TRITON_INTERPRET", "LENI_KERNELS_BACKEND"):
        environment.pop(name, None)
    if options.rehearse:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        if step != "ahead":
            environment["TRITON_INTERPRET"] = "1"
    return environment


# ---- what it found -----------------------------------------------------------------------------------------


def _facts(options: argparse.Namespace, cache: str) -> dict[str, Any] | None:
    """The machine, the versions and the commit, or None where a GPU is wanted and there is none.

    Asked in a process of its own: this one shall outlive whatever happens to the GPU.
    """
    command = [sys.executable, "-c", _ASK_FACTS, "cpu" if options.rehearse else "cuda"]
    asked = subprocess.run(command, env=_environment("facts", options, cache), cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        report.say(asked.stderr.strip())
        return None
    return json.loads(asked.stdout.splitlines()[-1])


_ASK_FACTS = """
import json, sys, torch
from harness import machine
print(json.dumps(machine.facts(torch.device(sys.argv[1]))))
"""


def _conclude(results: dict[str, Any], options: argparse.Namespace) -> int:
    """Write what was found, say the summary, and return the exit status."""
    card = results["machine"].get("gpu", {}).get("name", "rehearsal")
    parts = [re.sub(r"[^A-Za-z0-9]+", "-", card), *(options.only if set(options.only) != set(NAMES) else ())]
    path = options.output / f"gpu-check-{'-'.join(parts)}.json"
    report.write_json(path, results)
    for step in results["steps"]:
        _path(step, options).unlink(missing_ok=True)  # all of it is in that file
    text = [*summary.lines(results), f"Results in {path}."]
    files.write_text(options.output / "summary.txt", "\n".join(text) + "\n")
    report.say("\n".join(["", *text]))
    # A rehearsal has time for everything: a case left out was not rehearsed.
    allowed = {records.PASSED} if options.rehearse else {records.PASSED, records.LEFT_OUT}
    statuses = [{record["status"] for record in cases.values()} for cases in results["steps"].values()]
    return 0 if results["complete"] and all(found and found <= allowed for found in statuses) else 1


if __name__ == "__main__":
    sys.exit(command.run(main))
