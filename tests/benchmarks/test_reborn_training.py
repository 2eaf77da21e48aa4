"""The benchmark of Reborn's training step: parity first, and the peers that it names."""

import pytest
import reborn_training
import torch

from leni_kernels.common import extension

CPU = torch.device("cpu")


@pytest.fixture(params=["channels_first", "channels_last"])
def small(request, monkeypatch):
    monkeypatch.setitem(reborn_training.ELEMENTS, "cpu", 2 * 8 * 6**2)
    return reborn_training.Case(8, 6, request.param, "float32")


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
def test_all_sides_are_right_and_timed(small):
    row = reborn_training.measure(small, CPU, seconds=0)
    assert row["backend"] == "cpp"
    assert set(row["parity"]) == set(reborn_training.CONTENDERS)
    assert all(verdict["passed"] for verdict in row["parity"].values())
    assert set(row["seconds"]) == set(reborn_training.TABLE.times)
    assert set(row["ratios"]) == set(reborn_training.TABLE.ratios)
    assert str(small).startswith("Reborn 8×6²")


def test_a_wrong_step_gets_no_time(small, monkeypatch):
    contenders = reborn_training._contenders

    def wrong(*arguments):
        steps, *rest = contenders(*arguments)
        flipped = steps["flipped"]
        steps["flipped"] = lambda pair: {**flipped(pair), "deconv.weight": flipped(pair)["deconv.weight"] * 1.01}
        return steps, *rest

    monkeypatch.setattr(reborn_training, "_contenders", wrong)
    row = reborn_training.measure(small, CPU, seconds=0)
    assert not row["parity"]["flipped"]["passed"]
    assert "flipped" not in row["seconds"]


def test_cases():
    assert len(reborn_training.cases(quick=False)) == 8
    assert set(reborn_training.cases(quick=True)) < set(reborn_training.cases(quick=False))
