"""A short campaign with a fixed seed and one with a new one, and proof that a campaign finds what is wrong."""

import os
import random
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leni_kernels.common import extension

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(program, *arguments):
    """One of this folder's programs, on one thread."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, HERE / program, *map(str, arguments)], env=environment, cwd=ROOT,
                          capture_output=True, text=True)


def script_in(output, path):
    """Write the script that a campaign printed; returns its path."""
    path.write_text(re.search(r"# ---- script\n(.*)# ---- end of script", output, re.DOTALL)[1])
    return path


def test_a_campaign_that_is_always_the_same():
    finished = run("run.py", "--count", 200, "--seed", 0)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "\n200 configurations" in finished.stdout


def test_a_new_campaign():
    seed = random.SystemRandom().randrange(10**6)  # the other tests' seed is fixed
    finished = run("run.py", "--count", 300, "--seed", seed)
    print(finished.stdout)  # the seed too
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_a_wrong_channel_is_found_and_made_simple(tmp_path):
    finished = run("faults.py", "wrong", "--count", 20)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert re.search(r"configuration \d+, after \d+: conv_relu wrong", finished.stdout)
    assert "'outputs': 2" in finished.stdout  # the fault is in the last of several
    assert "'plane': (1" in finished.stdout
    script = script_in(finished.stdout, tmp_path / "script.py")
    errors = {}
    for faulty in (True, False):
        shown = run("faults.py", "wrong", script) if faulty else subprocess.run(
            [sys.executable, script], cwd=ROOT, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        errors[faulty] = float(re.search(r"y: the largest error of kernels is (\S+)", shown.stdout)[1])
    assert errors[True] > 10 * errors[False]


def test_a_crash_is_reported_and_the_campaign_goes_on(tmp_path):
    finished = run("faults.py", "dies", "--count", 3, "--keep-going")
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "conv_relu dies of SIGSEGV" in finished.stdout
    assert re.search(r"^3 configurations", finished.stdout, re.MULTILINE)
    script = script_in(finished.stdout.split("# ---- end of script")[0] + "# ---- end of script", tmp_path / "crash.py")
    assert run("faults.py", "dies", script).returncode == -signal.SIGSEGV


def test_the_same_seed_draws_the_same_configurations():
    first, second = (run("run.py", "--count", 15, "--seed", 5, "--mechanism", "ada_relu").stdout for _ in range(2))
    assert "\nada_relu: 15 (15 right)" in first
    assert re.sub(r"in \d+ s.*", "", first) == re.sub(r"in \d+ s.*", "", second)


def test_kinds_that_are_left_out():
    # By its path, since the benchmarks' cases go by the same name.
    draw = runpy.run_path(str(HERE / "cases.py"))["draw"]
    without = frozenset({"huge", "x-nonfinite"})
    labels = {label for index in range(500) for label in draw(1, index, without).labels}
    everything = {label for index in range(500) for label in draw(1, index).labels}
    assert everything - labels == {"x-huge", "x-nonfinite"}
