"""What the compilers make of the Triton kernels, on a machine without a GPU.

Held for every kind of case: the front end takes it, on the oldest Triton in bfloat16. Held for a choice of cases:
compilation succeeds, nothing spills (no stack, no STL or LDL; on AMD no stack and no spilled vector register), ptxas
serialises no warpgroup product (C7515), the tile fits in shared memory, and x is read in loads as wide as its
alignment allows. Matrix instructions are held where a kernel multiplies half or TF32 operands: HGMMA or UTC*MMA where
the accumulator has the 64 rows those need, HMMA or v_mfma elsewhere, none where a kernel multiplies elementwise.
Plain float32 multiplies in FFMA, by PyTorch's own setting; float64 exists for checks. All on the newest Triton, and
on the oldest each kernel once; ``make codegen`` compiles every case on both, and ``benchmarks/results/codegen.json``
says what it found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import oldest
import pytest

from leni_kernels.common.gpu import support
from leni_kernels.common.gpu.architectures import is_amd, operand_types, shared_memory, warp_size

if support.why_missing is not None:
    pytest.skip(support.why_missing, allow_module_level=True)
if support.interpreting:
    pytest.skip("with TRITON_INTERPRET=1 there is nothing to compile", allow_module_level=True)

import codegen
import triton
from gpu import rooms

ROOT = Path(__file__).parents[1]
ON_THE_OLDEST = triton.__version__.startswith("3.6.")

LENI = ("leni channels-last C=64 k=3 bf16", "leni NCHW C=64 k=3 bf16")
TRAINING = tuple(f"leni {which} gradient {layout} C=64 k=3 bf16"
                 for which in ("weight", "input", "negative") for layout in ("channels-last", "NCHW"))
NARROW = tuple(f"leni {which} gradient NCHW C=64 k=3 vectors of {length} bf16"
               for which in ("input", "negative") for length in (4, 2, 1))
REBORN = tuple(f"reborn {which} {layout} C=64 bf16" for which in ("tail", "weight gradient", "input gradient")
               for layout in ("channels-last", "NCHW"))
CONV_RELU = ("conv_relu forward channels-last 64→64 k=3×3 bf16", "conv_relu weight channels-last 64→64 k=3×3 bf16")
DEPTHWISE = "conv_relu weight channels-last 64→64 k=3×3 groups=64 bf16"
ALGEBRA = tuple(f"{mechanism} {which} C=64 bf16" for mechanism in ("leni", "reborn")
                for which in ("fold", "fold backward", "running"))
SUMS = ("norms merge C=64 bf16", "leni fold of running C=64 bf16", "norms sum of weight C=64 bf16",
        "leni sum of taps C=64 bf16")
POINTWISE = ("fully_parametric_relu backward channels-last bf16", "fully_parametric_relu backward NCHW bf16")
EVERYWHERE = (*LENI, *CONV_RELU, *POINTWISE)
EACH_KERNEL = (
    *EVERYWHERE, *TRAINING, *NARROW, *REBORN, *ALGEBRA, *SUMS, "leni statistics channels-last C=64 k=3 bf16",
    "leni negative gradient channels-last C=64 k=3 of given bf16",
    "reborn statistics channels-last C=64 bf16", "reborn negative gradient NCHW C=64 bf16",
    "conv_relu input channels-last 64→64 k=3×3 bf16", "conv_relu forward NCHW 256→256 k=3×3 size=7 bf16",
    DEPTHWISE, "conv_relu bias channels-last bf16",
    "conv_relu sum bf16", "conv_relu layout bf16",
    "conv_relu to channels-last NCHW bf16",
    *(f"{name} channels-last bf16" for name in ("ada_relu", "ada_relu backward", "fully_parametric_relu", "crelu",
                                                "crelu backward")))
ON_THE_OLDEST_TOO = tuple(name for name in EACH_KERNEL if name in LENI or not (
    name in NARROW or ("NCHW" in name and name.replace("NCHW", "channels-last") in EACH_KERNEL)))
BRIEFLY = (LENI[0], TRAINING[2], CONV_RELU[0])
CHOSEN = {
    "sm_90": (
        *EACH_KERNEL,
        *(f"leni {layout} C={channels} k=3 bf16" for layout in ("channels-last", "NCHW") for channels in (16, 256)),
        "leni channels-last C=64 k=3 tf32", "leni NCHW C=64 k=3 fp32", "leni channels-last C=64 k=3 fp64",
        "leni weight gradient channels-last C=64 k=3 tf32",
        "reborn tail NCHW C=256 bf16", "reborn weight gradient channels-last C=256 bf16",
        "reborn tail NCHW C=64 tf32", "reborn negative gradient channels-last C=64 tf32",
        "reborn input gradient NCHW C=64 fp32", "reborn tail channels-last C=64 fp64",
        "leni fold of given C=64 bf16", "leni fold backward of given C=64 bf16", "leni fold backward C=256 fp32",
        "leni fold backward C=64 fp64",
        "conv_relu forward channels-last 256→256 k=3×3 bf16", "conv_relu forward channels-last 64→64 k=3×3 tf32",
        "conv_relu forward channels-last 64→64 k=3×3 groups=64 bf16", "conv_relu forward NCHW 64→64 k=3×3 bf16",
        "conv_relu input NCHW 256→256 k=3×3 bf16",
        "fully_parametric_relu backward channels-last fp32", "ada_relu backward of strided bf16",
        "fully_parametric_relu backward NCHW fp64",
    ),
    "sm_80": (*EVERYWHERE, "leni channels-last C=256 k=3 bf16", TRAINING[0], TRAINING[2], *REBORN),
    "sm_86": BRIEFLY, "sm_120": BRIEFLY,
    "sm_100": (*EVERYWHERE, TRAINING[1], TRAINING[2], *REBORN),
    "gfx942": (*EVERYWHERE, TRAINING[0], TRAINING[2], *REBORN, *ALGEBRA, *SUMS),
    "gfx1100": BRIEFLY,
}


@pytest.fixture(autouse=True, scope="module")
def _cache():
    with codegen.temporary_cache():
        yield


def _marks(architecture, name):
    return pytest.mark.each_kernel if architecture == "sm_90" and name in ON_THE_OLDEST_TOO else ()


@pytest.mark.parametrize(("architecture", "name"), [
    pytest.param(architecture, name, marks=_marks(architecture, name))
    for architecture, names in CHOSEN.items() for name in names])
def test_limits(architecture, name):
    (case,) = [case for case in codegen.cases(architecture) if codegen.full_name(case) == name]
    report = codegen.compile_case(architecture, case)
    assert report.stack == 0
    assert report.spills == 0
    assert not report.serialised
    assert report.shared <= shared_memory(architecture)
    assert set(report.matrix) == _matrix_instructions(report)
    if report.operand != "fp64":
        assert report.loads.get(report.vector_bits, 0) >= report.vector_loads


def _matrix_instructions(report) -> set[str]:
    if report.tile_rows == 0:
        return set()
    if is_amd(report.architecture):
        return {"v_mfma" if warp_size(report.architecture) == 64 else "v_wmma"}
    if report.operand == "fp64":
        return {"DMMA"}
    if report.operand == "fp32":
        return set()
    if report.architecture == "sm_90" and report.tile_rows >= 64:
        return {"HGMMA"}
    if report.architecture == "sm_100" and report.tile_rows >= 64:
        return {"UTCHMMA"}
    return {"HMMA"}


def test_spills_are_seen():
    """The gate itself: the sums of a tile do not fit in the registers of one warp."""
    (case,) = codegen.cases("sm_90", "leni NCHW C=32 k=3 bf16")
    report = codegen.compile_case("sm_90", case._replace(warps=1))
    assert report.stack > 0
    assert report.spills > 0


@pytest.mark.parametrize("operand", operand_types("sm_90"))
@pytest.mark.parametrize("mechanism", rooms.mechanisms())
def test_the_front_end_takes_every_kind_of_case(mechanism, operand):
    """Of cases that differ in their channels alone, the first, or on the oldest Triton the last.

    ``make codegen`` compiles all.
    """
    kinds = {}
    for case in rooms.cases_of(mechanism).compile_cases("sm_90"):
        if case.operand == operand:
            kinds.setdefault(re.sub(r"C=\d+|\d+→\d+", "", case.name), []).append(case)
    if not kinds:
        pytest.skip("no case has this operand")
    for cases in kinds.values():
        codegen.parse_case("sm_90", cases[-1 if ON_THE_OLDEST else 0])


def test_every_case_has_its_own_name():
    for architecture in codegen.ARCHITECTURES:
        names = list(map(codegen.full_name, codegen.cases(architecture)))
        assert len(set(names)) == len(names)


def test_every_kernel_has_a_case_with_64_bit_offsets_and_one_for_the_oldest_triton():
    cases = codegen.cases("sm_90")
    kernels = {case.kernel for case in cases}
    # What reads no activation has 64-bit offsets where it needs them, or none that large.
    assert {case.kernel for case in cases if case.constants.get("WIDE")} == {
        kernel for kernel in kernels if "WIDE" in kernel.arg_names}
    assert {case.kernel for case in cases if codegen.full_name(case) in ON_THE_OLDEST_TOO} == kernels


# ---- the oldest Triton -------------------------------------------------------------------------------------


@pytest.mark.skipif(ON_THE_OLDEST, reason="this is the oldest Triton")
@oldest.needs_triton
@pytest.mark.parametrize("which", [["-k", "front_end and bf16"], ["-m", "each_kernel"]], ids=" ".join)
def test_on_the_oldest_triton(which):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *which, __file__]
    path = os.pathsep.join(map(str, (ROOT, oldest.PYTHON)))
    finished = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout


# ---- what make codegen found -------------------------------------------------------------------------------

COUNTS = json.loads((ROOT / "benchmarks" / "results" / "codegen.json").read_text())


@pytest.mark.parametrize(("version", "architecture"), [
    (version, architecture) for version, found in COUNTS.items() for architecture in found])
def test_every_case_compiled(version, architecture):
    counts = COUNTS[version][architecture]
    assert counts["compiled"] == counts["cases"] == len(codegen.cases(architecture, sample=counts["sample"]))
    assert not counts["failed"]


def test_every_case_is_counted_for_hopper_on_the_oldest_triton_and_a_newer_one():
    assert {"3.6.0"} < set(COUNTS)
    assert not [version for version, found in COUNTS.items() if found["sm_90"]["sample"]]


@pytest.mark.parametrize("version", COUNTS)
def test_nothing_waits_on_hopper_and_all_fits(version):
    counts = COUNTS[version]["sm_90"]
    assert not [counts[fault] for fault in ("serialised", "too_much_shared_memory") if counts[fault]]


SPILLS = {("3.6.0", "sm_80"): ["conv_relu forward NCHW 256→256 k=3×3 size=7 bf16"]}
"""What is known to, by the version of Triton and the architecture."""


@pytest.mark.parametrize(("version", "architecture"), [
    (version, architecture) for version, found in COUNTS.items() for architecture in found])
def test_nothing_else_spills(version, architecture):
    assert list(COUNTS[version][architecture]["spilling"]) == SPILLS.get((version, architecture), [])
