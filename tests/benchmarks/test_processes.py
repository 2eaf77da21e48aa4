"""accuracy.py under torchrun: two processes train what one does on the joined batches, and the first alone writes."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import accuracy
import pytest
import torch
from datasets import images
from harness import files, learning, processes
from harness.learning import RECIPES, BadCheckpoint, Learner, Run
from networks import catalogue
from torch import distributed, nn

from leni_kernels.common import extension

pytestmark = [
    pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing)),
    pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()),
                       reason="needs torch.distributed with gloo"),
]

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
IMAGES = 131
"""Batches of 64, 64 and 3, of which one process has two images and the other one."""

RECIPE = RECIPES["short"]._replace(epochs=2, steps=(0.5,), augmented=True)
RELU = Run("convnet8", "relu", 0, "digits", IMAGES, 0.0625, "all", RECIPE)
SAME = {
    "batch norms": RELU,
    "LENI, whose kernels synchronise": RELU._replace(activation="leni"),
    "Reborn": RELU._replace(activation="reborn"),
    "slopes and weights in turn": RELU._replace(activation="fully_parametric_relu"),
    "no batch norms": RELU._replace(network="without norms"),
}
"""Runs that any number of processes trains alike."""

BEGUN_BY_ONE, BEGUN_BY_BOTH = RELU._replace(seed=1), RELU._replace(seed=2)
APART, FOREIGN = RELU._replace(parts=2), RELU._replace(seed=3)
ARGUMENTS = ["--epochs", "1", "--seeds", "0", "--examples", str(IMAGES), "--width", "0.0625", "--device", "cpu",
             "--activations", "relu"]


def silent(name):
    pass


def prepare(patch):
    """A network without norms beside the catalogue's, several test batches, and float64, which shows what is exact."""
    build = catalogue.build

    def with_another(name, *others, **options):
        network = build("convnet8" if name == "without norms" else name, *others, **options)
        return nn.Sequential(*(layer for layer in network if not isinstance(layer, nn.BatchNorm2d))) if (
            name == "without norms") else network

    patch.setattr(catalogue, "build", with_another)
    patch.setattr(learning, "TEST_BATCH", 100)
    torch.set_default_dtype(torch.float64)


def data():
    found = images.digits().of_size(IMAGES)._replace(mirrored=True)
    return found._replace(images=found.images.double(), test_images=found.test_images.double())


def one_epoch(run, folder):
    learner = Learner(run, data(), CPU)
    learner.epoch()
    processes.from_first(lambda: learner.save(folder / run.file()))


def work(folder):
    """What each of the two processes does; of the second one's files none may be written."""
    patch = pytest.MonkeyPatch()
    with processes.joined("cpu") as device:
        patch.setattr(processes, "joined", lambda kind: nullcontext(device))  # who leaves a group does not come back
        if not processes.first():
            patch.setattr(files, "whole", None)
        assert accuracy.main([*ARGUMENTS, "--sync-batch-norm", "--output", str(folder)]) == 0
        prepare(patch)
        for run in (*SAME.values(), BEGUN_BY_ONE, APART):
            learning.train(run, data(), CPU, folder, silent)
        one_epoch(BEGUN_BY_BOTH, folder)
        with pytest.raises(BadCheckpoint if processes.first() else SystemExit):
            learning.train(FOREIGN, data(), CPU, folder, silent)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder that both processes left, and what they said."""
    folder = tmp_path_factory.mktemp("both")
    (folder / FOREIGN.file()).write_text("no checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        one_epoch(BEGUN_BY_ONE, folder)
    torch.set_default_dtype(torch.float32)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
                   "OMP_NUM_THREADS": "1", "LENI_KERNELS_BACKEND": ""}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def double(monkeypatch):
    prepare(monkeypatch)
    yield
    torch.set_default_dtype(torch.float32)


def state(folder, run):
    return torch.load(folder / run.file(), weights_only=True)


def assert_same(ours, theirs):
    """Two checkpoints of float64 runs: weights, momenta, statistics, losses and accuracies."""
    torch.testing.assert_close(ours["network"], theirs["network"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=1e-9, atol=1e-9)
    assert [epoch["loss"] for epoch in ours["history"]] == pytest.approx([epoch["loss"] for epoch in theirs["history"]])
    assert [epoch["accuracy"] for epoch in ours["history"]] == [epoch["accuracy"] for epoch in theirs["history"]]


@pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in SAME.items()])
def test_two_processes_train_what_one_does(both, double, tmp_path, run):
    learning.train(run, data(), CPU, tmp_path, silent)
    assert_same(state(both[0], run), state(tmp_path, run))


def test_a_run_goes_on_in_another_number_of_processes(both, double, tmp_path):
    folder, _ = both
    for run in (BEGUN_BY_ONE, BEGUN_BY_BOTH):
        learning.train(run, data(), CPU, tmp_path, silent)
    assert len(state(folder, BEGUN_BY_BOTH)["history"]) == 1
    learning.train(BEGUN_BY_BOTH, data(), CPU, folder, silent)
    for run in (BEGUN_BY_ONE, BEGUN_BY_BOTH):
        assert_same(state(folder, run), state(tmp_path, run))


def test_norms_that_see_parts_are_another_run_whose_accuracy_is_its_networks(both, double):
    apart, together = (state(both[0], run) for run in (APART, RELU))
    assert not torch.allclose(apart["network"]["0.weight"], together["network"]["0.weight"], rtol=1e-3)
    alone = Learner(APART, data(), CPU)
    alone.load(both[0] / APART.file())
    assert alone.accuracy() == alone.history[-1]["accuracy"]


def test_the_program_says_and_leaves_what_one_process_does(both, tmp_path, capsys):
    folder, done = both
    assert accuracy.main([*ARGUMENTS, "--output", str(tmp_path)]) == 0
    assert done.stdout.count("Results in") == 1
    assert done.stderr.count("[1/1] convnet8 ×0.0625 relu seed 0, epoch 1") == 1
    ours, theirs = (json.loads((place / "accuracy-cpu-digits.json").read_text(encoding="utf-8"))
                    for place in (folder, tmp_path))
    assert (ours["settings"]["processes"], theirs["settings"]["processes"]) == (2, 1)
    for epoch, alone in zip(ours["runs"][0]["history"], theirs["runs"][0]["history"], strict=True):
        assert epoch["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert epoch["accuracy"] == pytest.approx(alone["accuracy"], abs=1)
    checkpoints = [sorted(path.name for path in (place / "checkpoints").iterdir()) for place in (folder, tmp_path)]
    assert checkpoints[0] == checkpoints[1]
    assert (folder / "accuracy-cpu-digits.png").read_bytes().startswith(b"\x89PNG")


def test_more_processes_than_gpus_are_a_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit) as stopped:
        accuracy.main(["--device", "cuda", "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "accuracy.py: --device cuda: torchrun started more processes here than the 2 GPUs that PyTorch sees\n")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
