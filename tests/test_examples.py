"""The programs in examples/ run, on a CPU, with few steps, and what they print holds."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.utils import cpp_extension

from leni_kernels.common import extension

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
COMPILER = os.environ.get("CXX", "c++").split()


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


@pytest.mark.parametrize("program", ["detection.py", "video.py"])
def test_weights_and_slopes_train_in_turn_beside_the_network_with_relus(tmp_path, program):
    text = printed(tmp_path, EXAMPLES / program, "--steps", 3, "--phase", 1)
    phases = re.findall(r"loss ([\d.]+) with ReLU, ([\d.]+) with FullyParametricReLU, of which the (\w+) trained", text)
    losses = [(float(relu), float(slopes)) for relu, slopes, _ in phases]
    assert [trained for *_, trained in phases] == ["weights", "slopes", "weights"]
    for step in (0, 1):  # slopes start as ReLUs, and the first step moved the weights of both
        assert losses[step][1] == pytest.approx(losses[step][0], rel=1e-2)
    assert losses[2][0] != losses[2][1]
    metrics = [float(number) for number in re.findall(r"^(?:ReLU|FullyParametricReLU): .*?([\d.]+)%$", text, re.M)]
    assert len(metrics) == 2
    assert all(0 <= metric <= 100 for metric in metrics)


def test_average_precision():
    average_precision = runpy.run_path(str(EXAMPLES / "detection.py"))["average_precision"]
    one, two, nowhere = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [50.0, 50, 60, 60]
    close = [0.0, 0, 10, 6]  # an IoU with the first of 0.6

    def image(boxes, labels, *scores):
        return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long),
                "scores": torch.tensor(scores)}

    truth = [image([one, two, two], [1, 1, 2]), image([one], [1]), image([], [])]
    found = [image([close, one, two], [1, 1, 1], 0.9, 0.8, 0.3), image([nowhere, one], [1, 2], 0.7, 0.6),
             image([one], [1], 0.1)]
    # Of class 1, by score: found, found again, nowhere, found (2 of 4); the box of the second image never.
    assert average_precision(found, truth, 1) == pytest.approx((1 + 2 / 4 + 0) / 3)
    assert average_precision(found, truth, 2) == 0
    assert average_precision([image([], []), *found[1:]], truth, 2) == 0
    sure = [{**image, "scores": torch.ones(len(image["labels"]))} for image in truth]
    assert average_precision(sure, truth, 1) == average_precision(sure, truth, 2) == 1
    # A box found late at a better precision than one before counts the better one for both.
    truth = [image([one, two], [1, 1])]
    found = [image([nowhere, one, two], [1, 1, 1], 0.9, 0.8, 0.7)]
    assert average_precision(found, truth, 1) == pytest.approx(2 / 3)


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
@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C++ compiler")
def test_a_program_in_cpp_runs_what_was_exported(tmp_path):
    with subprocess.Popen(compilation(tmp_path / "serve"), stderr=subprocess.PIPE, text=True) as compiler:
        text = printed(tmp_path, EXAMPLES / "cpp" / "export.py")  # meanwhile
        _, errors = compiler.communicate()
    assert compiler.returncode == 0, errors
    assert "runs on 'reference'" not in text
    assert text.splitlines()[-1] == str(extension.library_path())
    wanted = torch.load(tmp_path / "wanted.pt")
    for network in ("network.pt2", "network.pt"):
        command = ["./serve", extension.library_path(), network, "images.pt", "output.pt"]
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        torch.testing.assert_close(torch.load(tmp_path / "output.pt"), wanted)
    finished = subprocess.run(["./serve", "absent.so", *command[2:]], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr.startswith("absent.so: cannot open")


def compilation(program):
    """What compiles the program in C++, as quickly as it can be: CMake would also ask for CUDA's tools."""
    folders = [*(f"-I{path}" for path in cpp_extension.include_paths()),
               *(f"{option}{path}" for path in cpp_extension.library_paths() for option in ("-L", "-Wl,-rpath,"))]
    return [*COMPILER, "-std=c++20", "-O0", EXAMPLES / "cpp" / "main.cpp", "-o", program, *folders,
            "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]


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
    for path in (*EXAMPLES.rglob("*.py"), *EXAMPLES.rglob("*.cpp")):
        assert f"]({path.relative_to(EXAMPLES).as_posix()})" in index
        assert len(path.read_text(encoding="utf-8").splitlines()) < 120, path.name
