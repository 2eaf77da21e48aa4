"""The programs in examples/ run, on a CPU, with few steps, and what they print holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

from leni_kernels.common import extension

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def printed(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "LENI_KERNELS_BACKEND": ""}
    finished = subprocess.run([sys.executable, *map(str, command)], env=environment, cwd=folder, capture_output=True,
                              text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def differences(text):
    found = [float(number) for number in re.findall(r"\d\.\de[-+]\d\d", text)]
    assert found, text
    return found


def test_finetune(tmp_path):
    text = printed(tmp_path, EXAMPLES / "finetune.py", "--steps", 2)
    assert "3 of 17 replaced" in text
    assert "step 1: loss" in text
    assert max(differences(text)) < 1e-3


def test_text(tmp_path):
    text = printed(tmp_path, EXAMPLES / "text.py", "--steps", 2)
    accuracy, threshold = map(float, re.search(r"accuracy ([\d.]+)%; thresholds up to ([\d.]+e[-+]\d\d)",
                                               text).groups())
    assert 0 <= accuracy <= 100
    assert threshold > 0, "thresholds start at 0, and did not move"


@pytest.mark.parametrize("portable", [False, True])
def test_export(tmp_path, portable):
    text = printed(tmp_path, EXAMPLES / "export.py", "--size", 32, *(["--portable"] if portable else []))
    assert (tmp_path / "network.pt2").is_file()
    assert ("operators of this package: none" in text) == (portable or extension.why_missing is not None)
    assert max(differences(text)) < 1e-3


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()),
                    reason="needs torch.distributed with gloo")
def test_distributed(tmp_path):
    text = printed(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
                   EXAMPLES / "distributed.py", "--steps", 2)
    means = dict(re.findall(r"process (\d): loss [\d.]+, running mean (-?[\d.]+)", text))
    assert means.keys() == {"0", "1"}, text
    assert means["0"] == means["1"], "the norms' statistics are of all processes, which had different images"


def test_examples_are_short_and_listed():
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"]({path.name})" in index
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path.name
