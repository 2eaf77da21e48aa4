"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import images
from .source import Source

DATASETS: dict[str, Callable[[Path], Source]] = {
    "digits": lambda folder: images.digits(),
    "fashion-mnist": images.fashion_mnist,
}
FILES = {"fashion-mnist": "train-images-idx3-ubyte and its three siblings, gzipped or not"}
"""What each set's folder is to hold, in a line."""

TEXTS: tuple[str, ...] = ()
"""The sets of texts; the others are images."""

WITHOUT_FILES = ("digits",)
"""The sets that need no folder."""


def load(name: str, folder: Path | None) -> Source:
    """A data set from a folder, whose files :data:`DATASETS`'s functions name.

    Raises:
        BadData: if files are missing, or are not what they should be.
    """
    return DATASETS[name](folder or Path())
