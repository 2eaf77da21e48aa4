"""Builds the C++ backend where that is possible; the package works without it, on its reference backend.

The extension uses only PyTorch's stable ABI and Python's limited API, so one build serves every
Python >= 3.10 and every torch >= 2.11. No GPU is needed and nothing is downloaded.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11


def why_not_build() -> str | None:
    """The reason the C++ extension cannot be built here, or None."""
    if sys.platform == "win32":
        return "the C++ backend is not supported on Windows"
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if not any(shutil.which(name) for name in (compiler.split()[0], "c++", "g++", "clang++")):
        return "no C++ compiler was found"
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError:
        return "torch cannot be imported in the build environment"
    return None


def extension_arguments() -> dict:
    """What setup() needs to build the extension."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    extension = CppExtension(
        "leni_kernels._C",
        sorted(str(path) for path in Path("csrc").glob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
        extra_compile_args=[
            "-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-Wall",
            # GCC 12's own AVX-512 intrinsics read a variable that they leave undefined on purpose.
            "-Wno-uninitialized", "-Wno-maybe-uninitialized",
        ],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


reason = why_not_build()
if reason is not None:
    print(f"leni_kernels: installing without the C++ backend: {reason}.", file=sys.stderr)
setup(**({} if reason else extension_arguments()))
