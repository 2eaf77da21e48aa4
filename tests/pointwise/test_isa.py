"""Every instruction set of the C++ kernels gives the right answer, not only the one this CPU would choose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leni_kernels import extension

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

ISAS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")
"""In their order; the pointwise kernels have the first three."""


@pytest.mark.parametrize("isa", ISAS[:3])
def test_parity_on_every_instruction_set(isa):
    best = extension.cpu_isa()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this CPU has only {best}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpp",
               str(Path(__file__).with_name("test_parity.py"))]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], env={**os.environ, "LENI_KERNELS_ISA": isa},
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert " passed" in process.stdout
