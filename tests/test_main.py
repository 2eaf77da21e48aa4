"""``python -m leni_kernels``: the report of an installation, also of one where something is missing or wrong."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import leni_kernels as lk
from leni_kernels import __main__
from leni_kernels.common import backends, extension

ROOT = Path(__file__).parent.parent


def report(*command, **environment):
    """What is reported of each thing, by name."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LENI_KERNELS_BACKEND": "", **environment}
    process = subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True,
                             check=False)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    return dict(line.split(": ", 1) for line in process.stdout.splitlines())


def test_the_report_says_what_is_there(capsys):
    __main__.main()
    said = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert said["leni_kernels"].strip() == lk.__version__
    assert platform.python_version() in said["Python"]
    assert torch.__version__ in said["PyTorch"]
    assert f"{torch.get_num_threads()} of" in said["threads"]
    assert {f"{name}, cpu" for name in backends.NAMES} <= said.keys()
    assert said["reference, cpu"].strip() == "works"
    if extension.why_missing is None:
        assert said["cpp, cpu"].strip() == "works"
        assert said["kernels for"].strip() == extension.cpu_isa()


def test_the_report_comes_without_triton_and_without_the_extension():
    said = report("-c", "import os, runpy, sys, torch; sys.modules['triton'] = None; "
                        "torch.ops.load_library = os.listdir; "  # which fails on a file
                        "runpy.run_module('leni_kernels', run_name='__main__')", TRITON_INTERPRET="0")
    assert "Triton is not installed" in said["triton, cpu"]
    assert extension.why_missing is not None or "the C++ extension is not available" in said["cpp, cpu"]
    assert "no C++ extension" in said["kernels for"]
    assert said["environment"].strip().startswith("TRITON_")


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
def test_the_report_comes_where_a_setting_is_wrong(tmp_path):
    said = report("-m", "leni_kernels", LENI_KERNELS_ISA="mmx", HOME=str(tmp_path), LENI_KERNELS_CACHE=str(tmp_path))
    assert "LENI_KERNELS_ISA=mmx" in said["kernels for"]
    assert "LENI_KERNELS_ISA=mmx" in said["cpp, cpu"]
    assert said["reference, cpu"].strip() == "works"
    assert str(tmp_path) not in str(said)


def test_a_wrong_number_is_not_called_working(monkeypatch):
    monkeypatch.setattr(lk.LENI2d, "forward", lambda block, x: x * (backends._forced != "reference"))
    assert "wrong by 1" in __main__.attempt("cpp", "cpu")


def test_an_error_takes_one_line():
    def broken():
        raise RuntimeError("\nfirst\nsecond")

    assert __main__.answer(broken) == "RuntimeError: first second"


def test_the_report_comes_where_the_terminal_lacks_characters():
    said = report("-OO", "-m", "leni_kernels", TRITON_SETTING="Höhle", PYTHONIOENCODING="ascii")
    assert said["environment"].strip() == r"TRITON_SETTING=H\xf6hle"
    assert said["reference, cpu"].strip() == "works"
