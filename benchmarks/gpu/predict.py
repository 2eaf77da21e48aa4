"""What the machine code of the kernels lets expect of a GPU that is not there: instructions, and what bounds each.

Every large case of :mod:`gpu.speed` in half precision is launched on fake tensors, so that sizes, grids, tilings and
turns of loops are those of the launch code. Of each launch, compiled for the card, the instructions that run are
counted (:mod:`gpu.machine_code`); the rest is a model, and a measurement overrules it:

* issue: four warp instructions a clock and multiprocessor, of which programs that hide little reach a part;
* memory: every tensor of the launch once; L2: what is copied to shared memory or stored, and the rest once, which is
  the least; L1: every access, and shared memory, at 128 bytes a clock; tensor: the products' instructions;
* programs that do not fill the last round of the multiprocessors leave the others waiting.

The prediction is the largest of the five. What the library does in a case (Reborn's deconvolution, say) is not in it.
Where :mod:`gpu_check` has measured the same cases on such a card, that stands beside it. Times are in microseconds,
instructions are those of a warp for each element of the case's x.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import files, machine, report
from torch.utils._pytree import tree_leaves

from leni_kernels.common.gpu.architectures import shared_memory

from . import ahead, machine_code, speed
from .machine_code import Instruction
from .speed import Case


class Card(NamedTuple):
    """A GPU as the model knows it; rates are what programs reach, not what a data sheet says."""

    architecture: str
    multiprocessors: int
    clock: float
    """Hertz."""
    memory: float
    """Bytes a second, as of a copy; so of L2."""
    l2: float
    product: float
    """Of bfloat16, in operations a second; of TF32 half as many."""


CARDS = {
    "h100": Card("sm_90", 132, 1.7e9, 3.0e12, 5.5e12, 790e12),
    "h200": Card("sm_90", 132, 1.7e9, 4.3e12, 5.5e12, 790e12),
    "a100": Card("sm_80", 108, 1.41e9, 1.7e12, 4.0e12, 280e12),
}

ISSUED = {1: 0.45, 2: 0.55, 3: 0.65}
"""The part of the issue rate that programs reach, by how many are resident on a multiprocessor; 0.75 for more."""
REACHED = {"memory": 0.9, "l2": 0.9, "l1": 0.85, "tensor": 0.7}
L1_BYTES, REGISTERS, THREADS, PROGRAMS = 128, 65536, 2048, 32
"""Of a multiprocessor: bytes a clock, and what it has room for."""
ON_L1 = ("LDG", "STG", "LDS", "STS", "SHFL", "LDL", "STL")
"""The instructions that L1 and shared memory serve."""
RELU_PASSES, RELU_BACKWARD_PASSES = 2, 3
RESULTS = Path(__file__).parents[1] / "results"


# ---- what is launched --------------------------------------------------------------------------------------


class Launched(NamedTuple):
    """A launch at its full size."""

    launch: ahead.Launch
    numbers: dict[str, int]
    programs: int
    bytes: int
    """Of all its tensors, each once."""


def launched(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> Launched:
    """What the model has to know of a launch."""
    named = dict(zip(kernel.arg_names, arguments, strict=False))
    tensors = {id(value): value.numel() * value.itemsize for value in arguments if isinstance(value, torch.Tensor)}
    numbers = {name: value for name, value in named.items() if isinstance(value, int)}
    return Launched(ahead.launch_of(kernel, grid, arguments, options), numbers, grid[0], sum(tensors.values()))


def cases(match: str = "") -> list[Case]:
    """The cases that are predicted: the large ones in bfloat16 whose names contain ``match``."""
    return [case for case in speed.cases(ahead.Planner(), False)
            if case.kind == "large" and case.dtype == "bfloat16" and case.work != "ceilings" and match in str(case)]


# ---- one launch --------------------------------------------------------------------------------------------


def prediction(found: Launched, card: Card, elements: int) -> dict[str, Any]:
    """The row of a launch; needs :func:`gpu.ahead.drive` in this process."""
    compiled = ahead.compiled_launch(found.launch)
    usage, sass = machine_code.disassembled(compiled.asm["cubin"])
    code = machine_code.instructions(sass)
    loops = machine_code.loops_of(compiled.asm["ttgir"], found.numbers, found.programs)
    times = machine_code.executions(code, loops)
    warps, shared = dict(found.launch.options)["num_warps"], compiled.metadata.shared
    resources = machine_code.resources(usage)
    residents = _residents(resources["registers"], shared, warps, card.architecture)
    executed = _Executed(found.programs * warps, list(zip(code, times, strict=True)))
    seconds = _seconds(executed, found, card, residents)
    bound = max(seconds, key=seconds.__getitem__)
    by_class = {name: round(count / elements, 3) for name, count in executed.by_class().items()}
    return {
        "kernel": found.launch.kernel, "programs": found.programs, "warps": warps, **resources, "shared": shared,
        "residents": residents, "bytes_in_flight": machine_code.bytes_in_flight(code, times) * 32 * warps * residents,
        "per_element": round(sum(executed.by_class().values()) / elements, 3), "instructions": by_class,
        "flops": executed.flops(), "microseconds": {name: round(1e6 * value, 2) for name, value in seconds.items()},
        "bound": bound, "predicted": round(1e6 * seconds[bound], 2),
    }


class _Executed(NamedTuple):
    """The instructions of a launch, and how often each of its warps runs them."""

    warps: int
    code: list[tuple[Instruction, float]]

    def by_class(self) -> Counter[str]:
        """How many instructions of each class all warps run."""
        counts: Counter[str] = Counter()
        for (_, opcode, _), times in self.code:
            if not opcode.startswith("NOP"):
                counts[machine_code.class_of(opcode)] += times * self.warps
        return counts

    def flops(self) -> float:
        """Of the products that all warps run."""
        return self.warps * sum(times * machine_code.flops(each.opcode) for each, times in self.code)

    def accessed(self, opcodes: tuple[str, ...]) -> float:
        """The bytes that all warps read or write with instructions whose names begin like that."""
        return self.warps * 32 / 8 * sum(times * machine_code.bits(each.opcode) for each, times in self.code
                                         if each.opcode.startswith(opcodes))


def _residents(registers: int, shared: int, warps: int, architecture: str) -> int:
    """How many programs a multiprocessor holds at once."""
    of_warp = -(-registers * 32 // 256) * 256
    kib = 1024  # of shared memory, which every program takes beside its own
    return max(1, min(REGISTERS // (of_warp * warps), THREADS // (32 * warps), PROGRAMS,
                      (shared_memory(architecture) + kib) // (shared + kib)))


def _seconds(executed: _Executed, found: Launched, card: Card, residents: int) -> dict[str, float]:
    rounds = found.programs / (card.multiprocessors * residents)
    waiting = -(-rounds // 1) / rounds
    clocks = card.multiprocessors * card.clock
    return {
        "issue": waiting * sum(executed.by_class().values()) / (4 * clocks * ISSUED.get(residents, 0.75)),
        "memory": found.bytes / (card.memory * REACHED["memory"]),
        "l2": max(executed.accessed(("LDGSTS", "STG")), found.bytes) / (card.l2 * REACHED["l2"]),
        "l1": waiting * executed.accessed(ON_L1) / (L1_BYTES * clocks * REACHED["l1"]),
        "tensor": waiting * executed.flops() / (card.product * REACHED["tensor"]),
    }


# ---- one case ----------------------------------------------------------------------------------------------


def predict(case: Case, card: Card) -> dict[str, Any]:
    """The row of a case: its launches, their sum, and that against what the case stands for."""
    work: list[speed.Work] = []

    def launch() -> None:
        work.append(speed.work_of(case, ahead.Planner()))
        work[0].functions["ours"](work[0].inputs[0])

    found = ahead.noted(card.architecture, launch, launched)
    x = tree_leaves(work[0].inputs[0])[0]
    elements = x.numel()
    rows = [prediction(each, card, elements) for each in found]
    predicted = sum(row["predicted"] for row in rows)
    stands_for = 1e6 * _stands_for(case, work[0], x.numel() * x.itemsize, card)
    return {
        "case": str(case), "elements": elements, "flops": work[0].flops, "launches": rows,
        "per_element": round(sum(row["per_element"] for row in rows), 3), "predicted": round(predicted, 2),
        "stands_for": round(stands_for, 2), "ratio": round(predicted / stands_for, 2),
    }


def _stands_for(case: Case, work: speed.Work, x: int, card: Card) -> float:
    """The seconds of a ReLU, or of a step of one; of ``conv(relu(x))`` those of the product or of the bytes."""
    bandwidth = card.memory * REACHED["memory"]
    steps = not (case.work.endswith("inference") or case.what.endswith("forward"))
    relu = (RELU_PASSES + RELU_BACKWARD_PASSES * steps) * x / bandwidth
    if not case.work.startswith("conv_relu"):
        return relu
    return relu + max(work.flops / (card.product * REACHED["tensor"]), work.bytes / bandwidth)


def predictions(card: Card, chosen: Sequence[Case], workers: int) -> Iterator[dict[str, Any]]:
    """The rows of these cases, in their order, each as soon as it is there."""
    with ProcessPoolExecutor(workers, get_context("spawn"), ahead.drive, (card.architecture,)) as pool:
        yield from pool.map(partial(predict, card=card), chosen)


# ---- the command -------------------------------------------------------------------------------------------


def run(name: str, match: str, workers: int, path: Path) -> None:
    """Predict for a card, write what was found to a file, and say it."""
    import triton

    card, measured, chosen = CARDS[name], _measured(name), cases(match)
    rows = []
    with report.progress(len(chosen)) as step:
        for row in predictions(card, chosen, workers):
            step(row["case"])
            rows.append({**row, **measured.get(row["case"], {})})
    facts = {"card": name, **card._asdict(), "triton": triton.__version__, "torch": torch.__version__,
             "commit": machine.commit()}
    files.write_text(path, _a_case_a_line({**facts, "cases": rows}))
    for row in rows:
        report.say("\n".join(_lines(row)))


def _a_case_a_line(found: dict[str, Any]) -> str:
    head = json.dumps({name: value for name, value in found.items() if name != "cases"}, indent=1)
    cases = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in found["cases"])
    return head.removesuffix("\n}") + f',\n "cases": [\n  {cases}\n ]\n}}\n'


def _measured(name: str) -> dict[str, dict[str, Any]]:
    """What was measured on such a card, by the names of the cases: the whole, and each kernel."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("gpu-check-*.json")):
        if name.upper() in path.name.upper().split("-"):
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            for case, record in steps.get("speed", {}).items():
                if "ours" in record.get("milliseconds", {}):
                    found.setdefault(case, {})["measured"] = round(1e3 * record["milliseconds"]["ours"], 2)
            for case, record in steps.get("kernels", {}).items():
                found.setdefault(case, {})["measured_kernels"] = {
                    each["name"]: each["microseconds"] for each in record.get("kernels", ())}
    return found


def _lines(row: dict[str, Any]) -> Iterator[str]:
    whole = f"; measured {row['measured']} µs" if "measured" in row else ""
    yield (f"{row['case']}: {row['per_element']} instructions an element, predicted {row['predicted']} µs, "
           f"{row['ratio']} × what it stands for{whole}")
    for each in row["launches"]:
        times = ", ".join(f"{name} {value}" for name, value in each["microseconds"].items())
        kernel = row.get("measured_kernels", {}).get(each["kernel"])
        found = "" if kernel is None else f"; all launches of it measured {kernel} µs"
        yield (f"    {each['kernel']}: {each['per_element']} an element, {each['registers']} registers, "
               f"{each['residents']} residents of {each['programs']}, {each['bytes_in_flight'] >> 10} KiB on the way; "
               f"{times}: {each['bound']}{found}")
        yield "        " + ", ".join(f"{name} {value}" for name, value in each["instructions"].items() if value)
