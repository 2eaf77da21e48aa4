"""The API pages have every public name, and the docstrings they are made of every argument."""

import inspect
import re
from pathlib import Path

import pytest

import leni_kernels

PAGES = Path(__file__).parents[2] / "docs" / "api"
MODULES = {"leni_kernels": leni_kernels, "leni_kernels.functional": leni_kernels.functional,
           "leni_kernels.surgery": leni_kernels.surgery}
NAMES = {f"{path}.{name}": getattr(module, name) for path, module in MODULES.items() for name in module.__all__}
THINGS = {path: thing for path, thing in NAMES.items() if not inspect.ismodule(thing)}


def shown():
    return {name for page in PAGES.glob("*.md")
            for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


def test_every_module_of_public_names_is_looked_into():
    assert {path for path, thing in NAMES.items() if inspect.ismodule(thing)} == MODULES.keys() - {"leni_kernels"}


def test_the_pages_have_every_public_name_and_no_other():
    pages = shown()
    assert pages <= THINGS.keys()
    things = [THINGS[path] for path in pages]
    assert not [path for path, thing in THINGS.items() if thing not in things]


@pytest.mark.parametrize("path", THINGS)
def test_the_docstring_names_every_argument(path):
    thing = THINGS[path]
    text = inspect.getdoc(thing)
    assert thing.__doc__, "its own, and not a parent's"
    if re.search("otherwise as :class:`ConvReLU2d`", text, re.IGNORECASE) or "Args:" not in text:
        return
    arguments = set(inspect.signature(thing).parameters)
    described = set(re.findall(r"^    \*{0,2}(\w+):", text.partition("Args:")[2].partition("\n\n")[0], re.MULTILINE))
    assert described == arguments


@pytest.mark.parametrize("path", [path for path, thing in THINGS.items() if inspect.isfunction(thing)])
def test_functions_have_arguments_described_and_say_what_they_raise(path):
    text = inspect.getdoc(THINGS[path])
    if inspect.signature(THINGS[path]).parameters:
        assert "Args:" in text
    assert "Raises:" in text or "in what it raises" in text
