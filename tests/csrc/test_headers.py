"""Every header in csrc/ stands alone: it compiles by itself, without a warning, for each instruction set."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from oldest import HEADERS
from torch.utils.cpp_extension import include_paths

from leni_kernels.common.extension import INSTRUCTION_SETS

CSRC = Path(__file__).parents[2] / "csrc"
ALL = sorted(path.relative_to(CSRC) for path in CSRC.rglob("*.h"))
TEXTS = {header: (CSRC / header).read_text(encoding="utf-8") for header in ALL}
OF_PYTORCH = [header for header in ALL if re.search('#include (<torch|"pytorch)/', TEXTS[header])]
OF_KERNELS = [header for header in ALL if header not in OF_PYTORCH]
OF_A_SET = [header for header in ALL if "\nLENI_KERNELS_BEGIN\n" in TEXTS[header]]

COMPILERS = list(dict.fromkeys((os.environ.get("CXX", "g++").split()[0], "g++", "clang++")))
FLAGS = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]

compilers = pytest.mark.parametrize("compiler", [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"there is no {name}"))
    for name in COMPILERS])


def compile_alone(compiler, header, *flags):
    """``header`` by itself; with its name in what is raised, if it does not compile."""
    command = [compiler, *FLAGS, *flags, "-x", "c++", "-include", str(header), os.devnull]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, f"{header}\n{process.stderr}"


@compilers
def test_a_header_of_kernels_compiles_alone(compiler):
    for header in OF_KERNELS:
        compile_alone(compiler, header)


@compilers
@pytest.mark.parametrize("isa", INSTRUCTION_SETS[1:])
def test_it_does_so_for_each_instruction_set(compiler, isa, tmp_path):
    """What takes the most time, the standard library and the intrinsics in simd.h, is compiled once, before them."""
    standard = sorted({name for header in OF_A_SET for name in re.findall(r"#include <(\w+)>", TEXTS[header])})
    before = tmp_path / "before.h"
    before.write_text("".join(f"#include <{name}>\n" for name in standard) + '#include "kernels/simd.h"\n')
    flags = [f"-DLENI_KERNELS_ISA=LENI_KERNELS_{isa.upper()}"]
    precompiled = before.with_suffix(".h.pch" if "clang" in compiler else ".h.gch")
    flags_before = [flag for flag in FLAGS if flag != "-fsyntax-only"]
    subprocess.run([compiler, *flags_before, *flags, "-x", "c++-header", before, "-o", precompiled], check=True)
    for header in OF_A_SET:
        compile_alone(compiler, header, *flags, "-include", str(before))


@compilers
@pytest.mark.parametrize("header", OF_PYTORCH, ids=str)
def test_a_header_of_pytorchs_side_compiles_alone(compiler, header):
    folders = [HEADERS] if HEADERS.is_dir() else include_paths()  # where the oldest PyTorch's are, the stricter ones
    compile_alone(compiler, header, *(f"-isystem{folder}" for folder in folders))


@pytest.mark.parametrize("header", ALL, ids=str)
def test_it_has_a_guard(header):
    code = [line for line in TEXTS[header].splitlines() if line and not line.startswith("//")]
    assert code[0] == "#pragma once"


@pytest.mark.parametrize("header", OF_A_SET, ids=str)
def test_nothing_is_included_where_an_instruction_set_may_be_used(header):
    """An inline function of the standard library, compiled for AVX-512, could be the copy that the linker keeps."""
    begin, end = (TEXTS[header].count(f"\nLENI_KERNELS_{word}\n") for word in ("BEGIN", "END"))
    assert begin == end == 1
    before, inside = TEXTS[header].split("\nLENI_KERNELS_BEGIN\n")
    assert '#include "kernels/target.h"\n' in before
    assert "#include" not in inside
