"""Compile every Triton kernel for GPUs that need not be there, and show what the compilers made of it.

    python benchmarks/codegen.py [--arch sm_90] [--match TEXT] [--json PATH]

For each kernel, configuration, dtype and layout: registers, stack, spills (STL and LDL in the SASS), shared
memory, matrix instructions, and the widths of the global loads in the hot loop. The kernels come from each
Triton room's ``compile_cases``; compiled files go to a temporary folder unless TRITON_CACHE_DIR names one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from leni_kernels import triton_support
from leni_kernels.conv_relu import triton_kernels as conv_relu
from leni_kernels.leni import triton_kernels as leni
from leni_kernels.leni import triton_tail as reborn
from leni_kernels.leni import triton_training as leni_training
from leni_kernels.pointwise import triton_kernels as pointwise
from leni_kernels.triton_support import CompileCase

ROOMS = (leni, leni_training, reborn, conv_relu, pointwise)
"""The modules whose ``compile_cases(architecture)`` are compiled; a new mechanism adds its own here."""

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass
class Report:
    """What one compilation gave."""

    architecture: str
    name: str
    operand: str
    tile_rows: int
    vector_bits: int
    vector_loads: int
    registers: int
    stack: int
    spills: int
    shared: int
    matrix: dict[str, int]
    loads: dict[int, int]
    """How many global loads of each width, in bits, the hot loop has."""
    instructions: int
    serialised: bool
    """ptxas' warning C7515: the warpgroup's matrix products wait for one another."""


def cases(architecture: str, match: str = "") -> list[CompileCase]:
    """The compile cases of every room whose name, with its operand type, contains ``match``."""
    found = [case for room in ROOMS for case in room.compile_cases(architecture)]
    return [case for case in found if match in f"{case.name} {case.operand}"]


def compile_case(architecture: str, case: CompileCase) -> Report:
    """Compile one case ahead of time and read the machine code."""
    import triton
    from triton import knobs
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    types = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    source = ASTSource(case.kernel, types, case.constants, aligned)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    log = io.StringIO()
    with contextlib.redirect_stdout(log), knobs.nvidia.scope(), knobs.compilation.scope():
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=_target(architecture), options=options)
    common = {"architecture": architecture, "name": case.name, "operand": case.operand,
              "tile_rows": case.tile_rows, "vector_bits": case.vector_bits, "vector_loads": case.vector_loads,
              "shared": compiled.metadata.shared}
    if architecture.startswith("gfx"):
        return Report(**common, serialised=False, **_read_amdgcn(compiled.asm["amdgcn"]))
    return Report(**common, serialised="C7515" in log.getvalue(), **_read_cubin(compiled.asm["cubin"]))


def _target(architecture: str) -> object:
    from triton.backends.compiler import GPUTarget

    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


# ---- NVIDIA ------------------------------------------------------------------------------------------------


def _read_cubin(cubin: bytes) -> dict[str, object]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([knobs.nvidia.cuobjdump.path, option, file.name], capture_output=True, text=True,
                           check=True).stdout
            for option in ("-res-usage", "-sass"))
    instructions = _sass_instructions(sass)
    counts = Counter(opcode for _, opcode, _ in instructions)
    loop = Counter(opcode for _, opcode, _ in _hot_loop(instructions))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": _count(counts, r"(STL|LDL)\b"),
        "matrix": _families(counts, r"HGMMA|HMMA|DMMA|UTC\w*MMA"),
        "loads": _widths(loop, r"LDG", _sass_bits),
        "instructions": sum(loop.values()),
    }


def _sass_instructions(sass: str) -> list[tuple[int, str, str]]:
    """Address, opcode with its modifiers, and operands of each instruction."""
    pattern = r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);"
    return [(int(address, 16), opcode, operands) for address, opcode, operands in re.findall(pattern, sass)]


def _hot_loop(instructions: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The body of the largest loop that multiplies matrices, or everything where there is no loop."""
    loops = []
    for address, opcode, operands in instructions:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if opcode.startswith("BRA") and target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    bodies = [[entry for entry in instructions if first <= entry[0] <= last] for first, last in loops]
    return max(bodies, key=len, default=instructions)


def _sass_bits(opcode: str) -> int:
    widths = [re.fullmatch(r"[US]?(8|16|64|128)", modifier) for modifier in opcode.split(".")]
    return next((int(width[1]) for width in widths if width), 32)


# ---- AMD ---------------------------------------------------------------------------------------------------


def _read_amdgcn(assembly: str) -> dict[str, object]:
    instructions = Counter(re.findall(r"^\s+([a-z]\w+)\b", assembly, re.MULTILINE))
    return {
        "registers": _amd_field(assembly, "vgpr_count"),
        "stack": _amd_field(assembly, "private_segment_fixed_size"),
        # Scalar registers spill to vector registers, which costs little and touches no memory.
        "spills": _amd_field(assembly, "vgpr_spill_count"),
        "matrix": _families(instructions, r"v_mfma"),
        "loads": _widths(instructions, r"(global|buffer|flat)_load_", _amd_bits),
        "instructions": sum(instructions.values()),
    }


def _amd_field(assembly: str, name: str) -> int:
    return int(re.search(rf"\.{name}:\s*(\d+)", assembly)[1])


def _amd_bits(opcode: str) -> int:
    dwords = re.search(r"_dword(?:x(\d))?", opcode)
    if dwords:
        return 32 * int(dwords[1] or 1)
    return 8 if "byte" in opcode else 16


# ---- both --------------------------------------------------------------------------------------------------


def _count(counts: Counter[str], pattern: str) -> int:
    return sum(count for opcode, count in counts.items() if re.match(pattern, opcode))


def _families(counts: Counter[str], pattern: str) -> dict[str, int]:
    """How often each opcode family that matches occurs, without its modifiers."""
    families: Counter[str] = Counter()
    for opcode, count in counts.items():
        family = re.match(pattern, opcode)
        if family:
            families[family[0]] += count
    return dict(families)


def _widths(counts: Counter[str], pattern: str, bits: Callable[[str], int]) -> dict[int, int]:
    widths: Counter[int] = Counter()
    for opcode, count in counts.items():
        if re.match(pattern, opcode):
            widths[bits(opcode)] += count
    return dict(sorted(widths.items()))


def compile_all(architecture: str, match: str, workers: int) -> list[Report]:
    """Compile the selected cases in several processes."""
    numbers = range(len(cases(architecture, match)))
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(partial(_compile_numbered, architecture, match), numbers))


def _compile_numbered(architecture: str, match: str, number: int) -> Report:
    # Kernels cannot be sent between processes; their place in the list can.
    return compile_case(architecture, cases(architecture, match)[number])


# ---- the command -------------------------------------------------------------------------------------------

_HEADINGS = ("kernel", "type", "registers", "stack", "spills", "shared", "instructions", "matrix", "loads")


def _row(report: Report) -> tuple[str, ...]:
    def listed(counts: dict, name: str = "{}") -> str:
        return " ".join(f"{count}×{name.format(key)}" for key, count in counts.items()) or "-"

    return (report.name, report.operand, str(report.registers), str(report.stack), str(report.spills),
            str(report.shared), str(report.instructions),
            listed(report.matrix) + " serialised" * report.serialised,
            listed(report.loads, "{} bit"))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="repeatable; default: all")
    parser.add_argument("--match", default="", help="only kernels with this in their name and type")
    parser.add_argument("--json", type=Path, help="write the reports to this file")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; default: per core")
    arguments = parser.parse_args()
    if triton_support.why_missing is not None:
        sys.exit(triton_support.why_missing)
    reports = []
    with temporary_cache():
        for architecture in arguments.arch or ARCHITECTURES:
            found = compile_all(architecture, arguments.match, arguments.workers)
            print(f"\n{architecture}")
            _print_table([_HEADINGS, *map(_row, found)])
            reports += found
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=1) + "\n")


@contextlib.contextmanager
def temporary_cache() -> Iterator[None]:
    """Keep what Triton compiles out of the user's cache, unless TRITON_CACHE_DIR names one."""
    if "TRITON_CACHE_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TRITON_CACHE_DIR"]


if __name__ == "__main__":
    main()
