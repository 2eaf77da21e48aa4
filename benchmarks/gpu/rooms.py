"""The Triton rooms of the package, found by folder: ``leni_kernels/<mechanism>/gpu/``."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

import leni_kernels


def mechanisms() -> tuple[str, ...]:
    """The folders that have kernels whose ``cases.py`` says what is compiled of them ahead of time."""
    return tuple(package.name for package in pkgutil.iter_modules(leni_kernels.__path__) if package.ispkg
                 and importlib.util.find_spec(f"leni_kernels.{package.name}.gpu")
                 and importlib.util.find_spec(f"leni_kernels.{package.name}.gpu.cases"))


def of(mechanism: str) -> list[ModuleType]:
    """The modules of one mechanism's folder."""
    package = importlib.import_module(f"leni_kernels.{mechanism}.gpu")
    return [importlib.import_module(f"{package.__name__}.{module.name}")
            for module in pkgutil.iter_modules(package.__path__)]


def cases_of(mechanism: str) -> ModuleType:
    """The module whose ``compile_cases(architecture)`` are compiled."""
    return importlib.import_module(f"leni_kernels.{mechanism}.gpu.cases")
