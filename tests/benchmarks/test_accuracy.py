"""Training: the data sets, a kill that changes nothing, the report and the command line."""

import gzip
import json
import re
import struct
from pathlib import Path

import accuracy
import pytest
import torch
from harness import datasets, learning
from harness.learning import RECIPES, Learner, Run

ROOT = Path(__file__).parents[2]
SHORT = RECIPES["short"]._replace(epochs=3, steps=(0.4,), augmented=True)


def silent(name):
    pass


@pytest.fixture(scope="module")
def data():
    return datasets.digits().of_size(130)._replace(mirrored=True)


def run(activation="leni", **changes):
    return Run("convnet8", activation, 0, "digits", 130, 0.0625, None, SHORT)._replace(**changes)


# ---- data --------------------------------------------------------------------------------------------------


def write_idx(path, array, *, packed=False):
    header = struct.pack(">BBBB", 0, 0, 8, array.dim()) + struct.pack(f">{array.dim()}I", *array.shape)
    content = header + bytes(array.flatten().tolist())
    if packed:
        path = path.with_name(f"{path.name}.gz")
        content = gzip.compress(content)
    path.write_bytes(content)


def write_fashion(folder, **how):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 5), ("t10k", 3)):
        write_idx(folder / f"{part}-images-idx3-ubyte", torch.arange(count * 12).reshape(count, 3, 4), **how)
        write_idx(folder / f"{part}-labels-idx1-ubyte", torch.arange(count), **how)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_idx_files_are_read_gzipped_or_not_and_where_torchvision_puts_them(tmp_path, packed, place):
    write_fashion(tmp_path / place, packed=packed)
    found = datasets.fashion_mnist(tmp_path)
    assert found.images.shape == (5, 1, 3, 4)
    assert found.test_images.shape == (3, 1, 3, 4)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert abs(found.images.mean()) < 1e-6
    steps = found.images.flatten().diff()
    assert torch.allclose(steps, 1 / torch.arange(60.0).std().expand(59), atol=1e-5)
    assert torch.equal(found.test_images, found.images[:3])


@pytest.mark.parametrize("spoil", ["missing", "truncated", "not gzip", "labels for images", "uneven"])
def test_a_bad_file_is_named(tmp_path, spoil):
    write_fashion(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte"
    if spoil == "missing":
        images.unlink()
    elif spoil == "truncated":
        images.write_bytes(images.read_bytes()[:40])
    elif spoil == "not gzip":
        images.rename(tmp_path / "train-images-idx3-ubyte.gz")
    elif spoil == "labels for images":
        images.write_bytes((tmp_path / "train-labels-idx1-ubyte").read_bytes())
    else:
        write_idx(images, torch.zeros(4, 3, 4, dtype=torch.int))
    with pytest.raises(ValueError, match="4 training images" if spoil == "uneven" else "train-images-idx3-ubyte"):
        datasets.fashion_mnist(tmp_path)


def test_digits_are_split_once_and_for_all():
    found = datasets.digits()
    assert found.images.shape == (1437, 1, 8, 8)
    assert found.test_images.shape == (360, 1, 8, 8)
    assert found.labels.bincount().min() > 100
    assert torch.equal(found.images, datasets.digits().images)


def test_crops_are_windows_of_the_padded_image_and_differ(data):
    learner = Learner(run(), data)
    images = torch.rand(64, 1, 8, 8) + 1
    cropped = learner._augmented(images)
    windows = torch.nn.functional.pad(images, [1] * 4).unfold(2, 8, 1).unfold(3, 8, 1).flatten(1, 3)
    matches = [(windows == candidate).flatten(2).all(2)
               for candidate in (cropped, cropped.flip(-1))]
    assert (matches[0] | matches[1]).any(1).all()
    assert matches[0].any(1).sum() not in (0, 64)
    assert len({tuple(row.nonzero().flatten().tolist()) for row in matches[0]}) > 4


# ---- a kill ------------------------------------------------------------------------------------------------


class Kill(Exception):
    """The process ends here."""


@pytest.mark.parametrize("activation", ["leni", "conv_relu", "rrelu", "fully_parametric_relu"])
def test_a_kill_loses_the_epoch_under_way_and_nothing_else(tmp_path, data, monkeypatch, activation):
    whole = learning.train(run(activation), data, tmp_path / "whole", silent)
    steps = iter(range(4))
    step = Learner._step

    def killed(self, *batch):
        if next(steps, None) is None:
            raise Kill
        return step(self, *batch)

    monkeypatch.setattr(Learner, "_step", killed)  # three steps an epoch: in the second one
    with pytest.raises(Kill):
        learning.train(run(activation), data, tmp_path / "killed", silent)
    monkeypatch.setattr(Learner, "_step", step)
    torch.manual_seed(123)
    torch.rand(7)
    resumed = learning.train(run(activation), data, tmp_path / "killed", silent)
    for ours, theirs in zip(resumed.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = ({name: str(part.state_dict()) for name, part in learner._stateful().items()}
                    for learner in (resumed, whole))
    assert ours == theirs
    assert [(epoch["loss"], epoch["accuracy"]) for epoch in resumed.history] == [
        (epoch["loss"], epoch["accuracy"]) for epoch in whole.history]


def test_a_finished_run_is_not_trained_again(tmp_path, data, monkeypatch):
    first = learning.train(run(), data, tmp_path, silent)
    monkeypatch.setattr(Learner, "epoch", lambda self: pytest.fail("trained again"))
    assert learning.train(run(), data, tmp_path, silent).history == first.history


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path, data, monkeypatch):
    learner = Learner(run(), data)
    path = tmp_path / "state.pt"
    learner.save(path)
    before = path.read_bytes()

    def half(file, content):
        file.write_text("half")
        raise Kill

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(Kill):
        learner.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def _spoilt(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another program's":
        torch.save({"model": torch.zeros(3)}, path)
    elif how == "of another network":
        Learner(run(width=0.125), datasets.digits()).save(path)
    else:
        path.write_text("no checkpoint at all")


@pytest.mark.parametrize("how", ["truncated", "empty", "another program's", "of another network", "a text"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, data, how):
    path = tmp_path / "state.pt"
    learner = Learner(run(), data)
    learner.save(path)
    _spoilt(path, how)
    with pytest.raises(learning.BadCheckpoint) as raised:
        learner.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path} is no whole checkpoint of this run (")
    assert message.endswith("): --fresh begins anew")
    assert "\n" not in message


def test_a_run_that_began_on_a_gpu_goes_on_without(tmp_path, data):
    learner = Learner(run(), data)
    learner.epoch()
    learner.save(tmp_path / "cpu.pt")
    state = torch.load(tmp_path / "cpu.pt", weights_only=True)
    torch.save({**state, "cuda": torch.zeros(16, dtype=torch.uint8)}, tmp_path / "cuda.pt")
    resumed = Learner(run(), data)
    resumed.load(tmp_path / "cuda.pt")
    assert resumed.history == learner.history
    assert torch.equal(resumed.generator.get_state(), learner.generator.get_state())


def test_a_run_that_began_without_a_gpu_goes_on_with_one(tmp_path, data, monkeypatch):
    learner = Learner(run(), data)
    learner.epoch()
    learner.save(tmp_path / "cpu.pt")
    restored = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.full((16,), 7, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state.tolist(), device)))
    resumed = Learner(run(), data)
    resumed.device = torch.device("cuda")  # all else stays where it is
    resumed.load(tmp_path / "cpu.pt")
    assert resumed.history == learner.history
    assert restored == []
    resumed.save(tmp_path / "cuda.pt")
    resumed.load(tmp_path / "cuda.pt")
    assert set(map(str, restored)) == {str(([7] * 16, resumed.device))}


def test_a_checkpoint_keeps_its_name():
    assert run().file() == "convnet8-leni-digits-0-7fe10c65.pt"


def test_other_runs_have_other_checkpoints():
    changes = [{}, {"seed": 1}, {"parts": 2}, {"activation": "relu"}, {"width": 0.5}, {"first": 1}, {"images": 7},
               {"recipe": SHORT._replace(learning_rate=0.2)}]
    assert len({run(**change).file() for change in changes}) == len(changes)


def test_the_learning_rate_falls_at_the_steps(data):
    learner = Learner(run(recipe=SHORT._replace(epochs=4, steps=(0.5, 0.75))), data)
    rates = []
    for _ in range(4):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.epoch()
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    assert learner.finished


# ---- the command -------------------------------------------------------------------------------------------


def test_a_run_leaves_table_json_and_pictures(tmp_path, capsys):
    arguments = ["--epochs", "2", "--seeds", "0", "1", "--images", "130", "--width", "0.0625", "--device", "cpu",
                 "--activations", "relu", "conv_relu", "--figures", "--output", str(tmp_path)]
    assert accuracy.main(arguments) == 0
    results = json.loads((tmp_path / "accuracy-cpu-digits.json").read_text(encoding="utf-8"))
    assert [(found["activation"], found["seed"]) for found in results["runs"]] == [
        ("relu", 0), ("conv_relu", 0), ("relu", 1), ("conv_relu", 1)]
    assert all(len(found["history"]) == 2 for found in results["runs"])
    first = results["summary"][0]
    values = torch.tensor([found["accuracy"] for found in results["runs"][::2]], dtype=torch.float64)
    assert first["accuracy"] == pytest.approx(values.mean().item())
    assert first["deviation"] == pytest.approx(values.std().item())
    assert results["machine"]["cpu"]
    assert "reduced setting" in capsys.readouterr().out
    for name in ("", "-maps", "-thresholds"):
        assert (tmp_path / f"accuracy-cpu-digits{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_paper_recipe_is_the_papers():
    recipe = RECIPES["paper"]
    assert (recipe.batch, recipe.weight_decay, recipe.xavier, recipe.augmented) == (64, 5e-4, True, True)
    assert (learning.MOMENTUM, learning.PADDING) == (0.9, 4)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dataset", "fashion-mnist"], "needs --data DIR"), (["--networks", "text"], "--networks"),
    (["--activations", "swoosh"], "--activations"), (["--epochs", "0"], "--epochs must be positive"),
    (["--images", "-1"], "--images must be positive"), (["--width", "0"], "--width must be positive"),
    (["--first", "-1"], "--first must not be negative"), (["--device", "tpu"], "--device")])
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        accuracy.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_data_is_named(tmp_path, capsys):
    arguments = ["--dataset", "fashion-mnist", "--data", str(tmp_path), "--output", str(tmp_path)]
    assert accuracy.main(arguments) == 2
    assert re.match(r"accuracy\.py: there is neither .*train-images", capsys.readouterr().err)


def test_a_checkpoint_that_is_none_is_a_line(tmp_path, capsys):
    arguments = ["--epochs", "1", "--seeds", "0", "--images", "130", "--width", "0.0625", "--device", "cpu",
                 "--activations", "relu", "--output", str(tmp_path)]
    assert accuracy.main(arguments) == 0
    checkpoint, = (tmp_path / "checkpoints").iterdir()
    _spoilt(checkpoint, "truncated")
    capsys.readouterr()
    assert accuracy.main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"accuracy.py: {checkpoint} is no whole checkpoint")
    assert accuracy.main([*arguments, "--fresh"]) == 0


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--help"])
    printed = capsys.readouterr().out
    for option in ("--dataset", "--data", "--networks", "--activations", "--seeds", "--recipe", "--figures", "--fresh",
                   "--sync-batch-norm"):
        assert option in printed
