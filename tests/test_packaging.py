"""The package as built and installed: archives, wheels, what a machine without a compiler gets, an import's effects."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import leni_kernels
from leni_kernels.common import extension

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tracked():
    """The files of the checkout, as posix paths, but for those whose name begins with a dot."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, which says what belongs to it")
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in listed if name and not name.startswith(".") and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def old_compiler(tmp_path_factory):
    """A compiler that has not heard of C++20."""
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *c++20*) exit 1;; esac\n', encoding="utf-8")
    compiler.chmod(0o755)
    return compiler


def built(what, folder, out, **environment):
    """The archive that setuptools makes of ``folder``."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{what}(sys.argv[1])"
    environment = {**os.environ, "LENI_KERNELS_REQUIRE_EXTENSION": "", **environment}
    process = subprocess.run([sys.executable, "-c", code, str(out)], cwd=folder, env=environment, capture_output=True,
                             text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = out.iterdir()
    return path, process.stdout + process.stderr


@pytest.fixture(scope="module")
def sources(tracked, tmp_path_factory):
    """An archive of the sources, made where there is neither torch nor a compiler; and the folder it unpacks to."""
    folder, unpacked = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("sources")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    absent = tmp_path_factory.mktemp("absent")
    (absent / "torch.py").write_text("raise ImportError('no torch here')", encoding="utf-8")
    archive, _ = built("sdist", folder, tmp_path_factory.mktemp("sdist"), PYTHONPATH=str(absent), CXX="nonexistent")
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (top,) = unpacked.iterdir()
    return archive, top


@pytest.fixture(scope="module")
def wheel(sources, old_compiler, tmp_path_factory):
    """A wheel made of that archive by a compiler without C++20, and what was printed meanwhile."""
    return built("wheel", sources[1], tmp_path_factory.mktemp("wheel"), CXX=str(old_compiler))


# ---- what is in them ---------------------------------------------------------------------------------------


def test_the_archive_of_the_sources_has_all_that_the_checkout_has(sources, tracked):
    archive, top = sources
    there = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    assert tracked - there == set()
    assert archive.stat().st_size < 2 * 2**20


def test_the_wheel_holds_the_package_only(wheel, tracked):
    with zipfile.ZipFile(wheel[0]) as archive:
        names = {name for name in archive.namelist() if not re.match(r"leni_kernels-[^/]+\.dist-info/", name)}
    package = {name for name in tracked if name.startswith("leni_kernels/")}
    assert names == package | {"leni_kernels/_without_extension.txt"}


def test_one_wheel_is_for_every_python(wheel):
    assert "-py3-none-" in wheel[0].name
    assert not wheel[0].name.endswith("-any.whl")


def test_the_version_is_said_in_one_place(wheel):
    with zipfile.ZipFile(wheel[0]) as archive:
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert f"\nVersion: {leni_kernels.__version__}\n" in metadata
    assert leni_kernels.__version__ not in PROJECT


def test_pictures_and_links_work_on_an_index(setup_py):
    names, arguments = setup_py()
    page = arguments["long_description"]
    relative = re.compile(r'\]\((?!https?:|#)|<img [^>]*src="(?!https?:)')
    assert relative.search((ROOT / "README.md").read_text(encoding="utf-8")), "the README has no link to its files"
    assert not relative.search(page)
    there = names["for_an_index"]('![a](b/c.png) [d](e.md#f) [g](https://h/i) [j](#k) <img width="1" src="l.svg">'
                               ' [![m](n.svg)](o.md)', "https://host/us", "1.2")
    assert there == ('![a](https://host/us/raw/v1.2/b/c.png) [d](https://host/us/blob/v1.2/e.md#f) [g](https://h/i) '
                     '[j](#k) <img width="1" src="https://host/us/raw/v1.2/l.svg">'
                     ' [![m](https://host/us/raw/v1.2/n.svg)](https://host/us/blob/v1.2/o.md)')


def test_the_repository_has_one_address():
    (repository,) = re.findall(r'^Repository = "(.+)"$', PROJECT, re.MULTILINE)
    urls = PROJECT.split("[project.urls]")[1].split("\n[")[0]
    assert all(url.startswith(repository) for url in re.findall(r'"(https:.+)"', urls))
    assert f"repository-code: {repository}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def loaded(path):
    yaml = pytest.importorskip("yaml")
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(file)


@pytest.mark.parametrize("path", [ROOT / "CITATION.cff", *sorted((ROOT / ".github").rglob("*.yml")),
                                  *ROOT.glob(".pre-commit-config.yaml")], ids=lambda path: path.name)
def test_it_parses(path):
    assert isinstance(loaded(path), dict)


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="an archive of the sources has no workflows")
def test_continuous_integration_has_every_python_that_is_promised():
    tested = loaded(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tested == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert f'requires-python = ">={tested[0]}"' in PROJECT


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="an archive of the sources has no forms")
def test_every_form_asks_for_the_environment():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert path.name == "config.yml" or "python -m leni_kernels" in str(loaded(path))


# ---- what a machine gets that cannot compile it ------------------------------------------------------------


def test_without_cpp20_one_line_says_what_is_wanted(wheel, old_compiler):
    (line,) = [line for line in wheel[1].splitlines() if line.startswith("leni_kernels:")]
    assert f"'{old_compiler} -std=c++20' compiles no C++20" in line
    assert "CXX" in line


def test_the_installed_package_remembers_why_it_has_no_extension(wheel, old_compiler, tmp_path):
    with zipfile.ZipFile(wheel[0]) as archive:
        archive.extractall(tmp_path)
    code = ("import leni_kernels as lk, torch; print(lk.explain(lk.AdaReLU(4), torch.ones(1, 4, 2, 2))); "
            "lk.library_path()")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LENI_KERNELS_BACKEND": ""}
    process = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True,
                             text=True, check=False)
    assert "runs on 'reference'" in process.stdout
    reason = rf".*{re.escape(str(old_compiler))}.* compiles no C\+\+20"
    assert re.search(rf"not 'cpp': {reason}", process.stdout)
    assert re.search(rf"^RuntimeError: {reason}", process.stderr, re.MULTILINE)


# ---- what the extension asks of a system -------------------------------------------------------------------

NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
"""Of manylinux_2_28, which is what PyTorch's own wheels are."""


def needed_versions(listing):
    """Of what ``readelf --version-info`` says, the versions that are needed of each library's symbols."""
    found = re.findall(r"Name: (\w+?)_(\d+(?:\.\d+)*)\s", listing)
    return {(name, tuple(map(int, version.split(".")))) for name, version in found}


def test_the_extension_needs_no_newer_system_than_pytorch():
    if extension.why_missing is not None or not sys.platform.startswith("linux"):
        pytest.skip("needs the extension, on Linux")
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf, of binutils")
    listing = subprocess.run(["readelf", "--version-info", "--wide", extension.library_path()], capture_output=True,
                             text=True, check=True).stdout
    needed = needed_versions(listing)
    assert {name for name, _ in needed} >= NEWEST.keys()
    assert {(name, version) for name, version in needed if version > NEWEST.get(name, version)} == set()


def test_needed_versions_are_read():
    listing = ("  000000: Version: 1  File: libc.so.6  Cnt: 2\n"
               "  0x0010:   Name: GLIBC_2.34  Flags: none  Version: 12\n"
               "  0x0020:   Name: GLIBC_2.2.5  Flags: none  Version: 6\n")
    assert needed_versions(listing) == {("GLIBC", (2, 34)), ("GLIBC", (2, 2, 5))}


# ---- what is imported --------------------------------------------------------------------------------------


def test_public_names_exist():
    for module in (leni_kernels, leni_kernels.functional):
        assert sorted(module.__all__) == list(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_importing_opens_no_socket_and_initialises_no_gpu():
    code = ("import sys; sys.addaudithook(lambda event, _: event == 'socket.connect' and sys.exit(event)); "
            "import leni_kernels, torch; sys.exit(torch.cuda.is_initialized())")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True,
                            text=True, check=False)
    assert result.returncode == 0, result.stderr
