"""The subjects of every mechanism, found by folder: those of ``cases/<mechanism>/compared.py``."""

from __future__ import annotations

import cases

from .subjects import Subject


def subjects(only: str | None = None, match: str = "") -> list[Subject]:
    """Those of one mechanism, or of all, whose names contain ``match``."""
    return [subject for name, module in cases.modules("compared").items() if only in (None, name)
            for subject in module.subjects() if match in str(subject)]
