"""Every instruction set of the C++ kernels gives the right answer, not only the one this CPU would choose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leni_kernels.common import extension

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

ISAS = extension.INSTRUCTION_SETS
KERNELS = ISAS[:3]
"""Those that have kernels of their own."""


@pytest.mark.parametrize("isa", KERNELS)
def test_parity_on_every_instruction_set(isa):
    here = min(ISAS.index(extension.cpu_isa()), len(KERNELS) - 1)
    if KERNELS.index(isa) >= here:
        pytest.skip(f"{KERNELS[here]} is what runs here, in test_parity.py itself")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpp",
               str(Path(__file__).with_name("test_parity.py"))]
    environment = {**os.environ, "LENI_KERNELS_ISA": isa, "OMP_NUM_THREADS": "2"}
    process = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert " passed" in process.stdout
