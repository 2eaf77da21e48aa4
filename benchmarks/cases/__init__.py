"""What is measured: a folder for each mechanism, the same files in each, and nowhere a list of them.

``inference.py`` and ``training.py`` are the parts of the throughput benchmark. Each has ``TITLE``, ``SECONDS`` to
sample a case ("cpu", "cuda", "quick"), ``cases(quick)`` and ``measure``, which returns a case's row of the results;
``TABLE`` says how rows are shown, and ``PICTURE``, unless it is None, how they are drawn. What the two share is in
``shared.py``. ``bars.py`` has the numbers to reach (``CPU``, ``GPU``, ``OVERHEAD``), ``overhead.py`` the ``SUBJECTS``
whose calls are timed on a tiny input, and ``compared.py`` the ``subjects()`` that two commits are compared on.

The folder's own ``ORDER`` says where the mechanism comes in tables.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from types import ModuleType

WORKS = ("inference", "training")


def mechanisms() -> list[str]:
    """The names of the folders, in their order."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    return sorted(names, key=lambda name: (importlib.import_module(f"cases.{name}").ORDER, name))


def modules(file: str) -> dict[str, ModuleType]:
    """A file of each folder that has it, by the mechanism."""
    return {name: importlib.import_module(f"cases.{name}.{file}") for name in mechanisms()
            if importlib.util.find_spec(f"cases.{name}.{file}")}


def parts() -> dict[str, ModuleType]:
    """The parts of the throughput benchmark, by the name of their list in the results: "leni_inference"."""
    found = {work: modules(work) for work in WORKS}
    return {f"{name}_{work}": found[work][name] for name in mechanisms() for work in WORKS if name in found[work]}
