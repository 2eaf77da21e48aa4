"""The compiled C++ backend, if this installation has it: importing registers its operators with PyTorch."""

from __future__ import annotations

why_missing: str | None = None
"""Why the C++ operators are not registered, or None if they are."""

try:
    from . import _C  # noqa: F401
except ImportError as error:
    why_missing = f"the C++ extension is not available in this installation ({error})"
