"""The sanitizers see faults in what setup.py's flags compile and tests/sanitize.py's environment runs."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig

import pytest
import sanitize

FAULTS = [("address", "write_past_the_end", 8, "heap-buffer-overflow"),
          ("address", "overflow", 2**31 - 1, "signed integer overflow"),
          ("thread", "race", 1000, "data race")]


def flags(kind, monkeypatch):
    """Those that setup.py compiles and links with, after Python's own."""
    calls = []
    monkeypatch.chdir(sanitize.ROOT)
    monkeypatch.setenv("LENI_KERNELS_SANITIZE", sanitize.SANITIZERS[kind])
    monkeypatch.setattr("setuptools.setup", lambda **arguments: calls.append(arguments))
    runpy.run_path("setup.py")
    extension, = calls[0]["ext_modules"]
    return sysconfig.get_config_var("CFLAGS").split() + extension.extra_compile_args + extension.extra_link_args


@pytest.mark.skipif(shutil.which(sanitize.COMPILER[0]) is None, reason="no C++ compiler")
@pytest.mark.parametrize(("kind", "function", "argument", "report"), FAULTS, ids=[name for _, name, _, _ in FAULTS])
def test_a_fault_is_reported_and_fails(kind, function, argument, report, monkeypatch, tmp_path):
    if sanitize.library(sanitize.RUNTIMES[kind]) == sanitize.RUNTIMES[kind]:  # as it answers where it finds none
        pytest.skip("the compiler has no sanitizers to preload")
    library = tmp_path / "faults.so"
    source = sanitize.ROOT / "tests" / "csrc" / "faults.cpp"
    command = [*sanitize.COMPILER, "-shared", "-fPIC", *flags(kind, monkeypatch), source, "-o", library]
    subprocess.run(command, check=True)
    script = "import ctypes, sys; getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(int(sys.argv[3]))"
    process = subprocess.run([sys.executable, "-c", script, library, function, str(argument)],
                             env=sanitize.environment(kind, tmp_path), capture_output=True, text=True)
    assert process.returncode != 0
    assert report in process.stderr


def test_what_is_copied_is_all_that_the_suites_need(tmp_path):
    folder = sanitize.copied(tmp_path / "copy")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sanitize.SUITES]
    process = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True,
                             text=True)
    assert process.returncode == 0, process.stdout + process.stderr
