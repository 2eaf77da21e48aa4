"""The oldest versions that the package supports, in parts, for tests on newer ones; ``make test`` fetches them."""

from pathlib import Path

import pytest

_PARTS = Path(__file__).parents[1] / ".oldest"
_REASON = "the parts of the oldest versions are not here: make .oldest/prepared"

HEADERS = _PARTS / "torch" / "include"
"""PyTorch's headers."""

PYTHON = _PARTS / "python"
"""A folder for PYTHONPATH, with Triton and a NumPy that its interpreter runs with."""

needs_headers = pytest.mark.skipif(not HEADERS.is_dir(), reason=_REASON)
needs_triton = pytest.mark.skipif(not (PYTHON / "triton").is_dir(), reason=_REASON)
