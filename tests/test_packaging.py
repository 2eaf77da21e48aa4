"""The package as installed: version, typing marker, and an import that touches neither network nor GPU."""

import os
import subprocess
import sys
from pathlib import Path

import leni_kernels

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_version_is_the_projects():
    assert f'\nversion = "{leni_kernels.__version__}"\n' in PROJECT


def test_type_hints_and_tilings_are_shipped():
    for name in ("py.typed", "common/gpu/tilings.json"):
        assert (Path(leni_kernels.__file__).parent / name).is_file()
    assert 'leni_kernels = ["py.typed", "common/gpu/tilings.json"]' in PROJECT


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
