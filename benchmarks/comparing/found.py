"""The subjects of every mechanism, found by folder: those of ``cases/<mechanism>/compared.py``."""

from __future__ import annotations

import importlib
import pkgutil

import cases

from .subjects import Subject


def mechanisms() -> list[str]:
    """The names of the folders."""
    return [module.name for module in pkgutil.iter_modules(cases.__path__) if module.ispkg]


def subjects(only: str | None = None, match: str = "") -> list[Subject]:
    """Those of one mechanism, or of all, whose names contain ``match``."""
    return [subject for name in ([only] if only else mechanisms())
            for subject in importlib.import_module(f"cases.{name}.compared").subjects() if match in str(subject)]
