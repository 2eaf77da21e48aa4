"""A commit's files in a folder of their own, with the extension built there; built once for each tree of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from harness import report

ROOT = Path(__file__).parents[2]
WORKING_TREE = "."
FLAGS = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")
"""What of the environment a build depends on."""


class CannotCompare(RuntimeError):
    """A side that cannot be had; the message says why."""


class Checkout(NamedTuple):
    """One side: the commit's short name, with ``+`` for a working tree that differs from it, its tree, and where."""

    commit: str
    tree: str
    folder: Path


def checkout(revision: str, builds: Path, build: bool) -> Checkout:
    """The files of a commit, or of the working tree for ".", in a folder below ``builds``, with or without a build.

    Raises:
        CannotCompare: if there is no such commit, or it does not build.
    """
    commit, tree = _names(revision)
    folder = builds.resolve() / "trees" / tree[:16]
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _write_files(tree, folder)
        (folder / "done").touch()
    for extension in (folder / "leni_kernels").glob("*.so"):
        extension.unlink()
    if build:
        kept = builds.resolve() / "extensions" / _key(tree)
        if not kept.exists():
            report.say(f"Building the extension of {commit}: minutes, this once.")
            _keep(_built(folder), kept)
        shutil.copytree(kept, folder / "leni_kernels", dirs_exist_ok=True)
    return Checkout(commit, tree, folder)


def _names(revision: str) -> tuple[str, str]:
    """A commit's short name and the tree of its files."""
    if revision != WORKING_TREE:
        return (_git("rev-parse", "--short=12", "--verify", f"{revision}^{{commit}}"),
                _git("rev-parse", "--verify", f"{revision}^{{tree}}"))
    commit, tree = _git("rev-parse", "--short=12", "HEAD"), _tree_of_the_working_tree()
    return commit if tree == _git("rev-parse", "HEAD^{tree}") else f"{commit}+", tree


def _tree_of_the_working_tree() -> str:
    """The files as they are, also new ones, as a tree of git's; its index is left alone."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        existing = ROOT / _git("rev-parse", "--git-path", "index")
        if existing.exists():
            shutil.copy(existing, index)
        _git("add", "--all", "--", ":/", index=index)
        return _git("write-tree", index=index)


def _write_files(tree: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        index = Path(temporary) / "index"
        _git("read-tree", tree, index=index)
        _git("checkout-index", "--all", f"--prefix={folder}/", index=index)


NOT_BUILT_FROM = ("leni_kernels", "benchmarks", "tests", "docs", "examples", "CITATION.cff", "LICENSE", "MANIFEST.in",
                  "Makefile", "mkdocs.yml")
"""What has no say in the extension; nor have hidden files and Markdown. All else may have."""


def _key(tree: str) -> str:
    """What a build of the extension depends on."""
    entries = [line.partition("\t") for line in _git("ls-tree", tree).splitlines()]
    files = [entry for entry, _, name in entries
             if name not in NOT_BUILT_FROM and not name.startswith(".") and not name.endswith(".md")]
    facts = [files, torch.__version__, sys.version, *(os.environ.get(name) for name in FLAGS)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _built(folder: Path) -> list[Path]:
    """The extension, built in the folder."""
    log, command = folder / "build.log", [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = {**os.environ, "LENI_KERNELS_REQUIRE_EXTENSION": "1"}
    with log.open("w") as output:
        status = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output).returncode
    built = list((folder / "leni_kernels").glob("*.so"))
    if status or not built:
        raise CannotCompare(f"the extension does not build: {log} says why")
    shutil.rmtree(folder / "build", ignore_errors=True)
    return built


def _keep(files: list[Path], kept: Path) -> None:
    """Copy files into a folder that is there only when it is whole."""
    partial = kept.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in files:
        shutil.copy(file, partial)
    partial.rename(kept)


def _git(*arguments: str, index: Path | None = None) -> str:
    environment = {**os.environ, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise CannotCompare(f"git cannot be run: {error}") from None
    if done.returncode:
        raise CannotCompare(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()
