"""Training: the data sets, a kill that changes nothing, the report and the command line."""

import json
import re
from pathlib import Path

import accuracy
import pytest
import torch
from datasets import images
from harness import figures, learned, learning
from harness.learning import RECIPES, Learner, Run
from networks.tables import TABLES

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHORT = RECIPES["short"]._replace(epochs=3, steps=(0.4,), augmented=True)


def silent(name):
    pass


@pytest.fixture(scope="module")
def data():
    return images.digits().of_size(130)._replace(mirrored=True)


def run(activation="leni", **changes):
    return Run("convnet8", activation, 0, "digits", 130, 0.0625, "all", SHORT)._replace(**changes)


# ---- a kill ------------------------------------------------------------------------------------------------


class Kill(Exception):
    """The process ends here."""


@pytest.mark.parametrize("activation", ["leni", "conv_relu", "rrelu", "fully_parametric_relu"])
def test_a_kill_loses_the_epoch_under_way_and_nothing_else(tmp_path, data, monkeypatch, activation):
    whole = learning.train(run(activation), data, CPU, tmp_path / "whole", silent)
    steps = iter(range(4))
    step = Learner._step

    def killed(self, *batch):
        if next(steps, None) is None:
            raise Kill
        return step(self, *batch)

    monkeypatch.setattr(Learner, "_step", killed)  # three steps an epoch: in the second one
    with pytest.raises(Kill):
        learning.train(run(activation), data, CPU, tmp_path / "killed", silent)
    monkeypatch.setattr(Learner, "_step", step)
    torch.manual_seed(123)
    torch.rand(7)
    resumed = learning.train(run(activation), data, CPU, tmp_path / "killed", silent)
    for ours, theirs in zip(resumed.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = ({name: str(part.state_dict()) for name, part in learner._stateful().items()}
                    for learner in (resumed, whole))
    assert ours == theirs
    assert [(epoch["loss"], epoch["accuracy"]) for epoch in resumed.history] == [
        (epoch["loss"], epoch["accuracy"]) for epoch in whole.history]


def test_a_finished_run_is_not_trained_again(tmp_path, data, monkeypatch):
    first = learning.train(run(), data, CPU, tmp_path, silent)
    monkeypatch.setattr(Learner, "epoch", lambda self: pytest.fail("trained again"))
    assert learning.train(run(), data, CPU, tmp_path, silent).history == first.history


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path, data, monkeypatch):
    learner = Learner(run(), data, CPU)
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
        Learner(run(width=0.125), images.digits(), CPU).save(path)
    else:
        path.write_text("no checkpoint at all")


@pytest.mark.parametrize("how", ["truncated", "empty", "another program's", "of another network", "a text"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, data, how):
    path = tmp_path / "state.pt"
    learner = Learner(run(), data, CPU)
    learner.save(path)
    _spoilt(path, how)
    with pytest.raises(learning.BadCheckpoint) as raised:
        learner.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path} is no whole checkpoint of this run (")
    assert message.endswith("): --fresh begins anew")
    assert "\n" not in message


def test_a_run_that_began_on_a_gpu_goes_on_without(tmp_path, data):
    learner = Learner(run(), data, CPU)
    learner.epoch()
    learner.save(tmp_path / "cpu.pt")
    state = torch.load(tmp_path / "cpu.pt", weights_only=True)
    torch.save({**state, "cuda": torch.zeros(16, dtype=torch.uint8)}, tmp_path / "cuda.pt")
    resumed = Learner(run(), data, CPU)
    resumed.load(tmp_path / "cuda.pt")
    assert resumed.history == learner.history
    assert torch.equal(resumed.generator.get_state(), learner.generator.get_state())


def test_a_run_that_began_without_a_gpu_goes_on_with_one(tmp_path, data, monkeypatch):
    learner = Learner(run(), data, CPU)
    learner.epoch()
    learner.save(tmp_path / "cpu.pt")
    restored = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.full((16,), 7, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state.tolist(), device)))
    resumed = Learner(run(), data, CPU)
    resumed.device = torch.device("cuda")  # all else stays where it is
    resumed.load(tmp_path / "cpu.pt")
    assert resumed.history == learner.history
    assert restored == []
    resumed.save(tmp_path / "cuda.pt")
    resumed.load(tmp_path / "cuda.pt")
    assert set(map(str, restored)) == {str(([7] * 16, resumed.device))}


def test_a_checkpoint_keeps_its_name():
    assert run().file() == "convnet8-leni-digits-0-18f929c4.pt"


def test_other_runs_have_other_checkpoints():
    changes = [{}, {"seed": 1}, {"parts": 2}, {"activation": "relu"}, {"width": 0.5}, {"where": "first:1"},
               {"examples": 7}, {"recipe": SHORT._replace(learning_rate=0.2)}]
    assert len({run(**change).file() for change in changes}) == len(changes)


def test_the_learning_rate_falls_at_the_steps(data):
    learner = Learner(run(recipe=SHORT._replace(epochs=4, steps=(0.5, 0.75))), data, CPU)
    rates = []
    for _ in range(4):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.epoch()
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    assert learner.finished


# ---- the command -------------------------------------------------------------------------------------------


def test_a_run_leaves_table_json_and_pictures(tmp_path, capsys):
    arguments = ["--epochs", "2", "--seeds", "0", "1", "--examples", "130", "--width", "0.0625", "--device", "cpu",
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


def test_a_table_is_trained_by_its_papers_recipe_beside_its_numbers(tmp_path, capsys):
    arguments = ["--table", "reborn-3", "--networks", "convnet8", "--methods", "ReLU", "Half Reborn Mechanism",
                 "--activations", "conv_relu", "--dataset", "digits", "--epochs", "2", "--seeds", "0", "1",
                 "--examples", "130", "--width", "0.125", "--device", "cpu", "--output", str(tmp_path)]
    assert accuracy.main(arguments) == 0
    results = json.loads((tmp_path / "accuracy-cpu-reborn-3-digits.json").read_text(encoding="utf-8"))
    assert [run["method"] for run in results["runs"]] == 2 * ["ReLU", "Half Reborn Mechanism", "conv_relu"]
    assert [run["width"] for run in results["runs"][:3]] == [0.125, 0.0625, 0.125]
    recipe = results["settings"]["recipe"]
    assert (recipe["name"], recipe["epochs"], recipe["whole"], recipe["learning_rate"]) == ("reborn", 2, 80, 0.001)
    printed = capsys.readouterr().out
    assert "reduced setting" in printed
    assert "less ReLU's" in printed


def test_the_published_accuracy_stands_beside_ours():
    options = accuracy._options(["--table", "reborn-3", "--networks", "convnet8", "--dataset", "fashion-mnist",
                                 "--data", "."])
    found = [accuracy.published.accuracy("reborn-3", row.network, row.method, "fashion-mnist")
             for row in accuracy._rows(options)]
    assert found == ["92.95", "92.45", "92.93", "93.02", "93.05"]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_a_command(table, tmp_path):
    datasets = TABLES[table].datasets
    options = accuracy._options(["--table", table, "--data", str(tmp_path),
                                 *([] if datasets else ["--dataset", "cifar10"])])
    assert options.dataset == list(datasets or ["cifar10"])
    assert options.recipe == TABLES[table].recipe
    assert accuracy._rows(options) == list(TABLES[table].rows)


def test_what_a_method_gains_is_the_mean_of_pairs_with_students_interval():
    rows = [{"network": "net", "method": method, "activation": activation, "width": 1.0, "published": None}
            for method, activation in (("ReLU", "relu"), ("ours", "leni"))]
    accuracies = [(80.0, 81.0), (70.0, 73.0), (90.0, 92.0)]
    runs = [{"accuracy": value, "parameters": 7} for pair in accuracies for value in pair]
    stock, ours = learned.summary({"settings": {"rows": rows}, "runs": runs})
    assert stock["gain"] is None
    assert (stock["accuracy"], stock["deviation"]) == (80, 10)
    assert ours["gain"]["mean"] == pytest.approx(2)
    # Student's t of 2 degrees of freedom reaches 4.3027 at 95 %; the deviation of (1, 3, 2) is 1.
    assert [ours["gain"][end] for end in ("low", "high")] == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5],
                                                                          abs=1e-4)
    alone = learned.summary({"settings": {"rows": rows}, "runs": runs[:2]})[1]
    assert alone["gain"] == {"mean": 1.0, "low": None, "high": None}
    assert alone["deviation"] is None


def test_a_halved_network_is_no_measure_of_what_is_gained():
    rows = [{"network": "net", "method": method, "activation": activation, "width": 0.5, "published": None}
            for method, activation in (("Half ReLU", "relu"), ("Half Reborn", "reborn"))]
    runs = [{"accuracy": value, "parameters": 7} for value in (80.0, 81.0)]
    assert [row["gain"] for row in learned.summary({"settings": {"rows": rows}, "runs": runs})] == [None, None]


def test_entropy_and_zeros_are_those_of_known_values():
    assert figures.entropy(torch.arange(256.0)) == pytest.approx(8)
    assert figures.entropy(torch.tensor([0.0, 0.0, 1.0, 1.0])) == pytest.approx(1)
    assert figures.zeros(torch.tensor([0.0, 0.0, -1.0, 2.0])) == 0.5


def test_the_recipes_are_the_papers():
    reborn = learning.recipe("reborn", "mnist")
    assert (reborn.epochs, reborn.learning_rate, reborn.steps, reborn.batch) == (80, 0.001, (0.5,), 64)
    assert (reborn.weight_decay, reborn.xavier, reborn.augmented, learning.MOMENTUM) == (5e-4, True, True, 0.9)
    assert {learning.recipe("reborn", name).epochs for name in ("cifar10", "cifar100")} == {160}
    conv_relu = learning.recipe("conv_relu", "cifar10")
    assert (conv_relu.learning_rate, conv_relu.batch) == (0.1, 128)
    assert [step * conv_relu.epochs for step in conv_relu.steps] == [150, 250]
    assert learning.recipe("reborn", "cifar10", 10).epochs == 10


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dataset", "fashion-mnist"], "needs --data DIR"),
    (["--networks", "text"], "--networks text does not read --dataset digits"),
    (["--methods", "ReLU"], "--table"), (["--table", "reborn-9"], "--table"),
    (["--table", "reborn-2", "--methods", "Swish", "--data", "."], "--methods Swish: the table reborn-2 has ReLU"),
    (["--table", "reborn-2", "--networks", "densenet", "--data", "."], "--networks densenet: the table reborn-2 has"),
    (["--table", "conv_relu-6"], "prints parameters only"), 
    (["--table", "conv_relu-2", "--dataset", "digits"], "--networks text does not read --dataset digits"),
    (["--activations", "swoosh"], "--activations"), (["--epochs", "0"], "--epochs must be positive"),
    (["--examples", "-1"], "--examples must be positive"), (["--width", "0"], "--width must be positive"),
    (["--where", "last"], "where must be"), (["--device", "tpu"], "--device")])
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
    arguments = ["--epochs", "1", "--seeds", "0", "--examples", "130", "--width", "0.0625", "--device", "cpu",
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
                   "--table", "--methods",
                   "--sync-batch-norm"):
        assert option in printed
