"""The C++ extension: built where that is possible and left out where it is not, and one build for every PyTorch."""

import json
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from oldest import HEADERS, needs_headers
from setuptools import Distribution

import leni_kernels as lk
from leni_kernels.common import extension

ROOT = Path(__file__).parents[1]
LIBRARY = "libleni_kernels.so"
SOURCES = sorted((ROOT / "csrc").rglob("*.cpp"))
COMPILER = os.environ.get("CXX", "c++").split()
needs_extension = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to read the extension's symbols with")
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")


def everything_in(path, found=()):
    """A source file, and the headers of this package that it includes, and they, beside what was found before."""
    found = {*found, path}
    for name in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8")):
        if ROOT / "csrc" / name not in found:
            found = everything_in(ROOT / "csrc" / name, found)
    return found


def undefined_symbols():
    """What the extension needs of other libraries."""
    command = ["nm", "--dynamic", "--undefined-only", extension.library_path()]
    return re.findall(r"U (\w+)", subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def includes_pytorch(path):
    return any("#include <torch/" in file.read_text(encoding="utf-8") for file in everything_in(path))


# ---- setup.py ----------------------------------------------------------------------------------------------


@needs_compiler
def test_with_a_compiler_it_builds_one_stable_extension(setup_py):
    names, arguments = setup_py()
    assert names["why_not_build"]() is None
    built, = arguments["ext_modules"]
    assert built.name == names["LIBRARY"]
    assert {name for name, _ in built.define_macros} >= {"TORCH_TARGET_VERSION"}
    assert {Path(source).parts[0] for source in built.sources} == {"csrc"}


@pytest.fixture
def finalized(setup_py, tmp_path):
    """setup.py's command that builds, about to run, and the file that an earlier build left where it writes."""

    def prepare():
        names, arguments = setup_py()
        command = names["BuildIfPossible"](Distribution(arguments))
        command.build_lib = str(tmp_path)
        command.ensure_finalized()
        stale = Path(command.get_ext_fullpath(names["LIBRARY"]))
        assert stale.name == LIBRARY
        stale.parent.mkdir(exist_ok=True)
        stale.touch()
        return command, stale

    return prepare


def test_without_a_compiler_it_is_left_out(finalized, monkeypatch, capsys):
    command, stale = finalized()
    monkeypatch.setenv("CXX", "nonexistent --flag")
    command.run()
    line = "installing without the C++ backend: there is no compiler 'nonexistent'; a compiler of C++20 is wanted"
    assert capsys.readouterr().err.count(line) == 1
    assert not stale.exists()


def test_the_package_keeps_the_reason_until_it_is_built(finalized, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "nonexistent")
    command, stale = finalized()
    command.run()
    reason = stale.with_name("_without_extension.txt")
    assert f"the C++ backend: {reason.read_text(encoding='utf-8')}." in capsys.readouterr().err
    command, _ = finalized()
    monkeypatch.setitem(command.run.__globals__, "why_not_build", lambda: None)
    monkeypatch.setattr(type(command).__bases__[0], "run", lambda command: None)
    command.run()
    assert not reason.exists()


def program(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(("script", "reason"), [
    ('#!/bin/sh\ncase "$*" in *c++20*) exit 1;; esac\n', "compiles no C++20; a compiler of C++20 is wanted"),
    ("not a program", "compiles no C++20; a compiler of C++20 is wanted"),
])
def test_a_compiler_that_will_not_do_is_told_before_the_build(setup_py, monkeypatch, tmp_path, script, reason):
    compiler = program(tmp_path / "c++", script)
    monkeypatch.setenv("CXX", str(compiler))
    assert reason in setup_py()[0]["why_not_build"]()


def test_without_its_sources_it_is_left_out(setup_py, monkeypatch, tmp_path):
    why_not_build = setup_py()[0]["why_not_build"]
    monkeypatch.setitem(why_not_build.__globals__, "ROOT", tmp_path)
    assert why_not_build() == "csrc/ is missing"


def test_without_torch_it_is_left_out(finalized, monkeypatch, capsys):
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
    monkeypatch.setenv("CXX", "nonexistent")
    monkeypatch.setenv("LENI_KERNELS_REQUIRE_EXTENSION", "1")
    with pytest.raises(SystemExit, match=r"the C\+\+ backend is required: there is no compiler 'nonexistent'"):
        command.run()


def test_where_it_does_not_compile_a_required_one_fails(finalized, monkeypatch):
    def broken(command):
        raise RuntimeError("of the compiler's own")

    command, _ = finalized()
    monkeypatch.setitem(command.run.__globals__, "why_not_build", lambda: None)
    monkeypatch.setattr(type(command).__bases__[0], "run", broken)
    monkeypatch.setenv("LENI_KERNELS_REQUIRE_EXTENSION", "1")
    with pytest.raises(RuntimeError, match="of the compiler's own"):
        command.run()


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose only C++ file is the smallest, which compiles in no time."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    left = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "leni_kernels", tmp_path / "leni_kernels", ignore=left)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "nothing.cpp").touch()
    return tmp_path


def build(checkout, kind):
    """What pip runs to build a "wheel" or an "editable", and the extensions that are installed by it."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('wheels')"
    process = subprocess.run([sys.executable, "-c", code], cwd=checkout, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
    if kind == "editable":
        return process, sorted(path.name for path in (checkout / "leni_kernels").glob("*.so"))
    names = [name for wheel in (checkout / "wheels").glob("*.whl") for name in ZipFile(wheel).namelist()]
    return process, [Path(name).name for name in names if name.endswith(".so")]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_one_that_does_not_compile_is_left_out_and_none_stays_from_before(checkout, kind):
    process, extensions = build(checkout, kind)
    assert process.returncode == 0, process.stdout
    assert extensions == [LIBRARY]
    (checkout / "csrc" / "broken.cpp").write_text("#error broken on purpose\n")
    process, extensions = build(checkout, kind)
    assert process.returncode == 0, process.stdout
    assert "broken on purpose" in process.stdout
    assert process.stdout.count("installing without the C++ backend: it did not compile (pip install --verbose") == 1
    assert extensions == []
    if kind == "editable":
        assert "it did not compile" in (checkout / "leni_kernels" / "_without_extension.txt").read_text()


@needs_compiler
def test_an_editor_is_told_how_files_are_compiled(checkout):
    subprocess.run([sys.executable, "setup.py", "-q", "compile_commands"], cwd=checkout, check=True)
    command, = json.loads((checkout / "compile_commands.json").read_text(encoding="utf-8"))
    assert command["file"] == "csrc/nothing.cpp"
    arguments = [*COMPILER, *command["arguments"][1:], "-fsyntax-only"]
    process = subprocess.run(arguments, cwd=command["directory"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


# ---- how it is loaded --------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path):
    """Of an installation, the file that loads the library, and where the library would be."""
    path = tmp_path / "leni_kernels" / "common" / "extension.py"
    path.parent.mkdir(parents=True)
    shutil.copy(extension.__file__, path)
    return path, path.parents[1] / LIBRARY


def why_missing(path):
    """What a new process says."""
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['why_missing'])"
    return subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout


def test_of_a_library_that_is_missing_or_broken_the_loader_says_why(installed):
    path, library = installed
    said = re.compile(rf"the C\+\+ extension is not available in this installation \({library}: (.+)\)\n")
    assert "No such file" in said.fullmatch(why_missing(path))[1]
    library.write_text("what a download that failed has left" * 100)
    assert "ELF" in said.fullmatch(why_missing(path))[1] or sys.platform != "linux"


@needs_compiler
def test_of_a_library_for_a_newer_pytorch_the_loader_names_what_this_one_lacks(installed):
    path, library = installed
    source = path.with_name("newer.cpp")
    source.write_text('extern "C" int torch_of_a_newer_one();\nint loaded = torch_of_a_newer_one();\n')
    subprocess.run([*COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    assert "torch_of_a_newer_one" in why_missing(path)


@needs_extension
def test_a_second_copy_is_not_loaded_and_the_first_may_be_again(installed):
    path, library = installed
    shutil.copy(extension.library_path(), library)
    with pytest.raises(RuntimeError, match=f"another copy of {LIBRARY} was loaded into this process before"):
        runpy.run_path(str(path))["library_path"]()
    library.unlink()
    library.symlink_to(extension.library_path())
    assert runpy.run_path(str(path))["library_path"]() == library


# ---- without the package -----------------------------------------------------------------------------------

RUN_ALL = """
import sys, torch
torch.ops.load_library(sys.argv[1])
x = torch.load("x.pt")
torch.save([torch.export.load("network.pt2").module()(x), torch.jit.load("network.pt")(x)], "outputs.pt")
assert "leni_kernels" not in sys.modules
"""


@needs_extension
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
def test_a_process_that_has_loaded_the_library_runs_what_was_exported(tmp_path):
    """Without the package's autograd, too, and with parameters that would have gradients."""
    network = torch.nn.Sequential(lk.fold(lk.LENI2d(4).eval()), lk.fold(lk.Reborn2d(4).eval()), lk.LENI2d(4),
                                  lk.Reborn2d(4), lk.ConvReLU2d(4, 4, 3), lk.AdaReLU(4), lk.FullyParametricReLU(4),
                                  lk.CReLU()).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad(), lk.use_backend("cpp"):
        torch.export.save(torch.export.export(network, (x,)), tmp_path / "network.pt2")
        torch.jit.trace(network, x).save(tmp_path / "network.pt")
        wanted = network(x)
    torch.save(x, tmp_path / "x.pt")
    process = subprocess.run([sys.executable, "-c", RUN_ALL, extension.library_path()], cwd=tmp_path,
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for output in torch.load(tmp_path / "outputs.pt"):
        assert output.requires_grad
        torch.testing.assert_close(output, wanted, rtol=0, atol=0, check_device=False)


# ---- one build for every PyTorch -----------------------------------------------------------------------------


def test_objects_of_an_instruction_set_include_no_pytorch():
    """An inline function of it, compiled for AVX-512, could be the copy that the linker keeps for all."""
    of_a_set = [path for path in SOURCES if path.name == "kernels.cpp"]
    assert len(of_a_set) >= 4
    assert not [path for path in of_a_set if includes_pytorch(path)]


@needs_headers
def test_the_oldest_pytorch_is_the_one_that_setup_py_targets(setup_py):
    text = (HEADERS / "torch" / "headeronly" / "version.h").read_text(encoding="utf-8")
    major, minor = (int(re.search(rf"#define TORCH_VERSION_{part} (\d+)", text)[1]) for part in ("MAJOR", "MINOR"))
    assert setup_py()[0]["TORCH_TARGET_VERSION"] == f"0x{major:02x}{minor:02x}{0:012x}"
    assert f'dependencies = ["torch>={major}.{minor}"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@needs_headers
@needs_compiler
@pytest.mark.parametrize("path", [path for path in SOURCES if includes_pytorch(path)],
                         ids=lambda path: path.relative_to(ROOT).as_posix())
def test_it_compiles_with_the_oldest_pytorchs_headers(setup_py, path):
    """A function may be in the stable ABI of an old PyTorch and missing in its headers."""
    built, = setup_py()[1]["ext_modules"]
    macros = [f"-D{name}={value}" for name, value in built.define_macros]
    command = [*COMPILER, "-fsyntax-only", *built.extra_compile_args, *macros, "-Icsrc", "-isystem", HEADERS, path]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@needs_extension
@needs_nm
def test_it_needs_no_python():
    assert not [name for name in undefined_symbols() if name.startswith(("Py", "_Py"))]
    if shutil.which("readelf") is not None:
        command = ["readelf", "--dynamic", "--wide", extension.library_path()]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        libraries = re.findall(r"\(NEEDED\).*\[(.+)\]", listing)
        assert "libtorch_cpu.so" in libraries
        assert not [name for name in libraries if "python" in name]


@needs_headers
@needs_extension
@needs_nm
def test_it_asks_for_nothing_that_the_oldest_pytorch_lacks():
    """Of PyTorch it needs functions of the stable C interface alone, all of them in the oldest headers."""
    symbols = undefined_symbols()
    wanted = {name for name in symbols if name.startswith(("aoti_torch_", "torch_"))}
    text = "".join(path.read_text(encoding="utf-8") for path in (HEADERS / "torch" / "csrc").rglob("shim*.h"))
    assert "torch_call_dispatcher" in wanted
    assert wanted <= set(re.findall(r"\w+", text))
    assert not [name for name in symbols if re.match("_ZN?K?(2at|3c10|5torch)", name)]


OTHERS = [folder for folder in (ROOT / ".venv", ROOT / ".venv-oldest")
          if (folder / "prepared").is_file() and folder.resolve() != Path(sys.prefix).resolve()]


@pytest.mark.skipif(not OTHERS, reason="there is no environment with another PyTorch: make test-oldest makes one")
@needs_extension
@pytest.mark.parametrize("folder", OTHERS, ids=lambda folder: folder.name)
def test_it_runs_on_another_pytorch_than_it_was_built_with(folder):
    command = [folder / "bin" / "python", "tests/every_operator.py", str(extension.library_path())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.strip() != torch.__version__
