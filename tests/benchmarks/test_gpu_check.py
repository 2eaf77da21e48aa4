"""The check of the GPU kernels, without a GPU: its rehearsal, what it compiles ahead, and what a dying case costs."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import gpu_check
import pytest
import torch
from gpu import ahead, kernels, plan, records, sanitize, speed, summary
from gpu.device import Gpu, Kernel, StandIn
from gpu.plan import Step

from leni_kernels.common.gpu import support

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(support.why_missing is not None, reason=str(support.why_missing))


def run(*command, **environment):
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": path, **environment})


def test_the_budget_is_seven_minutes():
    assert plan.TOTAL <= plan.MOST == 420
    limits = {"smoke": 90, "speed": 150, "whole": 60, "behaviour": 60, "sanitize": 60}
    assert all(step.seconds <= limits.get(step.name, plan.MOST) for step in plan.STEPS)
    seconds = {step.name: step.seconds for step in plan.STEPS}
    assert seconds["sanitize"] > sanitize.SECONDS


# ---- the rehearsal -----------------------------------------------------------------------------------------


@needs_triton
def test_a_short_rehearsal_runs_every_step(tmp_path):
    done = run("benchmarks/gpu_check.py", "--rehearse", "--short", "--output", tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"gpu-check-rehearsal.json", "summary.txt", "log.txt"}
    results = json.loads((tmp_path / "gpu-check-rehearsal.json").read_text())
    assert set(results["steps"]) == {step.name for step in plan.STEPS}
    assert results["complete"]
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert lines[0] == "Nothing failed."
    assert len(lines) <= summary.LINES


def test_without_a_gpu_the_check_says_so_and_ends(tmp_path):
    done = run("benchmarks/gpu_check.py", "--output", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "--rehearse" in done.stdout


# ---- compiled ahead ----------------------------------------------------------------------------------------

# With real tensors on the CPU a launch goes the whole way but for its last step, and their memory is aligned as it is.
COMPARE = """
import sys, torch
from gpu import ahead, smoke
from leni_kernels import use_backend
from leni_kernels.common.gpu import support

def real(kernel, grid, arguments, options):
    noted = ahead.launch_of(kernel, grid, arguments, options)
    aligned = tuple(ahead.Pointer(value.dtype, value.data_ptr() % 16 == 0) if isinstance(value, torch.Tensor) else new
                    for value, new in zip(arguments, noted.arguments, strict=True))
    found.append(noted._replace(arguments=aligned))
    if number < 2:
        keys.append(kernel.run(*arguments, grid=(1,), warmup=True, **options).hash)

ahead.drive("sm_90")
here = ahead.Planner()
chosen = [smoke.Case(operator, shape, layout, dtype) for operator, shape, layout, dtype in (
    ("LENI", "tails", "channels_last", "bfloat16"), ("AdaReLU", "typical", "channels_first", "float32"),
    *((operator, shape, layout, dtype) for operator in smoke.OPERATORS
      for shape, layout, dtype in (("typical", "channels_last", "float16"), ("tails", "channels_first", "float64"),
                                   ("deep", "channels_first", "bfloat16"))),
    *((operator, "typical", "channels_last", "float32") for operator in smoke.VARIANTS))]
for number, case in enumerate(chosen):
    found, keys = [], []
    with support.launches_noted("sm_90", real), use_backend("triton"):
        smoke.launch(case, here)
    planned = ahead.launches("sm_90", lambda: smoke.launch(case, here))
    assert planned, case
    assert planned == found, (str(case), [(a, b) for a, b in zip(planned, found) if a != b])
    if keys:
        assert [ahead.compile_launch(launch) for launch in planned] == keys
print("compared", len(chosen))
"""


@needs_triton
def test_what_is_compiled_ahead_is_what_a_launch_looks_up(tmp_path, monkeypatch):
    # Launchers need CUDA's driver, or what stands for it, and are no part of the key.
    script = COMPARE.replace("ahead.drive(", "ahead._build_launcher = lambda compiled: None\nahead.drive(")
    done = run("-c", script, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compared" in done.stdout


def test_numbers_that_give_the_same_code_are_one():
    def seen(*values):
        return {ahead._as_compiled(value) for value in values}

    assert len(seen(3, 5, 7, 2**20 + 1, 2**31 - 1)) == 1
    assert len(seen(16, 32, 0, 2**20)) == 1
    assert len(seen(1, 3, 16, 2**31, 2**31 + 1, None)) == 6


# ---- calls that only a GPU can answer ----------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The names of the CUDA functions that are called, each of which PyTorch has, and does nothing here."""
    made = []

    def stands_for(name, result=None):
        def function(*arguments, **options):
            made.append(name)
            return result

        monkeypatch.setattr(torch.cuda, name, function)  # an error if there is no such name

    stream = mock.create_autospec(torch.cuda.Stream, instance=True)
    for name in ("synchronize", "set_sync_debug_mode", "reset_peak_memory_stats"):
        stands_for(name)
    for name, result in {"memory_allocated": 3, "max_memory_allocated": 5, "Stream": stream, "current_stream": stream,
                         "stream": nullcontext(), "graph": nullcontext(),
                         "CUDAGraph": mock.create_autospec(torch.cuda.CUDAGraph, instance=True)}.items():
        stands_for(name, result)
    return made


def test_what_is_called_on_a_gpu_exists(calls):
    here = Gpu()
    replay, result = here.graph(lambda: 7)
    replay()
    assert result == 7
    assert calls.count("Stream") == 2
    assert calls.index("graph") > calls.index("CUDAGraph") > calls.index("Stream")
    assert here.beside(lambda: 1, lambda: 2) == [1, 2]
    with pytest.raises(RuntimeError), here.without_synchronising():
        raise RuntimeError
    assert calls[-3:] == ["synchronize", "set_sync_debug_mode", "set_sync_debug_mode"]
    assert (here.allocated(), here.peak_of(lambda: None)) == (3, 2)
    here.synchronize()
    assert here.kernels(lambda: torch.ones(2) + 1) == []
    assert not here.alive() or torch.cuda.is_available()


# ---- a case that dies --------------------------------------------------------------------------------------

DIES = """
import os, signal, sys, time
from pathlib import Path
from gpu import records
path, what = Path(sys.argv[1]), sys.argv[2]
for case in ("first", "second", "third"):
    if case in records.read(path):
        continue
    records.append(path, {"case": case, "status": records.BEGUN})
    if case == "second":
        os.kill(os.getpid(), signal.SIGSEGV) if what == "crash" else time.sleep(60)
    records.append(path, {"case": case, "status": records.PASSED})
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs a step whose process is another program; returns its records."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))

    def run(program, *arguments, seconds=30, case_seconds=3):
        options = Namespace(output=tmp_path, rehearse=False, short=False, only=["smoke"])
        path = tmp_path / "smoke.jsonl"
        monkeypatch.setattr(gpu_check, "_command", lambda *_: [sys.executable, "-c", program, str(path), *arguments])
        gpu_check._run(Step("smoke", seconds, case_seconds), options, str(tmp_path))
        return records.read(path)

    return run


@pytest.mark.parametrize(("what", "reason"), [("crash", "died with -11"), ("hang", "given up after 3 s")])
def test_a_crash_or_a_hang_loses_one_case(check, what, reason):
    found = check(DIES, what)
    assert {case: record["status"] for case, record in found.items()} == {
        "first": records.PASSED, "second": records.FAILED, "third": records.PASSED}
    assert reason in found["second"]["failures"][0]


def test_a_process_that_cannot_even_begin_is_not_begun_for_ever(check):
    found = check("import sys; sys.exit(1)")
    assert found["the step itself"]["status"] == records.FAILED


def test_a_step_ends_with_its_time(check):
    began = time.time()
    found = check(DIES, "hang", seconds=2, case_seconds=60)
    assert time.time() - began < 12
    assert "out of time" in found["second"]["failures"][0]


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    records.append(path, {"case": "a", "status": records.BEGUN})
    records.append(path, {"case": "a", "status": records.PASSED})
    with path.open("a") as file:
        file.write('{"case": "b", "sta')
    assert records.read(path) == {"a": {"case": "a", "status": records.PASSED}}


# ---- the summary -------------------------------------------------------------------------------------------


def results(**steps):
    return {"machine": {"gpu": {"name": "A card"}}, "versions": {"torch": "2.11.0", "triton": "3.6.0"}, "commit": None,
            "date": "2026-01-01T00:00:00", "seconds": 400.0, "complete": True, "rehearsal": False,
            "step_seconds": dict.fromkeys(steps, 1.0), "step_kernels": dict.fromkeys(steps, 0), "steps": steps}


def row(work, medians, **others):
    return {"case": f"{work} {others}", "status": records.PASSED, "work": work, "what": "", "channels": 64, "size": 56,
            "layout": "channels_last", "dtype": "bfloat16", "kind": "large", "bytes": 2e12, "flops": 1e9,
            "milliseconds": {name: 1e3 * value for name, value in medians.items()}, "ratios": speed.ratios(medians),
            **others}


def by_case(*rows):
    return {row["case"]: row for row in rows}


def test_failures_come_first_and_the_summary_fits_a_screen():
    failed = {f"case {number}": {"case": f"case {number}", "status": records.FAILED, "failures": ["y: error 1"]}
              for number in range(100)}
    lines = summary.lines(results(smoke=failed))
    assert lines[0] == "FAILED: 100"
    assert "case 0" in lines[1]
    assert "82 more" in "\n".join(lines)
    assert len(lines) <= summary.LINES


def test_the_numbers_to_reach_are_of_the_rows_they_are_about():
    large = row("leni_inference", {"ours": 2.0, "relu": 1.0, "eager": 20.0})
    compiled = row("leni_inference", {"ours": 2.0, "relu": 1.0, "compiled": 8.0}, kind="compiled")
    step = row("leni_training", {"ours": 1.0, "eager": 5.0, "flipped": 4.0})
    ceilings = {"case": "ceilings", "status": records.PASSED, "work": "ceilings", "bytes_per_second": 2e12,
                "flops_per_second": 1e12}
    text = "\n".join(summary.lines(results(speed=by_case(ceilings, large, compiled, step))))
    assert "2.00 (≤ 1.4, ≤ 1.1) not reached: LENI, inference, slowest case" in text
    assert "4.00 (≥ 3.0) reached: LENI, inference, times faster than the hand-folded block" in text
    assert "4.00 (≥ 2.5) reached: LENI, training step" in text
    assert "— (≤ 3.0) not measured: whole network" in text
    assert "2.00 TB/s" in text
    assert "64×56² 50%" in text


def test_the_summary_says_what_the_gpu_spends_in_which_kernel():
    step = row("leni_training", {"ours": 3e-3, "eager": 5e-3})
    looked_on = step | {"microseconds": 1200.0, "kernels": [{"name": "_input_gradient", "launches": 1.0,
                                                            "microseconds": 700.0}]}
    elsewhere = looked_on | {"case": "elsewhere", "channels": 128}
    text = "\n".join(summary.lines(results(speed=by_case(step), kernels=by_case(looked_on, elsewhere))))
    assert text.count("µs in kernels") == 1
    assert "leni_training 64×56²: 1200 of 3000 µs in kernels: _input_gradient 700" in text
    wrong = step | {"status": records.FAILED, "failures": ["y: error 1"]}
    text = "\n".join(summary.lines(results(speed=by_case(wrong), kernels=by_case(looked_on))))
    assert "µs in kernels" not in text


def test_kernels_are_summed_by_name_and_shared_among_the_calls():
    found = [Kernel("short", 1.0), Kernel("long", 10.0), Kernel("short", 3.0), Kernel("long", 14.0)]
    assert kernels.by_name(found, calls=2) == [{"name": "long", "launches": 1.0, "microseconds": 12.0},
                                               {"name": "short", "launches": 1.0, "microseconds": 2.0}]
    began = time.perf_counter()
    looked_on = StandIn().kernels(lambda: torch.ones(2**20).sum())
    assert {"aten::ones", "aten::sum"} <= {kernel.name for kernel in looked_on}
    assert 0 < max(kernel.microseconds for kernel in looked_on) < 1e6 * (time.perf_counter() - began)


def test_the_sanitizer_s_report_is_read():
    output = f"""========= COMPUTE-SANITIZER
{sanitize.RUNNING}LENI, tails
{sanitize.RUNNING}Reborn, tails
========= Invalid __global__ read of size 2 bytes
=========     at _tail_kernel+0x10
========= Program hit CUDA_ERROR_NOT_FOUND (error 500) due to "named symbol not found"
========= ERROR SUMMARY: 2 errors"""
    found = sanitize.read(output, sanitize.FOUND, late=False)
    assert found["failures"] == ["Invalid __global__ read of size 2 bytes (Reborn, tails)"]
    assert found["launches"] == 2
    assert sanitize.read("oops\nno such tool", 1, late=False)["failures"] == ["ended with 1: no such tool"]
    assert not sanitize.read(f"{sanitize.RUNNING}LENI, tails", -9, late=True)["failures"]
