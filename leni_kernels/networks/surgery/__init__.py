"""Whole networks with a mechanism where ReLUs were."""

from ..forwards import InTurn
from .replace import replace_relu
from .report import Report, Row

__all__ = ["InTurn", "Report", "Row", "replace_relu"]
