"""The package as installed: version, typing marker, and a setup.py that never needs a compiler."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import leni_kernels

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_version_is_the_projects():
    assert f'\nversion = "{leni_kernels.__version__}"\n' in PROJECT


def test_type_hints_and_tilings_are_shipped():
    for name in ("py.typed", "tilings.json"):
        assert (Path(leni_kernels.__file__).parent / name).is_file()
    assert 'leni_kernels = ["py.typed", "tilings.json"]' in PROJECT


def test_public_names_exist():
    for module in (leni_kernels, leni_kernels.functional):
        assert sorted(module.__all__) == list(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


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


def test_without_a_compiler_it_installs_without_the_extension(setup_py, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    _, arguments = setup_py()
    assert "ext_modules" not in arguments
    message = capsys.readouterr().err
    assert message.count("installing without the C++ backend: no C++ compiler was found") == 1


def test_without_torch_it_says_so(setup_py, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", None)
    names, arguments = setup_py()
    assert "torch cannot be imported" in names["why_not_build"]()
    assert "ext_modules" not in arguments


def test_on_windows_it_says_so(setup_py, monkeypatch):
    names, _ = setup_py()
    monkeypatch.setattr(sys, "platform", "win32")
    assert "Windows" in names["why_not_build"]()


def test_with_a_compiler_it_builds_one_stable_extension(setup_py, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    names, arguments = setup_py()
    assert names["why_not_build"]() is None
    extension, = arguments["ext_modules"]
    assert extension.name == "leni_kernels._C"
    assert extension.py_limited_api
    assert {name for name, _ in extension.define_macros} >= {"TORCH_TARGET_VERSION"}
    assert {Path(source).parent.name for source in extension.sources} == {"csrc"}


def test_importing_opens_no_socket_and_initialises_no_gpu():
    code = ("import sys; sys.addaudithook(lambda event, _: event == 'socket.connect' and sys.exit(event)); "
            "import leni_kernels, torch; sys.exit(torch.cuda.is_initialized())")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True,
                            text=True, check=False)
    assert result.returncode == 0, result.stderr
