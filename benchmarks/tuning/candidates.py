"""Tilings that are worth a try: a grid about the rule's, and what the compilers make of it ahead of time."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import codegen
from gpu import rooms
from harness import files

from leni_kernels.common.gpu import tilings
from leni_kernels.common.gpu.architectures import shared_memory, warp_size

from .subjects import KERNELS, Subject
from .workers import Failure, Workers

FOLDER = Path(__file__).parents[1] / "tilings"
TRIED, KEPT = 20, 12
"""How many tilings of a subject are compiled, and how many of them are kept."""

_FACTORS = (0.25, 0.5, 1, 2, 4)
_MOST_STAGES = 5
_WARPS = 16
"""Of a multiprocessor, to hide the latency of memory."""


# ---- the grid ----------------------------------------------------------------------------------------------


def grid(subject: Subject) -> list[Any]:
    """The rule's tiling, and others about it, the more alike the earlier.

    Each step of a factor of two counts 1; so does each by which a thread's share of the tiles is larger or smaller,
    as that is what registers have to hold.
    """
    rule = subject.incumbent()
    others = map(type(rule)._make, itertools.product(*(_values(*field) for field in rule._asdict().items())))
    possible = {rule, *(tiling for tiling in others if _possible(tiling, subject))}
    return sorted(possible, key=lambda tiling: (_distance(tiling, rule), *tiling))


def _values(field: str, value: int) -> list[int]:
    if field == "stages":
        return list(range(1, _MOST_STAGES + 1))
    if field == "products":
        return sorted({1, value})
    least, most = tilings.LIMITS[field]
    return [int(value * factor) for factor in _FACTORS if least <= value * factor <= most]


def _possible(tiling: Any, subject: Subject) -> bool:
    # A vector of 128 bits is the least step, and products want 16 pixels.
    span = 1 if subject.channels_last else 8
    pixels, channels, outputs = volume(tiling)
    # Where channels of several taps are the rows of one product, it may have more rows than there are channels.
    most = max(tilings.rounded(subject.channels), subject.incumbent().channels)
    return channels <= most and outputs <= tilings.rounded(subject.channels) and pixels * span >= 16


def volume(tiling: Any) -> tuple[int, int, int]:
    """Pixels (in NCHW of some kernels, vectors of them), channels, and outputs, of which a kernel without has 1."""
    fields = tiling._asdict()
    pixels = fields.get("pixels") or fields.get("sites") or fields["rows"] * fields["positions"]
    return pixels, fields["channels"], fields.get("outputs", 1)


def _distance(tiling: Any, rule: Any) -> float:
    pairs = zip(tiling._fields, tiling, rule, strict=True)
    steps = sum(abs(a - b) if field == "stages" else abs(math.log2(a / b)) for field, a, b in pairs)
    shares = zip(_shares(tiling), _shares(rule), strict=True)
    return steps + sum(abs(math.log2(a / b)) for a, b in shares) / 2


def _shares(tiling: Any) -> tuple[float, float]:
    pixels, channels, outputs = volume(tiling)
    return pixels * channels / tiling.warps, pixels * outputs / tiling.warps


# ---- compiled ahead of time --------------------------------------------------------------------------------


class Compiled(NamedTuple):
    """What the compilers made of a tiling; of a kernel pair the larger numbers."""

    registers: int
    shared: int
    instructions: int
    faults: str
    """Why it is not worth a try: "spills", "serialised"; empty if it is."""


def compiled(subject: Subject, tiling: Any) -> Compiled:
    """Compile a tiling for an architecture that need not be there."""
    kernel = KERNELS[subject.kernel]
    names = [case.format(layout=subject.layout, channels=subject.channels) for case in kernel.cases]
    reports = []
    with tilings.override(subject.key, tiling):
        cases = [case for case in rooms.cases_of(kernel.mechanism).compile_cases(subject.architecture)
                 if case.name in names and case.operand == subject.operand]
    for case in cases:
        report = codegen.compile_case(subject.architecture, case)
        reports.append(report)
        if _faults(report):
            break
    largest = (max(getattr(report, name) for report in reports) for name in Compiled._fields[:3])
    return Compiled(*largest, _faults(reports[-1]))


def _faults(report: codegen.Report) -> str:
    faults = {"spills": report.spills or report.stack, "serialised": report.serialised,
              "shared memory": report.shared > shared_memory(report.architecture)}
    return ", ".join(name for name, found in faults.items() if found)


def score(tiling: Any, found: Compiled, architecture: str) -> float:
    """The less the better: instructions of the hot loop that the warps issue for each product of an element.

    Where registers and shared memory leave room for fewer than 16 warps, in that proportion more.
    """
    blocks = min(65536 // (max(found.registers, 1) * warp_size(architecture) * tiling.warps),
                 shared_memory(architecture) // (found.shared + 1024))
    waiting = max(1.0, _WARPS / max(1, blocks * tiling.warps))
    return found.instructions * tiling.warps / math.prod(volume(tiling)) * waiting


def prepare(subject: Subject, workers: Workers) -> dict[str, Any]:
    """A subject's entry in the list: the rule's tiling, then the best by their score."""
    tried = grid(subject)[:TRIED]
    results = workers.map(compiled, [(subject, tiling) for tiling in tried])
    pairs = list(zip(tried, results, strict=True))
    clean = [(tiling, found) for tiling, found in pairs[1:] if isinstance(found, Compiled) and not found.faults]
    clean.sort(key=lambda pair: score(*pair, subject.architecture))
    rule = [pair for pair in pairs[:1] if isinstance(pair[1], Compiled)]
    # Stages that change nothing make the same code.
    different: dict[Any, tuple[Any, Compiled]] = {}
    for tiling, found in rule + clean:
        different.setdefault((_without_stages(tiling), found), (tiling, found))
    rows = [[*tiling, *found[:3]] for tiling, found in list(different.values())[:KEPT]]
    left_out = [found.reason if isinstance(found, Failure) else found.faults for found in results]
    return {**subject.key._asdict(), "fields": [*tried[0]._fields, *Compiled._fields[:3]], "tilings": rows,
            "left_out": {reason: left_out.count(reason) for reason in sorted(set(left_out)) if reason}}


def _without_stages(tiling: Any) -> tuple[int, ...]:
    return tuple(size for field, size in tiling._asdict().items() if field != "stages")


# ---- the list ----------------------------------------------------------------------------------------------


def read(architecture: str) -> dict[tilings.Key, dict[str, Any]]:
    """The entries of the architecture's list; none where there is no list."""
    path = FOLDER / f"{architecture}.json"
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["subjects"]
    return {tilings.Key(*(entry[name] for name in tilings.Key._fields)): entry for entry in entries}


def write(architecture: str, entries: dict[tilings.Key, dict[str, Any]]) -> Path:
    """Write the list, an entry a line."""
    import triton

    path = FOLDER / f"{architecture}.json"
    lines = ",\n  ".join(json.dumps(entry) for entry in entries.values())
    text = f'{{\n "triton": "{triton.__version__}",\n "subjects": [\n  {lines}\n ]\n}}\n'
    files.write_text(path, text)
    return path


def up_to_date(subject: Subject, entries: dict[tilings.Key, dict[str, Any]]) -> bool:
    """Whether the list has the subject, and the rule is still what it was."""
    found = of_entry(subject, entries)
    return bool(found) and found[0] == subject.incumbent()


def of_entry(subject: Subject, entries: dict[tilings.Key, dict[str, Any]]) -> list[Any]:
    """The tilings that the list has for the subject, the most promising first."""
    entry, kind = entries.get(subject.key), type(subject.incumbent())
    return [kind(*row[:len(kind._fields)]) for row in entry["tilings"]] if entry else []


def to_try(subject: Subject, entries: dict[tilings.Key, dict[str, Any]]) -> list[Any]:
    """The rule's tiling, then the list's, or where it has none those most like the rule's."""
    rule = subject.incumbent()
    others = of_entry(subject, entries) or grid(subject)[:KEPT]
    return [rule, *(tiling for tiling in others if tiling != rule)]
