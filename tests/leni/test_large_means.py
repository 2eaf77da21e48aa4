"""Half precision loses no more of what deviates from a large mean than the block of layers does, on every backend.

Folded norms make a difference of large numbers of it, which products of rounded values and weights would lose.
``test_triton_training.py`` has the same for Triton.
"""

import os
import subprocess
import sys
from pathlib import Path

import large_means
import pytest
import torch

from leni_kernels.common import extension
from leni_kernels.common.extension import INSTRUCTION_SETS as ISAS

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa, dtype):
    best = extension.cpu_isa()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this process has only {best}")
    script = ("import sys, torch; sys.path.insert(0, sys.argv[1]); import large_means;"
              f"large_means.check('cpp', torch.{dtype})")
    process = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parents[1])], cwd=ROOT,
                             env={**os.environ, "LENI_KERNELS_ISA": isa}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_reference_folded(dtype):
    large_means.check("reference", dtype, forms=["folded"])
