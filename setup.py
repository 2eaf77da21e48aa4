"""Builds the C++ backend where that is possible; the package works without it, on its reference backend.

The extension uses only PyTorch's stable ABI and Python's limited API, so one build serves every
Python >= 3.10 and every torch >= 2.11. No GPU is needed and nothing is downloaded.

Where the extension cannot be built, or does not compile, the package is installed without it and one line says why.
With LENI_KERNELS_REQUIRE_EXTENSION=1 in the environment the installation fails instead, as it should for a wheel
that goes to others.
"""

import json
import os
import shutil
import sys
import sysconfig
from itertools import chain
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    HAS_TORCH = True
except (ImportError, OSError):
    from setuptools import Extension as CppExtension
    from setuptools.command.build_ext import build_ext as BuildExtension

    HAS_TORCH = False

TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11

# What tests/sanitize.py builds with: "address,undefined" or "thread".
SANITIZERS = os.environ.get("LENI_KERNELS_SANITIZE", "")
MACROS = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
OPTIMISATION = ["-O3", "-g0"]
LINKED = []
if SANITIZERS:
    LINKED = [f"-fsanitize={SANITIZERS}"]
    # Python's own flags have -fwrapv, under which no overflow would be reported.
    OPTIMISATION = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv", *LINKED, "-fno-sanitize-recover=all"]
if SANITIZERS == "thread":
    MACROS.append(("LENI_STD_THREADS", None))


def why_not_build() -> str | None:
    """The reason the C++ extension cannot be built here, or None."""
    if sys.platform == "win32":
        return "the C++ backend is not supported on Windows"
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if not any(shutil.which(name) for name in (compiler.split()[0], "c++", "g++", "clang++")):
        return "no C++ compiler was found"
    if not HAS_TORCH:
        return "torch cannot be imported in the build environment"
    return None


# As csrc/kernels/target.h names them. One that a mechanism has no kernels for makes an object with an empty table.
INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")


def for_each_instruction_set(source: Path, folder: Path) -> list[str]:
    """A mechanism's csrc/<mechanism>/kernels.cpp, once for each instruction set, as sources in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for isa in INSTRUCTION_SETS:
        path = folder / f"{source.parent.name}_{isa}.cpp"
        text = (f"#define LENI_KERNELS_ISA LENI_KERNELS_{isa.upper()}\n"
                f'#include "{source.parent.name}/{source.name}"\n')
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # else it would be compiled again
            path.write_text(text, encoding="utf-8")
        sources.append(str(path))
    return sources


class BuildIfPossible(BuildExtension):
    """Builds the extension, or leaves the package without it."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            kernels = [source for source in extension.sources if Path(source).name == "kernels.cpp"]
            others = [source for source in extension.sources if source not in kernels]
            each = [for_each_instruction_set(Path(source), Path(self.build_temp)) for source in kernels]
            extension.sources = [*chain(*each), *others]
            extension.depends = [*extension.depends, *kernels]
        super().build_extensions()

    def run(self) -> None:
        reason = why_not_build()
        required = os.environ.get("LENI_KERNELS_REQUIRE_EXTENSION") == "1"
        built = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        if reason is None:
            try:
                return super().run()
            except Exception:  # compilers, linkers and ninja fail in classes of their own
                if required:
                    raise
                reason = "it did not compile (pip install --verbose shows the compiler's output)"
        if required:
            raise SystemExit(f"leni_kernels: the C++ backend is required: {reason}.")
        for path in built:  # an earlier build's
            path.unlink(missing_ok=True)
        self.extensions = []
        print(f"leni_kernels: installing without the C++ backend: {reason}.", file=sys.stderr)


class CompileCommands(BuildExtension):
    """Writes compile_commands.json: how each file of csrc/ is compiled, for editors; kernels as generic ones."""

    def build_extensions(self) -> None:
        extension, = self.extensions
        folders = [f"-I{folder}" for folder in (*extension.include_dirs, *self.compiler.include_dirs)]
        macros = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in extension.define_macros]
        command = ["c++", *folders, *macros, *extension.extra_compile_args]
        files = [("c++", file) for file in extension.sources] + [("c++-header", file) for file in extension.depends]
        commands = [{"directory": str(Path.cwd()), "file": file, "arguments": [*command, "-x", kind, file]}
                    for kind, file in files]
        Path("compile_commands.json").write_text(json.dumps(commands, indent=1), encoding="utf-8")


setup(
    ext_modules=[
        CppExtension(
            "leni_kernels._C",
            sorted(str(path) for path in Path("csrc").rglob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
            include_dirs=[str(Path("csrc").resolve())],
            define_macros=MACROS,
            extra_compile_args=[
                *OPTIMISATION, "-std=c++20", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-Wall",
                "-Wextra",
            ],
            extra_link_args=LINKED,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildIfPossible, "compile_commands": CompileCommands},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
