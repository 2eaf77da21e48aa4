"""Machine code of an NVIDIA GPU, read: instructions, loops, and how often a launch runs each.

Triton's own form of a kernel, TTGIR, says how many turns each loop takes, in terms of the launch's numbers and of a
program's place in the grid (:func:`loops_of`). The machine code has the same loops in the same order, apart from those
of few turns that the compiler has written out (:func:`executions`). Branches are taken to go on, and predicates to be
true: what a tile at the edge of an image skips is counted.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction of SASS."""

    address: int
    opcode: str
    """With its modifiers."""
    operands: str


def disassembled(cubin: bytes) -> tuple[str, str]:
    """What ``cuobjdump`` says of the resources of a compiled kernel, and its instructions."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([knobs.nvidia.cuobjdump.path, option, file.name], capture_output=True, text=True,
                           check=True).stdout
            for option in ("-res-usage", "-sass"))
    return usage, sass


def resources(usage: str) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack, which is where registers spill."""
    return {"registers": int(re.search(r"REG:(\d+)", usage)[1]), "stack": int(re.search(r"STACK:(\d+)", usage)[1])}


def instructions(sass: str) -> list[Instruction]:
    """The instructions of one kernel."""
    pattern = r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);"
    return [Instruction(int(address, 16), opcode, operands) for address, opcode, operands in re.findall(pattern, sass)]


def bits(opcode: str) -> int:
    """The width of a thread's access to memory."""
    matrices = re.match(r"(?:LDSM|STSM)\..*M88(?:\.(\d))?", opcode)
    if matrices:
        return 32 * int(matrices[1] or 1)
    widths = [re.fullmatch(r"[US]?(8|16|64|128)", modifier) for modifier in opcode.split(".")]
    return next((int(width[1]) for width in widths if width), 32)


# ---- classes -----------------------------------------------------------------------------------------------

CLASSES = {
    "matrix": r"[HIDQ]G?MMA|UTC\w*MMA",
    "float": r"FFMA|FMUL|FADD|FFMA2|HFMA2|HADD2|HMUL2|DFMA|DADD|DMUL|MUFU",
    "compare": r"FMNMX|FSEL|FSETP|FSET|FCHK|HMNMX2|HSETP2|HSET2|VHMNMX|DSETP|DMNMX",
    "convert": r"F2FP|F2F|F2I|I2F|I2FP|F2IP|PRMT|FRND",
    "global": r"LDG|STG|LDGSTS|UTMA\w*|UBLKCP|UBLKPF|RED|ATOM\w*",
    "shared": r"LDS|STS|LDSM|STSM|SHFL",
    "spill": r"LDL|STL",
    "synchronise": r"BAR|DEPBAR|LDGDEPBAR|SYNCS|WARPSYNC|MEMBAR|FENCE|WARPGROUP|ERRBAR|CCTL|NANOSLEEP|ELECT",
    "integer": r"IADD3|IMAD|LEA|SHF|LOP3|IABS|IADD|IMNMX|VIMNMX|VIADD|MOV|CS2R|S2R|LDC|VIADDMNMX|BMSK|SGXT|FLO|POPC",
    "predicate": r"ISETP|PLOP3|SEL|P2R|R2P|VOTE|PSETP",
}
"""Of instructions, by the first part of their opcodes; what is none of these is "other"."""


def class_of(opcode: str) -> str:
    """The class of an instruction."""
    name = opcode.partition(".")[0]
    return next((found for found, pattern in CLASSES.items() if re.fullmatch(pattern, name)), "other")


def flops(opcode: str) -> float:
    """What one instruction multiplies and adds, counted twice; an HGMMA is issued by each of four warps."""
    shape = re.search(r"\.(\d+)x(\d+)x(\d+)\.", f"{opcode}.")
    if shape:
        return 2.0 * math.prod(map(int, shape.groups())) / (4 if opcode.startswith("HGMMA") else 1)
    sizes = re.match(r"[HID]MMA\.(8|16)(8)(\d+)\b", opcode)  # 16816 is 16×8×16
    return 2.0 * math.prod(map(int, sizes.groups())) if sizes else 0.0


# ---- loops -------------------------------------------------------------------------------------------------


@dataclass
class Loop:
    """A loop, and those inside it in their order."""

    turns: float
    fixed: bool = False
    """Whether the number of turns is known to the compiler, which may then write them out."""
    inner: list[Loop] = field(default_factory=list)


class _Operation(NamedTuple):
    """A line of TTGIR that computes one number, or begins or ends a loop."""

    result: str
    name: str
    operands: tuple[str, ...]


def _cut(a: int, b: int) -> int:
    """a / b without its fraction."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_BINARY: dict[str, Callable[[int, int], int]] = {
    "addi": lambda a, b: a + b, "subi": lambda a, b: a - b, "muli": lambda a, b: a * b,
    "divsi": lambda a, b: _cut(a, b), "divui": lambda a, b: a // b,
    "ceildivsi": lambda a, b: -(-a // b), "floordivsi": lambda a, b: a // b,
    "remsi": lambda a, b: a - b * _cut(a, b), "remui": lambda a, b: a % b, "minsi": min, "minui": min, "maxsi": max,
    "maxui": max, "andi": lambda a, b: a & b, "ori": lambda a, b: a | b, "xori": lambda a, b: a ^ b,
    "shli": lambda a, b: a << b, "shrsi": lambda a, b: a >> b, "shrui": lambda a, b: a >> b,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "slt": lambda a, b: a < b, "sle": lambda a, b: a <= b,
    "sgt": lambda a, b: a > b, "sge": lambda a, b: a >= b, "ult": lambda a, b: a < b, "ule": lambda a, b: a <= b,
    "ugt": lambda a, b: a > b, "uge": lambda a, b: a >= b,
}
_CASTS = ("extsi", "extui", "trunci", "index_cast")


def loops_of(ttgir: str, numbers: Mapping[str, int], programs: int, most: int = 64) -> list[Loop]:
    """The loops of a kernel with the turns that a program takes on average, over ``most`` of them, evenly chosen.

    ``numbers`` are the launch's arguments that are numbers, by name.

    Raises:
        ValueError: if a loop's bounds are not made of those and the program's place.
    """
    lines = list(_operations(ttgir))
    chosen = min(programs, most)
    places = [number * (programs - 1) // max(1, chosen - 1) for number in range(chosen)]
    return _averaged([_loops_of_program(lines, numbers, place) for place in places])


def _operations(ttgir: str) -> Iterator[_Operation]:
    body = ttgir.partition("tt.func")[2]
    regions: list[str] = []
    for line in body.splitlines()[1:]:
        text = line.strip()
        if text.startswith("}") and regions:
            begun = regions.pop()
            if begun:
                yield _Operation("", "else" if text.startswith("} else") else f"end {begun}", ())
        loop = re.match(r"(?:%[\w.:]+ = )?scf\.for (%[\w.]+) = (%[\w.#-]+) to (%[\w.#-]+) step (%[\w.#-]+)", text)
        branch = re.match(r"(?:%[\w.:]+ = )?scf\.if (%[\w.#-]+)", text)
        if loop:
            yield _Operation(loop[1], "for", loop.groups()[1:])
        elif branch:
            yield _Operation("", "if", branch.groups())
        elif "scf.while" in text:
            yield _Operation("", "while", ())
        else:
            yield from _number(text)
        # "{" ends a line, but for the note of where it comes from in the source.
        if re.search(r"\{(?: loc\(.*\))?$", text):
            regions.append("for" if loop else "if" if branch or text.startswith("} else") else "")


def _number(text: str) -> Iterator[_Operation]:
    constant = re.match(r"(%[\w.-]+) = arith\.constant (?:(-?\d+) : i\w+|(true|false))", text)
    if constant:
        yield _Operation(constant[1], "constant", (constant[2] or str(int(constant[3] == "true")),))
        return
    place = re.match(r"(%[\w.]+) = tt\.get_program_id (\w)", text)
    if place:
        yield _Operation(place[1], "place", (place[2],))
        return
    of_numbers = re.match(r"(%[\w.]+) = arith\.(\w+)(?: (\w+),)? (%[^:]+?)(?: \{.*?\})? : i\w+", text)
    if of_numbers:
        result, name, predicate, operands = of_numbers.groups()
        known = (predicate,) if predicate else ()
        yield _Operation(result, name, (*known, *(part.strip() for part in operands.split("overflow")[0].split(","))))


def _loops_of_program(lines: Iterable[_Operation], numbers: Mapping[str, int], place: int) -> list[Loop]:
    known: dict[str, int] = {f"%{name}": number for name, number in numbers.items()}
    fixed: set[str] = set()
    whole = Loop(1)
    open_loops, taken = [whole], [True]
    for result, name, operands in lines:
        if name == "constant":
            known[result] = int(operands[0])
            fixed.add(result)
        elif name == "place":
            known[result] = place if operands[0] == "x" else 0
        elif name == "if":
            taken.append(bool(known.get(operands[0], 0)))
        elif name == "else":
            taken[-1] = not taken[-1]
        elif name == "end if":
            taken.pop()
        elif name == "end for":
            open_loops.pop()
        elif name == "while" or (name == "for" and not known.keys() >= set(operands)):
            raise ValueError(f"the bounds of a loop are not known: {name} {' '.join(operands)}")
        elif name == "for":
            first, last, step = (known[operand] for operand in operands)
            loop = Loop(max(0, -(-(last - first) // step)) * all(taken), fixed >= set(operands))
            open_loops[-1].inner.append(loop)
            open_loops.append(loop)
            known[result] = first
        else:
            value = _value(name, operands, known)
            known.pop(result, None)
            if value is not None:
                known[result] = value
    return whole.inner


def _value(name: str, operands: tuple[str, ...], known: Mapping[str, int]) -> int | None:
    if name == "cmpi":
        if operands[1] not in known or operands[2] not in known:
            return None
        return int(_COMPARISONS[operands[0]](known[operands[1]], known[operands[2]]))
    values = [known.get(operand) for operand in operands]
    if name == "select" and values[0] is not None:
        return values[1] if values[0] else values[2]
    if None in values:
        return None
    if name in _CASTS:
        return values[0]
    return _BINARY[name](*values) if name in _BINARY and len(values) == 2 else None


def _averaged(found: Sequence[list[Loop]]) -> list[Loop]:
    return [Loop(sum(loop.turns for loop in same) / len(same), all(loop.fixed for loop in same),
                 _averaged([loop.inner for loop in same])) for same in zip(*found, strict=True)]


class Span(NamedTuple):
    """Where a loop of the machine code lies: from one address to another, the last of them its branch back."""

    first: int
    last: int


def spans(code: Sequence[Instruction]) -> list[Span]:
    """The loops of the machine code, the outer before the inner."""
    found: dict[int, int] = {}
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if opcode.startswith("BRA") and target and int(target[1], 16) < address:
            first = int(target[1], 16)
            found[first] = max(found.get(first, 0), address)
    return [Span(*span) for span in sorted(found.items())]


def executions(code: Sequence[Instruction], loops: Sequence[Loop]) -> list[float]:
    """How often a program's warp runs each instruction.

    Raises:
        ValueError: if the loops of the machine code are not those of the kernel.
    """
    times = dict.fromkeys(spans(code), 1.0)
    _match(list(times), list(loops), 1.0, times)
    return [[1.0, *(times[span] for span in times if span.first <= address <= span.last)][-1]
            for address, _, _ in code]


def _match(here: list[Span], loops: list[Loop], outer: float, times: dict[Span, float]) -> None:
    """Give each of the spans, and those inside them, the turns of one of the loops."""
    top = [span for span in here if not any(_inside(span, other) for other in here)]
    loops = _as_many(loops, len(top))
    for span, loop in zip(top, loops, strict=True):
        times[span] = outer * loop.turns
        _match([other for other in here if _inside(other, span)], loop.inner, times[span], times)


def _inside(span: Span, other: Span) -> bool:
    return span != other and other.first <= span.first and span.last <= other.last


def _as_many(loops: list[Loop], count: int) -> list[Loop]:
    """The loops without those that were written out, the ones of the fewest turns first."""
    while len(loops) != count:
        candidates = [number for number, loop in enumerate(loops) if loop.fixed]
        if not candidates:
            raise ValueError(f"the machine code has {count} loops, and the kernel {len(loops)}")
        chosen = min(candidates, key=lambda number: loops[number].turns)
        written_out = loops[chosen].inner * round(loops[chosen].turns)
        loops = [*loops[:chosen], *written_out, *loops[chosen + 1:]]
    return loops


# ---- loads on their way ------------------------------------------------------------------------------------


def bytes_in_flight(code: Sequence[Instruction], times: Sequence[float]) -> int:
    """The most bytes that a thread has asked memory for before it waits, in the loop that loads the most.

    Copies to shared memory are not waited for one by one: those of one turn count.
    """
    loaded: dict[Span, float] = {}
    found = spans(code)
    for (address, opcode, _), count in zip(code, times, strict=True):
        around = [span for span in found if span.first <= address <= span.last]
        if opcode.startswith("LDG") and around:
            loaded[around[-1]] = loaded.get(around[-1], 0.0) + bits(opcode) * count
    if not loaded:
        return _most_outstanding(code, 1)
    hot = max(loaded, key=loaded.__getitem__)
    return _most_outstanding([each for each in code if hot.first <= each.address <= hot.last], 2)


def _most_outstanding(body: Sequence[Instruction], turns: int) -> int:
    waiting: list[tuple[set[int], int]] = []
    most, copied = 0, 0
    for turn in range(turns):
        for _, opcode, operands in body:
            touched = _registers(operands)
            last = max((number for number, (registers, _) in enumerate(waiting) if registers & touched), default=-1)
            del waiting[:last + 1]
            if opcode.startswith("LDGSTS"):
                copied += bits(opcode) // 8 * (turn == 0)
            elif opcode.startswith("LDG"):
                first = re.match(r"\s*R(\d+)", operands)
                size = bits(opcode) // 8
                if first:
                    waiting.append((set(range(int(first[1]), int(first[1]) + max(1, size // 4))), size))
            most = max(most, sum(size for _, size in waiting))
    return most + copied


def _registers(operands: str) -> set[int]:
    return {int(number) for number in re.findall(r"\bR(\d+)", operands)}
