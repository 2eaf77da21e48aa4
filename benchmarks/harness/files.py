"""Files that are whole or as they were: one that cannot be written, as on a full disk, leaves no half and is named."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class CannotWrite(Exception):
    """A file that could not be written; the message names it and says why."""


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong as it is written.

    Raises:
        CannotWrite: if the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another path to write to, whose file takes the place of ``path`` when the block has ended without an error.

    Raises:
        CannotWrite: if the file, or its folder, cannot be written.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        with named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, creating its folder.

    Raises:
        CannotWrite: if it cannot be written.
    """
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
