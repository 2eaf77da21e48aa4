"""Whole networks with a mechanism where ReLUs were."""

from .graphs import Rewired, Tracer
from .replace import replace_relu
from .report import Report, Row

__all__ = ["Report", "Rewired", "Row", "Tracer", "replace_relu"]
