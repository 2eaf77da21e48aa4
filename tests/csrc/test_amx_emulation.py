"""The AMX kernels with emulated tile registers, for CPUs that have no AMX but all else."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from leni_kernels.common import extension

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(extension.cpu_isa() not in ("avx512_bf16", "amx"), reason="the emulation runs on AVX-512-BF16")
@pytest.mark.parametrize("mechanism", ["leni", "conv_relu"])
def test_amx_kernel_with_emulated_tiles(mechanism, tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    build = [compiler, "-O1", "-std=c++20", "-w", "-DLENI_AMX_EMULATION", "-Icsrc"]
    program = [f"tests/csrc/{mechanism}_amx_emulation.cpp"]
    for isa in ("AMX", "GENERIC"):
        program.append(tmp_path / f"{isa}.o")
        subprocess.run([*build, f"-DLENI_KERNELS_ISA=LENI_KERNELS_{isa}", "-c", f"csrc/{mechanism}/kernels.cpp",
                        "-o", program[-1]], cwd=ROOT, check=True)
    subprocess.run([*build, *program, "-o", tmp_path / "run"], cwd=ROOT, check=True)
    process = subprocess.run([tmp_path / "run"], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
