"""The plan of the house: every mechanism has the same rooms, and imports point one way."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "leni_kernels"
MECHANISMS = ("leni", "reborn", "conv_relu", "pointwise")

BELOW = {
    "common": set(), "two_branch": {"common"}, "pointwise": {"common"}, "conv_relu": {"common", "pointwise"},
    "leni": {"common", "two_branch"}, "reborn": {"common", "two_branch", "conv_relu"},
    "networks": {"common", *MECHANISMS},
}
"""What the modules of a folder may import besides their own: ConvReLU's threshold is AdaReLU's, and folded Reborn runs
on ConvReLU's kernels."""

ORDER = ("reference", "gpu", "flops", "ops", "modules")
"""The rooms of a mechanism: each imports only those before it."""


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of the package that a file imports, by their path below it."""
    own, found = path.relative_to(ROOT).with_suffix("").parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = own[:len(own) - node.level] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {name[1:] for name in names if name[0] == "leni_kernels"}
    return found


@pytest.mark.parametrize("folder", BELOW)
def test_a_folder_imports_only_what_is_below_it(folder):
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == set(BELOW)
    allowed = {folder, *BELOW[folder], "__version__"}
    for path in (PACKAGE / folder).rglob("*.py"):
        assert {name[0] for name in imported(path) if name} <= allowed, path


@pytest.mark.parametrize("folder", [*MECHANISMS, "two_branch"])
def test_a_room_imports_only_those_below_it(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        room = path.relative_to(PACKAGE / folder).parts[0].removesuffix(".py")
        if room in ORDER:
            own = {name[1] for name in imported(path) if len(name) > 1 and name[0] == folder and name[1] in ORDER}
            assert own <= set(ORDER[:ORDER.index(room) + 1]), path


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_mechanism_has_the_same_rooms_as_every_other(mechanism):
    rooms = [f"leni_kernels/{mechanism}/{room}" for room in (
        "reference.py", "ops.py", "modules.py", "gpu/forward.py", "gpu/backward.py", "gpu/cases.py")]
    rooms += [f"csrc/{mechanism}/{room}" for room in (
        "problem.h", "operators.cpp", "kernels.cpp", "forward.h", "backward.h")]
    rooms += [f"tests/{mechanism}/{room}" for room in ("test_definition.py", "test_triton.py")]
    rooms += [f"benchmarks/cases/{mechanism}/{room}" for room in ("inference.py", "training.py")]
    assert [room for room in rooms if not (ROOT / room).is_file()] == []


@pytest.mark.parametrize("folder", ["kernels", "pytorch", "two_branch", *MECHANISMS])
def test_a_folder_of_csrc_includes_only_what_is_below_it(folder):
    allowed = {"kernels": set(), "pytorch": {"kernels"}, "pointwise": {"kernels", "pytorch"},
               "two_branch": {"kernels", "pytorch"}, "conv_relu": {"kernels", "pytorch"}}
    below = allowed.get(folder, {"kernels", "pytorch", "two_branch"}) | {folder}
    for path in (ROOT / "csrc" / folder).iterdir():
        assert set(re.findall(r'#include "(\w+)/', path.read_text(encoding="utf-8"))) <= below, path


def test_what_the_library_says_is_printed_by_any_terminal():
    for path in PACKAGE.rglob("*.py"):
        if path.name == "cases.py":
            continue  # names of what is compiled ahead of time
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        said = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
                and isinstance(node.value, str) and id(node) not in documentation]
        assert [text for text in said if not text.isascii()] == [], path
