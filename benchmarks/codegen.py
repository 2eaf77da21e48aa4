"""Compile every Triton kernel for GPUs that need not be there, and show what the compilers made of it.

    python benchmarks/codegen.py --arch sm_90 --match leni   some kernels, one architecture
    python benchmarks/codegen.py --save                      all of them, for all: hours
    python benchmarks/codegen.py --predict h100 --save       what bounds each launch on a card: minutes

For each kernel, configuration, dtype and layout: registers, stack, spills (STL and LDL in the SASS), shared memory,
matrix instructions, and the widths of the global loads in the hot loop. The kernels come from each mechanism's
gpu/cases.py; compiled files go to a temporary folder unless TRITON_CACHE_DIR names one. Leaves codegen.json, which has
how many compiled, and which did not or spill, by Triton's version and architecture, and unless it is saved all that
the tables show in codegen-reports.json. Exits with 1 if a case did not compile.

--predict counts the instructions of whole launches at full size instead, and says what bounds them on a card (see
gpu/predict.py); it leaves predicted-CARD.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from gpu import machine_code, rooms
from gpu.machine_code import Instruction
from harness import command, machine, report

from leni_kernels.common.gpu import packed, support
from leni_kernels.common.gpu.architectures import is_amd, operand_types, shared_memory, warp_size
from leni_kernels.common.gpu.support import CompileCase

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx1100")
"""What is compiled unless ``--arch`` says otherwise; Triton may know more."""

SAMPLE = r"^(norms|leni|reborn) .*C=(64|256)( k=3)?$|(64→64|256→256) k=3×3|^(ada|fully|crelu)| wide$"
"""What a sample has of each kernel: a width whose weights fit on the chip, and one whose do not; 64-bit offsets."""


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


@dataclass
class Failure:
    """Why one compilation gave nothing."""

    architecture: str
    name: str
    operand: str
    error: str


@cache
def cases(architecture: str, match: str = "", sample: bool = False) -> list[CompileCase]:
    """The compile cases of every mechanism whose name, with its operand type, contains ``match``."""
    found = [case for mechanism in rooms.mechanisms()
             for case in rooms.cases_of(mechanism).compile_cases(architecture) if match in full_name(case)]
    return [case for case in found if in_sample(case, architecture)] if sample else found


def in_sample(case: CompileCase, architecture: str) -> bool:
    """Whether a case stands for its kernel where there is no time for all."""
    half = next(operand for operand in ("bf16", "fp16") if operand in operand_types(architecture))
    return case.operand == (half if not case.name.endswith("wide") else "fp16") and bool(re.search(SAMPLE, case.name))


def full_name(case: CompileCase | Report | Failure) -> str:
    """The name that no other case of its architecture has."""
    return f"{case.name} {case.operand}"


def compile_case(architecture: str, case: CompileCase) -> Report:
    """Compile one case ahead of time and read the machine code."""
    import triton
    from triton import knobs

    source = _source(case)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    log = io.StringIO()
    with (contextlib.redirect_stdout(log), knobs.nvidia.scope(), knobs.compilation.scope(),
          packed.compiled_for(nvidia=not is_amd(architecture))):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=target(architecture), options=options)
    common = {"architecture": architecture, "name": case.name, "operand": case.operand,
              "tile_rows": case.tile_rows, "vector_bits": case.vector_bits, "vector_loads": case.vector_loads,
              "shared": compiled.metadata.shared}
    if is_amd(architecture):
        return Report(**common, serialised=False, **_read_amdgcn(compiled.asm["amdgcn"]))
    return Report(**common, serialised="C7515" in log.getvalue(), **_read_cubin(compiled.asm["cubin"]))


def parse_case(architecture: str, case: CompileCase) -> None:
    """Run the front end alone, which finds most of what a version of Triton does not take."""
    from triton._C.libtriton import ir
    from triton.compiler import make_backend

    gpu = target(architecture)
    backend = make_backend(gpu)
    options = backend.parse_options({"num_warps": case.warps, "num_stages": case.stages})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    with packed.compiled_for(nvidia=not is_amd(architecture)):
        _source(case).make_ir(gpu, options, functions, backend.get_module_map(), context)


def _source(case: CompileCase) -> Any:
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    types = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    return ASTSource(case.kernel, types, case.constants, aligned)


def target(architecture: str) -> Any:
    """The architecture as Triton's compiler takes it."""
    from triton.backends.compiler import GPUTarget

    if is_amd(architecture):
        return GPUTarget("hip", architecture, warp_size(architecture))
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


# ---- NVIDIA ------------------------------------------------------------------------------------------------


_MATRIX = r"HGMMA|HMMA|DMMA|UTC\w*MMA"


def _read_cubin(cubin: bytes) -> dict[str, object]:
    usage, sass = machine_code.disassembled(cubin)
    instructions = machine_code.instructions(sass)
    counts = Counter(each.opcode for each in instructions)
    loop = Counter(each.opcode for each in _hot_loop(instructions))
    return {
        **machine_code.resources(usage),
        "spills": _count(counts, r"(STL|LDL)\b"),
        "matrix": _families(counts, _MATRIX),
        "loads": _widths(loop, r"LDG", machine_code.bits),
        "instructions": sum(loop.values()),
    }


def _hot_loop(instructions: list[Instruction]) -> list[Instruction]:
    """The body of the largest loop that multiplies matrices, or everything where there is no loop."""
    bodies = [[each for each in instructions if span.first <= each.address <= span.last]
              for span in machine_code.spans(instructions)]
    # What waits may be moved past the end, and branches back over all that lies between.
    multiply = [body for body in bodies if any(re.match(_MATRIX, each.opcode) for each in body)]
    return max(multiply or bodies, key=len, default=instructions)


# ---- AMD ---------------------------------------------------------------------------------------------------


def _read_amdgcn(assembly: str) -> dict[str, object]:
    instructions = Counter(re.findall(r"^\s+([a-z]\w+)\b", assembly, re.MULTILINE))
    return {
        "registers": _amd_field(assembly, "vgpr_count"),
        "stack": _amd_field(assembly, "private_segment_fixed_size"),
        # Scalar registers spill to vector registers, which costs little and touches no memory.
        "spills": _amd_field(assembly, "vgpr_spill_count"),
        "matrix": _families(instructions, r"v_mfma|v_wmma"),
        "loads": _widths(instructions, r"(global|buffer|flat)_load_", _amd_bits),
        "instructions": sum(instructions.values()),
    }


def _amd_field(assembly: str, name: str) -> int:
    return int(re.search(rf"\.{name}:\s*(\d+)", assembly)[1])


def _amd_bits(opcode: str) -> int:
    # CDNA: dword, dwordx4, ubyte, ushort; RDNA: b32, b128, u8, d16_b16.
    dwords, bits = re.search(r"_dword(?:x(\d))?$", opcode), re.search(r"_[bui](\d+)$", opcode)
    if dwords or bits:
        return 32 * int(dwords[1] or 1) if dwords else int(bits[1])
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


def compile_all(architecture: str, match: str, sample: bool, workers: int) -> Iterator[Report | Failure]:
    """Compile the selected cases in several processes; in their order, each as soon as it is there."""
    numbers = range(len(cases(architecture, match, sample)))
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(_compile_numbered, architecture, match, sample), numbers)


def _compile_numbered(architecture: str, match: str, sample: bool, number: int) -> Report | Failure:
    # Kernels cannot be sent between processes; their place in the list can.
    case = cases(architecture, match, sample)[number]
    try:
        return compile_case(architecture, case)
    except Exception as error:
        first_line = str(error.__cause__ or error).strip().partition("\n")[0]
        return Failure(architecture, case.name, case.operand, f"{type(error).__name__}: {first_line}")


# ---- counts ------------------------------------------------------------------------------------------------


def counts(architecture: str, found: list[Report | Failure], sample: bool) -> dict[str, Any]:
    """How many cases compiled, and what is to be said against which."""
    reports = [report for report in found if isinstance(report, Report)]
    limit = shared_memory(architecture)
    return {
        "cases": len(found), "compiled": len(reports), "of_all": len(cases(architecture)), "sample": sample,
        "failed": {full_name(failure): failure.error for failure in found if isinstance(failure, Failure)},
        "spilling": {full_name(report): report.stack for report in reports if report.stack or report.spills},
        "serialised": [full_name(report) for report in reports if report.serialised],
        "too_much_shared_memory": {full_name(report): report.shared for report in reports if report.shared > limit},
    }


def keep_counts(path: Path, architecture: str, found: list[Report | Failure], sample: bool) -> None:
    """Put the counts of one architecture into the file, and leave what it has of others."""
    import triton

    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    of_version = kept.setdefault(triton.__version__, {})
    of_version[architecture] = {"commit": machine.commit(), **counts(architecture, found, sample)}
    ordered = {version: {name: kept[version][name] for name in sorted(kept[version])} for version in sorted(kept)}
    report.write_json(path, ordered)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, or predict; returns the exit status."""
    options = _options(arguments)
    with temporary_cache():
        return _predict(options) if options.predict else _compile(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    parser.add_argument("--arch", action="append", metavar="NAME",
                        help=f"repeatable; default: {' '.join(ARCHITECTURES)}")
    parser.add_argument("--match", metavar="TEXT", default="", help="only kernels with this in their name and type")
    parser.add_argument("--sample", action="store_true", help="each kernel at two widths in half precision")
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count(),
                        help="processes; default: one per core")
    parser.add_argument("--predict", metavar="CARD", choices=("h100", "h200", "a100"),
                        help="count instructions of launches at full size, and predict their times on this card: "
                             "h100, h200 or a100")
    command.add_output(parser)
    options = command.parse(parser, arguments)
    if support.why_missing is not None:
        command.refuse(parser, support.why_missing)
    options.arch = options.arch or ARCHITECTURES
    if not _matches(options):
        command.refuse(parser, f"--match: no kernel has {options.match!r} in its name and type")
    if options.match and command.saves(options):
        command.refuse(parser, "--save is for whole runs: --match would leave the rest out")
    return options


def _matches(options: argparse.Namespace) -> bool:
    if not options.match:
        return True
    if options.predict:
        from gpu import predict  # which imports this module

        return bool(predict.cases(options.match))
    return any(cases(architecture, options.match, options.sample) for architecture in options.arch)


def _predict(options: argparse.Namespace) -> int:
    from gpu import predict

    predict.run(options.predict, options.match, options.workers, options.output / f"predicted-{options.predict}.json")
    return 0


def _compile(options: argparse.Namespace) -> int:
    everything: list[Report | Failure] = []
    for architecture in options.arch:
        found = []
        with report.progress(len(cases(architecture, options.match, options.sample))) as step:
            for result in compile_all(architecture, options.match, options.sample, options.workers):
                step(f"{architecture}: {full_name(result)}")
                found.append(result)
        everything += found
        keep_counts(options.output / "codegen.json", architecture, found, options.sample)
        if not command.saves(options):
            report.write_json(options.output / "codegen-reports.json", [asdict(result) for result in everything])
        _show(architecture, found)
    return int(any(isinstance(result, Failure) for result in everything))


def _show(architecture: str, found: list[Report | Failure]) -> None:
    print(f"\n{architecture}")
    _print_table([_HEADINGS, *(_row(result) for result in found if isinstance(result, Report))])
    for failure in found:
        if isinstance(failure, Failure):
            print(f"FAILED {full_name(failure)}: {failure.error}")


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
    sys.exit(command.run(main))
