"""What every program's command line shares: how it runs and refuses, how its help reads, and where it writes."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from .files import CannotWrite

BENCHMARKS = Path(__file__).parents[1]
OUT, RESULTS = BENCHMARKS / "out", BENCHMARKS / "results"
"""Where programs write by default, which git ignores; and with ``--save``, which is committed."""

ROOT = BENCHMARKS.parent


def run(main: Callable[[], int]) -> int:
    """Run a program from a shell; returns its exit status, which is 2 where a file cannot be written: a line says so.

    Characters that the terminal's encoding lacks are replaced.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        return main()
    except CannotWrite as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2


class _Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph by itself, and leaves indented ones, which are commands, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(part if part.startswith(" ") else fill(part, width, indent) for part in text.split("\n\n"))


def parser(file: str) -> argparse.ArgumentParser:
    """A parser whose help is the program's docstring: the first paragraph before the options, the others after.

    It is read from the file, since ``python -OO`` leaves none in memory.
    """
    documentation = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8")))
    first, _, rest = documentation.replace("``", "").partition("\n\n")
    return argparse.ArgumentParser(prog=Path(file).name, description=first, epilog=rest, formatter_class=_Paragraphs)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where results go: a folder that git ignores, unless the command says otherwise."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", metavar="DIR", type=Path, default=OUT,
                       help=f"the folder for the results; default: {_short(OUT)}, which git ignores")
    where.add_argument("--save", dest="output", action="store_const", const=RESULTS,
                       help=f"put the results into {_short(RESULTS)}, which is committed")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The device to measure."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one",
                        default="cuda" if _has_gpu() else "cpu")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; one that cannot be had here ends the program with a line and status 2."""
    options = parser.parse_args(arguments)
    if getattr(options, "device", None) == "cuda" and not _has_gpu():
        refuse(parser, "--device cuda: PyTorch sees no GPU here")
    for name in ("threads", "workers", "rounds"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            refuse(parser, f"--{name} must be at least 1, got {value}")
    if isinstance(getattr(options, "output", None), Path):
        check_folder(parser, options.output, "--output: ")
    return options


def check_folder(parser: argparse.ArgumentParser, folder: Path, what: str = "") -> None:
    """End the program, before it has measured anything, if nothing can be written into a folder."""
    reason = why_not_writable(folder)
    if reason is not None:
        refuse(parser, f"{what}{reason}")


ENOUGH = 2**20
"""Bytes that must fit into a folder for results: what is in most JSON files, and more than a full disk takes."""


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which is created if need be; None if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ENOUGH))
            file.flush()
        return None
    except OSError as error:
        return f"cannot write into {_short(folder)}: {error.strerror}"


def saves(options: argparse.Namespace) -> bool:
    """Whether the results are to be committed."""
    return options.output == RESULTS


def need(parser: argparse.ArgumentParser, packages: Iterable[str]) -> None:
    """End the program unless the packages can be imported, before it has measured anything."""
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError) as error:
            refuse(parser, f"needs {package}, which cannot be imported ({error}); "
                           "`pip install .[benchmark]` installs all that the benchmarks need")


def refuse(parser: argparse.ArgumentParser, reason: str) -> NoReturn:
    """End the program with a line that says why, and status 2."""
    parser.exit(2, f"{parser.prog}: {reason}\n")


def _has_gpu() -> bool:
    import torch  # not with this module: what watches over processes on a GPU does without

    return torch.cuda.is_available()


def _short(path: Path) -> str:
    """A path, from the checkout on where it lies in it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
