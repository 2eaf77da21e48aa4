"""Tilings that somebody measured: tables of plain data, which the rules in a mechanism's ``configs.py`` give way to.

The user's table is looked in first, then the package's, ``tilings.json`` beside this file. The user's is written by
``benchmarks/tune.py --keep``: ``tilings.json`` in the folder that LENI_KERNELS_CACHE names, or else in ``leni_kernels``
under $XDG_CACHE_HOME or ~/.cache. One that cannot be read, or that another version of the package made, is left aside
with a warning. Tables are read at the first launch of a kernel, once in a process.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .support import full_vector, power_of_two

FORMAT = 1
"""Of the files: the meaning of their keys."""

NAME = "tilings.json"
LAYOUTS = ("NCHW", "channels-last")
OPERANDS = ("fp16", "bf16", "tf32", "fp32", "fp64")


class Key(NamedTuple):
    """What a tiling is for."""

    kernel: str
    """Its mechanism and pass: "leni folded", "conv_relu input"."""
    architecture: str
    """As compilers call it: "sm_90", "gfx942"."""
    layout: str
    channels: int
    """Of a group, rounded up to a power of two from 16 to 256, as ``outputs`` are."""
    outputs: int
    taps: int
    """k² of a kernel of k×k; 1 where the pass has none."""
    operand: str
    """What is multiplied: "fp16", "bf16", "tf32", "fp32" or "fp64"."""


Table = Mapping[Key, Mapping[str, int]]
Tiling = TypeVar("Tiling")

LIMITS = {
    "rows": (1, 8), "positions": (1, 1024), "pixels": (16, 1024), "sites": (16, 1024),
    "channels": (16, 256), "outputs": (16, 256), "warps": (1, 32), "stages": (1, 8), "products": (1, 4),
    "columns": (1, 8),
}
"""Of each field of a tiling: products want 16 of whatever they multiply, and an SM has so many threads."""

_overrides: dict[Key, Any] = {}
_with_users = True


def rounded(channels: int) -> int:
    """Channels as tables count them: the next power of two, from 16 to 256."""
    return min(256, max(16, power_of_two(channels)))


@cache  # each launch asks for one
def key(kernel: str, channels: int, outputs: int, taps: int, operand: str, architecture: str,
        channels_last: bool) -> Key:
    """The key of a problem with any number of channels."""
    return Key(kernel, architecture, LAYOUTS[channels_last], rounded(channels), rounded(outputs), taps, operand)


def find(tiling: type[Tiling], wanted: Key) -> Tiling | None:
    """The ``tiling``, a named tuple, that a table has for the key, or None."""
    if wanted in _overrides:
        return _overrides[wanted]
    fields = (_both() if _with_users else packaged()).get(wanted)
    if fields is None:
        return None
    try:
        return tiling(**fields)
    except TypeError:
        _warn_once(f"a table's tiling for {wanted.kernel} is ignored: it has other fields: {dict(fields)}")
        return None


@contextmanager
def override(wanted: Key, tiling: Any | None) -> Iterator[None]:
    """Have :func:`find` return ``tiling`` for the key in this process; None is what no table has."""
    before = _overrides.copy()
    _overrides[wanted] = tiling
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


@contextmanager
def without_users() -> Iterator[None]:
    """Leave the user's table out of what :func:`find` looks in, in this process."""
    global _with_users
    before, _with_users = _with_users, False
    try:
        yield
    finally:
        _with_users = before


# ---- the files ---------------------------------------------------------------------------------------------


@cache
def packaged() -> Table:
    """The package's own table: where a rule's tiling spills registers, or was measured to be slower."""
    return read(Path(__file__).with_name(NAME))


@cache
def _both() -> Table:
    return {**packaged(), **_users()}


def _users() -> Table:
    path = cache_folder() / NAME
    try:
        return read(path, _version())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _warn_once(f"{path} is ignored, and the package's own tilings are used: {error}")
        return {}


def cache_folder() -> Path:
    """Where the user's table lies."""
    folder = os.environ.get("LENI_KERNELS_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "leni_kernels"


def save(table: Table) -> Path:
    """Put the entries into the user's table, beside its others; returns the file.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = cache_folder() / NAME
    try:
        before = read(path, _version())
    except (OSError, ValueError):
        before = {}
    write(path, {**before, **table})
    return path


def read(path: Path, version: str | None = None) -> Table:
    """The table in a file, which, if a version is given, that version of the package has to have made.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: if it is of another format or version, or an entry cannot be one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"it is not a table of format {FORMAT}")
    if version is not None and content.get("version") != version:
        raise ValueError(f"leni_kernels {content.get('version')} made it, and this is {version}")
    entries = content.get("tilings")
    if not isinstance(entries, list):
        raise ValueError("it has no list of tilings")
    return dict(map(_entry, entries))


def write(path: Path, table: Table, **facts: Any) -> None:
    """Write a table, an entry a line, with ``facts`` about its making that nobody reads back."""
    head = json.dumps({"format": FORMAT, "version": _version(), **facts}, indent=1, ensure_ascii=False,
                      allow_nan=False)
    entries = (json.dumps({**wanted._asdict(), "tiling": dict(fields)}) for wanted, fields in table.items())
    text = head.removesuffix("\n}") + ',\n "tilings": [\n  ' + ",\n  ".join(entries) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever reads meanwhile finds the old file or the new one.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _version() -> str:
    from ... import __version__

    return __version__


def _entry(content: Any) -> tuple[Key, dict[str, int]]:
    """One entry of a file, as what a launch can use."""
    if not isinstance(content, dict) or set(content) != {*Key._fields, "tiling"}:
        raise ValueError(f"an entry has to have {', '.join(Key._fields)} and tiling: {content}")
    found, tiling = Key(*(content[name] for name in Key._fields)), content["tiling"]
    texts = all(isinstance(text, str) for text in (found.kernel, found.architecture))
    if not texts or found.layout not in LAYOUTS or found.operand not in OPERANDS:
        raise ValueError(f"there is no such kernel, layout or operand: {content}")
    counts = type(found.taps) is int and found.taps > 0
    if not counts or any(type(size) is not int or size != rounded(size) for size in (found.channels, found.outputs)):
        raise ValueError(f"channels and outputs are powers of two from 16 to 256, and taps 1 or more: {content}")
    if not isinstance(tiling, dict) or not all(_possible(*field) for field in tiling.items()):
        raise ValueError(f"a tiling has powers of two, each in its limits {LIMITS}: {content}")
    # In NCHW such a position is a vector.
    span = 1 if found.layout == "channels-last" else full_vector(found.operand)
    if {"rows", "positions", "outputs"} <= set(tiling) and tiling["rows"] * tiling["positions"] * span < 16:
        raise ValueError(f"a product has fewer than 16 pixels: {content}")
    return found, tiling


def _possible(name: str, value: Any) -> bool:
    least, most = LIMITS.get(name, (1, 0))
    return type(value) is int and least <= value <= most and (
        name in ("stages", "products") or value == power_of_two(value))


@cache
def _warn_once(message: str) -> None:
    warnings.warn(f"leni_kernels: {message}", stacklevel=3)
