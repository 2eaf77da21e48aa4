"""Runs the suites of the C++ kernels, and the fuzzer, on a build of the extension with GCC's sanitizers.

    python tests/sanitize.py address   # AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/sanitize.py thread --seconds 0 tests/two_branch/test_isa.py   # ThreadSanitizer; one suite, no fuzzer

Once on this CPU's best instruction set and once on the generic kernels. What is built is a copy of the checkout, in
build/sanitize-<kind>, of which the next run compiles what has changed. A report fails the run.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("benchmarks", "csrc", "leni_kernels", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")

COMPILER = os.environ.get("CXX", "c++").split()

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
"""What setup.py is asked for."""

RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}

SUITES = ("tests/conv_relu/test_kernel_forward.py", "tests/conv_relu/test_kernel_gradients.py",
          "tests/two_branch/test_isa.py", "tests/leni/test_parity.py", "tests/two_branch/test_bounds.py",
          "tests/leni/test_training.py", "tests/reborn/test_folded.py", "tests/reborn/test_training.py",
          "tests/pointwise/test_isa.py", "tests/pointwise/test_parity.py")


def copied(folder: Path) -> Path:
    """A copy of the checkout, without what it has built, in the place of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, folder)
        else:
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "out"))
    return folder


def build(kind: str, folder: Path) -> None:
    environment = {**os.environ, "LENI_KERNELS_SANITIZE": SANITIZERS[kind], "LENI_KERNELS_REQUIRE_EXTENSION": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def library(name: str) -> str:
    """One of the compiler's own libraries."""
    command = [*COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment(kind: str, folder: Path) -> dict[str, str]:
    """Of processes that load what was built in ``folder``."""
    # The runtime has to be there before Python, and C++ exceptions before the runtime looks for them.
    preloaded = f"{library(RUNTIMES[kind])} {library('libstdc++.so')}"
    return {
        **{name: value for name, value in os.environ.items() if name != "LENI_KERNELS_ISA"},
        "LD_PRELOAD": preloaded, "PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "1" if kind == "address" else "3",
        "ASAN_OPTIONS": "detect_leaks=0",  # what Python never frees is no leak of ours
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # PyTorch's threads hand their memory on by means that it does not see.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
    }


def best_isa(folder: Path, environment: dict[str, str]) -> str:
    """This CPU's best instruction set, as the build in ``folder`` names it; fails if another build is loaded."""
    script = ("import sys; from leni_kernels.common import extension; isa = extension.cpu_isa(); "
              "assert str(extension.library_path()).startswith(sys.argv[1]); print(isa)")
    command = [sys.executable, "-c", script, str(folder)]
    finished = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return finished.stdout.strip()


def pytest_command(kind: str, suites: list[str], left_out: str) -> list[str]:
    # Reports go to file descriptor 2, past what pytest captures.
    command = ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "-k", f"not ({left_out})", *suites]
    if kind == "address":  # under ThreadSanitizer the status of the one process says whether there was a report
        command += ["--numprocesses", "auto", "--dist", "worksteal"]
    return command


def passes(arguments: list[str], folder: Path, environment: dict[str, str]) -> bool:
    command = [sys.executable, *arguments]
    print(f"LENI_KERNELS_ISA={environment.get('LENI_KERNELS_ISA', '')}", *command, flush=True)
    return subprocess.run(command, cwd=folder, env=environment).returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SANITIZERS)
    parser.add_argument("suites", nargs="*", default=SUITES, help="test files; by default those of the C++ kernels")
    parser.add_argument("--seconds", type=int, default=60, help="of the fuzzer, on each instruction set; 0: without")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer")
    arguments = parser.parse_intermixed_args()
    folder = copied(ROOT / "build" / f"sanitize-{arguments.kind}")
    build(arguments.kind, folder)
    sanitized = environment(arguments.kind, folder)
    best, passed = best_isa(folder, sanitized), []
    for isa in dict.fromkeys((best, "generic")):
        # The best runs tests of every instruction set. Tests of an emulated AMX run the compiler, not the build.
        left_out = "emulated" if isa == best else "emulated or instruction_set"
        chosen = sanitized if isa == best else {**sanitized, "LENI_KERNELS_ISA": isa}
        passed.append(passes(pytest_command(arguments.kind, arguments.suites, left_out), folder, chosen))
        if arguments.seconds:
            fuzzer = ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed), "--isa", isa]
            passed.append(passes(["tests/fuzz/run.py", *fuzzer], folder, sanitized))
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
