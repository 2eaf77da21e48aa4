"""The C++ extension: built where that is possible and left out where it is not, and one build for every PyTorch."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from oldest import HEADERS, needs_headers
from setuptools import Distribution

from leni_kernels.common import extension

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc").rglob("*.cpp"))
COMPILER = os.environ.get("CXX", "c++").split()


def includes_pytorch(path):
    return "#include <torch/" in path.read_text(encoding="utf-8")


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py's names, and the arguments with which it called setup()."""
    monkeypatch.chdir(ROOT)

    def run():
        calls = []
        monkeypatch.setattr("setuptools.setup", lambda **arguments: calls.append(arguments))
        names = runpy.run_path(str(ROOT / "setup.py"))
        arguments, = calls
        return names, arguments

    return run


# ---- setup.py ----------------------------------------------------------------------------------------------


def test_with_a_compiler_it_builds_one_stable_extension(setup_py, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    names, arguments = setup_py()
    assert names["why_not_build"]() is None
    built, = arguments["ext_modules"]
    assert built.name == "leni_kernels._C"
    assert built.py_limited_api
    assert {name for name, _ in built.define_macros} >= {"TORCH_TARGET_VERSION"}
    assert {Path(source).parent.name for source in built.sources} == {"csrc"}


@pytest.fixture
def finalized(setup_py, tmp_path):
    """setup.py's command that builds, about to run, and the file that an earlier build left where it writes."""

    def prepare():
        names, arguments = setup_py()
        command = names["BuildIfPossible"](Distribution(arguments))
        command.build_lib = str(tmp_path)
        command.ensure_finalized()
        stale = Path(command.get_ext_fullpath("leni_kernels._C"))
        stale.parent.mkdir()
        stale.touch()
        return command, stale

    return prepare


def test_without_a_compiler_it_is_left_out(finalized, monkeypatch, capsys):
    command, stale = finalized()
    monkeypatch.setattr("shutil.which", lambda name: None)
    command.run()
    assert capsys.readouterr().err.count("installing without the C++ backend: no C++ compiler was found.") == 1
    assert not stale.exists()


def test_without_torch_it_is_left_out(finalized, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", None)
    command, stale = finalized()
    command.run()
    assert "installing without the C++ backend: torch cannot be imported" in capsys.readouterr().err
    assert not stale.exists()


def test_on_windows_it_is_left_out(finalized, monkeypatch, capsys):
    command, stale = finalized()
    monkeypatch.setattr(sys, "platform", "win32")
    command.run()
    assert "installing without the C++ backend: the C++ backend is not supported on Windows" in capsys.readouterr().err
    assert not stale.exists()


def test_where_it_cannot_be_built_a_required_one_fails(finalized, monkeypatch):
    command, _ = finalized()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setenv("LENI_KERNELS_REQUIRE_EXTENSION", "1")
    with pytest.raises(SystemExit, match=r"the C\+\+ backend is required: no C\+\+ compiler was found"):
        command.run()


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose only C++ file is the smallest, which compiles in no time."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    left = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "leni_kernels", tmp_path / "leni_kernels", ignore=left)
    (tmp_path / "csrc").mkdir()
    shutil.copy(ROOT / "csrc" / "module.cpp", tmp_path / "csrc")
    return tmp_path


def build(checkout, kind, **environment):
    """What pip runs to build a "wheel" or an "editable", and the extensions that are installed by it."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('wheels')"
    process = subprocess.run([sys.executable, "-c", code], cwd=checkout, env={**os.environ, **environment},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if kind == "editable":
        return process, sorted(path.name for path in (checkout / "leni_kernels").glob("_C.*"))
    names = [name for wheel in (checkout / "wheels").glob("*.whl") for name in ZipFile(wheel).namelist()]
    return process, [Path(name).name for name in names if name.startswith("leni_kernels/_C.")]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_one_that_does_not_compile_is_left_out_and_none_stays_from_before(checkout, kind):
    process, extensions = build(checkout, kind)
    assert process.returncode == 0, process.stdout
    assert extensions == ["_C.abi3.so"]
    (checkout / "csrc" / "broken.cpp").write_text("#error broken on purpose\n")
    process, extensions = build(checkout, kind)
    assert process.returncode == 0, process.stdout
    assert "broken on purpose" in process.stdout
    assert process.stdout.count("installing without the C++ backend: it did not compile (pip install --verbose") == 1
    assert extensions == []


def test_a_compiler_that_fails_leaves_it_out_unless_it_is_required(checkout):
    process, extensions = build(checkout, "wheel", CXX="false")
    assert process.returncode == 0, process.stdout
    assert extensions == []
    process, _ = build(checkout, "wheel", CXX="false", LENI_KERNELS_REQUIRE_EXTENSION="1")
    assert process.returncode != 0


# ---- one build for every PyTorch -----------------------------------------------------------------------------


def everything_in(path):
    """A source file, and the headers of this package that it includes, and they."""
    found = [path]
    for name in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8")):
        found += everything_in(ROOT / "csrc" / name)
    return found


def test_objects_of_an_instruction_set_include_no_pytorch():
    """An inline function of it, compiled for AVX-512, could be the copy that the linker keeps for all."""
    of_a_set = [path for path in SOURCES if "GCC target" in path.read_text(encoding="utf-8")]
    assert len(of_a_set) > 5
    assert not [path for source in of_a_set for path in everything_in(source) if includes_pytorch(path)]


@needs_headers
def test_the_oldest_pytorch_is_the_one_that_setup_py_targets(setup_py):
    text = (HEADERS / "torch" / "headeronly" / "version.h").read_text(encoding="utf-8")
    major, minor = (int(re.search(rf"#define TORCH_VERSION_{part} (\d+)", text)[1]) for part in ("MAJOR", "MINOR"))
    assert setup_py()[0]["TORCH_TARGET_VERSION"] == f"0x{major:02x}{minor:02x}{0:012x}"
    assert f'dependencies = ["torch>={major}.{minor}"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@needs_headers
@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")
@pytest.mark.parametrize("path", [path for path in SOURCES if includes_pytorch(path)], ids=lambda path: path.stem)
def test_it_compiles_with_the_oldest_pytorchs_headers(setup_py, path):
    """A function may be in the stable ABI of an old PyTorch and missing in its headers."""
    built, = setup_py()[1]["ext_modules"]
    macros = [f"-D{name}={value}" for name, value in built.define_macros]
    command = [*COMPILER, "-fsyntax-only", *built.extra_compile_args, *macros, "-Icsrc", "-isystem", HEADERS, path]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@needs_headers
@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to read the extension's symbols with")
def test_it_asks_for_nothing_that_the_oldest_pytorch_lacks():
    """Of PyTorch it needs functions of the stable C interface alone, all of them in the oldest headers."""
    command = ["nm", "--dynamic", "--undefined-only", sys.modules["leni_kernels._C"].__file__]
    symbols = re.findall(r"U (\w+)", subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    wanted = {name for name in symbols if name.startswith(("aoti_torch_", "torch_"))}
    text = "".join(path.read_text(encoding="utf-8") for path in (HEADERS / "torch" / "csrc").rglob("shim*.h"))
    assert "torch_call_dispatcher" in wanted
    assert wanted <= set(re.findall(r"\w+", text))
    assert not [name for name in symbols if re.match("_ZN?K?(2at|3c10|5torch)", name)]


OTHERS = [folder for folder in (ROOT / ".venv", ROOT / ".venv-oldest")
          if (folder / "prepared").is_file() and folder.resolve() != Path(sys.prefix).resolve()]


@pytest.mark.skipif(not OTHERS, reason="there is no environment with another PyTorch: make test-oldest makes one")
@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize("folder", OTHERS, ids=lambda folder: folder.name)
def test_it_runs_on_another_pytorch_than_it_was_built_with(folder):
    command = [folder / "bin" / "python", "tests/every_operator.py", sys.modules["leni_kernels._C"].__file__]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.strip() != torch.__version__
