"""Builds the C++ backend where that is possible; the package works without it, on its reference backend.

The extension is a shared library, which registers operators with PyTorch as it is loaded. It uses PyTorch's stable ABI
and nothing of Python, so one build serves every torch >= 2.11, every Python, and programs in C++. No GPU is needed and
nothing is downloaded.

Where the extension cannot be built, or does not compile, the package is installed without it, one line says why, and
`leni_kernels.explain` repeats it. With LENI_KERNELS_REQUIRE_EXTENSION=1 in the environment the installation fails
instead, as it should for a wheel that goes to others.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    HAS_TORCH = True
except (ImportError, OSError):
    from setuptools import Extension as CppExtension
    from setuptools.command.build_ext import build_ext as BuildExtension

    HAS_TORCH = False

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11
STANDARD = "-std=c++20"
LIBRARY = "leni_kernels.libleni_kernels"  # leni_kernels/common/extension.py loads it

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


def csrc(suffix: str) -> list[str]:
    """The files in csrc/ that end so, relative to this folder, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(f"*{suffix}"))


# ---- can it be built? --------------------------------------------------------------------------------------

WANTED = "a compiler of C++20 is wanted (GCC 12, for example), and the environment variable CXX names it"
CPP20 = """
#include <concepts>
template <std::integral T> constexpr T twice(T x) { return 2 * x; }
static_assert(twice(1) == 2);
"""


def why_not_build() -> str | None:
    """The reason the C++ extension cannot be built here, or None."""
    if sys.platform == "win32":
        return "the C++ backend is not supported on Windows"
    if not csrc(".cpp"):
        return "csrc/ is missing"
    if not HAS_TORCH:
        return "torch cannot be imported in the build environment"
    return why_not_compile(shlex.split(os.environ.get("CXX") or "c++"))


def why_not_compile(compiler: list[str]) -> str | None:
    """The reason ``compiler``, a command and its first arguments, cannot compile the extension, or None."""
    if shutil.which(compiler[0]) is None:
        return f"there is no compiler '{compiler[0]}'; {WANTED}"
    if not compiles(compiler, CPP20):
        return f"'{shlex.join(compiler)} {STANDARD}' compiles no C++20; {WANTED}"
    return None


def compiles(compiler: list[str], source: str) -> bool:
    with TemporaryDirectory() as folder:
        path = Path(folder, "probe.cpp")
        path.write_text(source, encoding="utf-8")
        command = [*compiler, STANDARD, "-c", str(path), "-o", str(path.with_suffix(".o"))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:  # a file that is no program
            return False


# ---- how it is built ----------------------------------------------------------------------------------------

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
    """Builds the extension, or leaves the package without it and writes down why."""

    def get_ext_filename(self, ext_name: str) -> str:
        """A library's name, where a module's would say which Python it is for."""
        return f"{os.path.join(*ext_name.split('.'))}.so"

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
        built = Path(self.get_ext_fullpath(LIBRARY))
        note = built.with_name("_without_extension.txt")  # leni_kernels/common/extension.py reads it
        if reason is None:
            try:
                super().run()
                note.unlink(missing_ok=True)
                return
            except Exception:  # compilers, linkers and ninja fail in classes of their own
                if required:
                    raise
                reason = "it did not compile (pip install --verbose shows the compiler's output)"
        if required:
            raise SystemExit(f"leni_kernels: the C++ backend is required: {reason}.")
        built.unlink(missing_ok=True)  # an earlier build's
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(reason, encoding="utf-8")
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


class WheelForEveryPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[-1]


# ---- the page on a package index ---------------------------------------------------------------------------


def for_an_index(readme: str, repository: str, version: str) -> str:
    """The README with its pictures, and its links to files, where an index's page finds them."""
    relative = r"(?!\w+:|#)([^)\"\s]+)"
    for before, kind in ((r"!\[[^]]*\]\(", "raw"), (r'<img [^>]*src="', "raw"), (r"\]\(", "blob")):
        readme = re.sub(f"({before}){relative}", rf"\1{repository}/{kind}/v{version}/\2", readme)
    return readme


def described() -> str:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = (ROOT / "leni_kernels" / "_version.py").read_text(encoding="utf-8")
    return for_an_index((ROOT / "README.md").read_text(encoding="utf-8"),
                        re.search(r'^Repository = "(.+)"$', project, re.MULTILINE)[1],
                        re.search(r'"(.+)"', version)[1])


setup(
    long_description=described(),
    long_description_content_type="text/markdown",
    ext_modules=[
        CppExtension(
            LIBRARY,
            csrc(".cpp"),
            depends=csrc(".h"),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=MACROS,
            extra_compile_args=[
                *OPTIMISATION, STANDARD, "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-Wall",
                "-Wextra",
            ],
            extra_link_args=LINKED,
            py_limited_api=True,  # else PyTorch's library for Python would be linked
        )
    ],
    cmdclass={"bdist_wheel": WheelForEveryPython, "build_ext": BuildIfPossible, "compile_commands": CompileCommands},
)
