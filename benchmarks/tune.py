"""Find the fastest tiling of each GPU kernel, at each of the papers' shapes.

    python benchmarks/tune.py --device cuda --keep        five minutes, for all later processes of this user
    python benchmarks/tune.py --prepare --arch sm_89      before that: compile what is worth a try, without the GPU
    python benchmarks/tune.py --rehearse                  the same without a GPU; its times mean nothing

--prepare needs no GPU. It compiles a grid of tilings about each rule's for an architecture and keeps those without
spills and serialised products, the most promising first, in benchmarks/tilings. A run that is stopped goes on where it
was; what the list has is done again where the rule has changed.

--device cuda times them, or where there is no list for the GPU those most like the rule's: the important kernels first,
until the budget is spent. A tiling counts whose outputs are as near the definition in float64 as the rule's; it
replaces the rule's if it is faster by more than 2 % and by more than the times spread. Results go to
tune-ARCHITECTURE.json in the output folder, subject by subject, in the form of the package's own tilings.json. --keep
puts them into the user's table, --adopt a file's into the package's. What is faster in bfloat16 also gets float16's
entry, once its outputs there are right.

--rehearse does the same on a CPU, in Triton's interpreter, with tiny shapes: its times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import codegen
import torch
from harness import command, files, machine, report
from tuning import candidates, race, subjects
from tuning.workers import Workers

from leni_kernels.common.gpu import support, tilings
from leni_kernels.common.gpu.architectures import why_unsupported


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _options(arguments)
    if options.adopt:
        return _adopt(options.adopt)
    if options.prepare:
        return _prepare(options)
    if options.rehearse and not support.interpreting:
        return _in_the_interpreter(arguments)
    return _tune(options)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--prepare", action="store_true", help="compile the tilings that are worth a try; needs no GPU")
    work.add_argument("--device", choices=["cuda"], help="time them on this machine's GPU")
    work.add_argument("--rehearse", action="store_true", help="the same without a GPU; its times mean nothing")
    work.add_argument("--adopt", type=Path, metavar="FILE", help="put a run's tilings into the package's own table")
    parser.add_argument("--arch", default="sm_90", help="of --prepare, as compilers call it; default: sm_90")
    parser.add_argument("--match", default="", help="only subjects with this in their name")
    parser.add_argument("--budget", type=float, default=300.0, metavar="SECONDS", help="of --device; default: 300")
    parser.add_argument("--keep", action="store_true",
                        help=f"put them into the user's table, {tilings.cache_folder()}, which every process reads")
    command.add_output(parser)
    parser.add_argument("--workers", type=int, default=machine.cores(), help="that compile; default: one per core")
    options = command.parse(parser, arguments)
    if options.budget <= 0:
        command.refuse(parser, f"--budget must be positive, got {options.budget:g}")
    if support.why_missing is not None:
        command.refuse(parser, support.why_missing)
    for folder in _folders(options):
        command.check_folder(parser, folder)
    return options


def _folders(options: argparse.Namespace) -> Iterator[Path]:
    """Where something is written, besides the results."""
    if options.prepare:
        yield candidates.FOLDER
    if options.adopt:
        yield _packaged().parent
    if options.keep:
        yield tilings.cache_folder()


def _prepare(options: argparse.Namespace) -> int:
    if why_unsupported(options.arch) is not None:
        print(f"--arch: {why_unsupported(options.arch)}", file=sys.stderr)
        return 1
    entries = candidates.read(options.arch)
    found = subjects.subjects(options.arch, subjects.OPERANDS[0], options.match)
    missing = [subject for subject in found if not candidates.up_to_date(subject, entries)]
    report.say(f"{len(found) - len(missing)} of {len(found)} subjects are up to date")
    with codegen.temporary_cache(), Workers(options.workers) as workers, report.progress(len(missing)) as step:
        for subject in missing:
            step(str(subject))
            entries[subject.key] = candidates.prepare(subject, workers)
            candidates.write(options.arch, entries)
    failed = [subject for subject in missing if not candidates.up_to_date(subject, entries)]
    for subject in failed:
        reasons = entries[subject.key]["left_out"]
        print(f"{subject}: the rule's own tiling cannot be compiled: {reasons}", file=sys.stderr)
    return 1 if failed else 0


def _adopt(path: Path) -> int:
    try:
        table = tilings.read(path)
    except (OSError, ValueError) as error:
        print(f"{path} is no table of tilings: {error}", file=sys.stderr)
        return 1
    _write(_packaged(), {**tilings.packaged(), **table})
    report.say(f"{len(table)} tilings are in the package's table")
    return 0


def _in_the_interpreter(arguments: list[str] | None) -> int:
    """The same command in a process whose kernels are the interpreter's, and which leaves nothing behind."""
    command = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "LENI_KERNELS_CACHE": folder}
        return subprocess.run([*command, "--keep", "--output", folder], env=environment).returncode


def _tune(options: argparse.Namespace) -> int:
    device = torch.device("cpu" if options.rehearse else "cuda")
    architecture = support.architecture(torch.empty(0, device=device))
    if why_unsupported(architecture) is not None:
        print(f"--device cuda: {why_unsupported(architecture)}", file=sys.stderr)
        return 1
    plan = race.REHEARSAL if options.rehearse else race.plan(device)
    path = options.output / f"tune-{architecture or 'rehearsal'}.json"
    rows: list[race.Row] = []
    table: dict[tilings.Key, dict[str, int]] = {}
    facts = {**machine.facts(device), "budget": options.budget, "match": options.match}
    _write(path, table, **facts, rows=rows)
    with Workers(race.at_once(device, options.workers)) as workers:
        for row, won in race.run(plan, architecture, options.match, options.budget, workers):
            rows += row
            table |= won
            _note(row)
            _write(path, table, **facts, rows=[row._asdict() for row in rows])
    every = len(subjects.subjects(architecture, plan.operands[0], options.match, plan.sizes))
    timed = sum(row.timed > 0 for row in rows)
    report.say(f"{timed} of {every} subjects were timed, and {len(table)} tilings replace the rule's: {path}")
    if options.keep:
        _keep(table)
    return 1 if any(row.refused for row in rows) else 0


def _packaged() -> Path:
    """The package's own table."""
    return Path(tilings.__file__).with_name(tilings.NAME)


def _write(path: Path, table: tilings.Table, **facts: Any) -> None:
    with files.named(path):
        tilings.write(path, table, **facts)


def _keep(table: tilings.Table) -> None:
    try:
        report.say(f"They are in the user's table: {tilings.save(table)}")
    except OSError as error:
        print(f"They are not in the user's table, {tilings.cache_folder() / tilings.NAME}: {error}", file=sys.stderr)


def _note(rows: list[race.Row]) -> None:
    for row in rows:
        best = " ".join(f"{name}={size}" for name, size in row.best.items())
        found = row.refused or "not taken over"
        if row.microseconds is not None:
            found = f"{row.microseconds:.1f} µs, {row.ratio:.3f} times as fast as the rule's, of {row.timed}"
        left_out = f"; left out: {row.left_out}" if row.left_out else ""
        report.say(f"{row.subject:<52} {found}: {best}{left_out}")


if __name__ == "__main__":
    sys.exit(command.run(main))
