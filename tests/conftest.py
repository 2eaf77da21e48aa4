"""What every test shares: a fixed seed, uninitialised memory that shows, and Triton's interpreter."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # what several folders of tests share
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks"))

# Tilings that whoever runs the tests has measured stay out of them, also of the processes that they start.
os.environ["LENI_KERNELS_CACHE"] = str(Path(__file__).parent / "no-cache")

# On a GPU, too, float32 is compared with float32: by default PyTorch's convolutions are in TF32 there, and so are ours.
torch.backends.cudnn.allow_tf32 = False

from gpu import interpreter  # noqa: E402  (not before the environment is as it shall be)

from leni_kernels.common.gpu import support  # noqa: E402

if support.interpreting and support.why_missing is None:
    interpreter.patch_once()

LONG = ("test_in_the_interpreter", "test_a_short_rehearsal_runs_every_step", "test_on_the_oldest_triton",
        "test_the_front_end_takes_every_kind_of_case", "test_a_program_in_cpp_runs_what_was_exported")
"""Tests that take a minute or more."""


def pytest_collection_modifyitems(config, items):
    """The longest tests come first, so that no process has one left when the others are done.

    Tests of huge tensors run where they are asked for.
    """
    items.sort(key=lambda item: not item.name.startswith(LONG))
    if "huge" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("huge"):
                item.add_marker(pytest.mark.skip(reason="takes minutes and 14 GiB; pytest -m huge runs it"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _empty_is_nan():
    """New memory is filled with NaN, so that an element no kernel wrote fails the comparison."""
    from leni_kernels.common import extension  # not before the environment is as it shall be

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    extension.fill_empty(True)
    yield
    extension.fill_empty(False)
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def run_in_interpreter():
    """Run test files in a process of their own: the interpreter has to be asked for before kernels are defined."""

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        finished = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True,
                                  text=True)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert " passed" in finished.stdout

    return run


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py's names, and the arguments with which it called setup()."""
    monkeypatch.chdir(Path(__file__).parents[1])

    def run():
        calls = []
        monkeypatch.setattr("setuptools.setup", lambda **arguments: calls.append(arguments))
        names = runpy.run_path(str(Path(__file__).parents[1] / "setup.py"))
        arguments, = calls
        return names, arguments

    return run


@pytest.fixture(autouse=True)
def _kernels_train_small_blocks(monkeypatch):
    """Tests are small: what kernels compute is not left to the reference because it takes less time."""
    from leni_kernels.leni import ops

    monkeypatch.setattr(ops, "LEAST_SEPARABLE", 0)
    monkeypatch.setattr(ops, "LEAST_SITES", 0)
