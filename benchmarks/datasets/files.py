"""Files as people have them: where they lie, and what is said of those that are missing or of another form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .source import BadData


def within(folder: Path, *usual: str) -> Path:
    """The first of the ``usual`` sub-folders that is there, else the folder itself.

    Raises:
        BadData: if there is no such folder.
    """
    if not folder.is_dir():
        raise BadData(f"there is no folder {folder}")
    return next((folder / place for place in usual if (folder / place).is_dir()), folder)


@contextlib.contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """While a file is read that should have a form ("a picture").

    Raises:
        BadData: if there is no such file, or its reader fails.
    """
    if not path.is_file():
        raise BadData(f"there is no file {path}, where {form} is wanted")
    try:
        yield
    except ImportError:  # a reader that is not there says nothing of the file
        raise
    except Exception as error:  # whatever a file may do to a reader
        reason = (str(error).splitlines() or [""])[0]
        raise BadData(f"{path} is not {form} ({type(error).__name__}: {reason})") from error
