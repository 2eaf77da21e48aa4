"""The benchmarks of Reborn: parity first, and the peers that it names."""

import pytest
import torch
from cases.reborn import inference, shared, training
from harness.maps import Map

import leni_kernels as lk
from leni_kernels.common import extension

CPU = torch.device("cpu")


@pytest.fixture(params=["channels_first", "channels_last"])
def small(request, monkeypatch):
    monkeypatch.setitem(shared.ELEMENTS, "cpu", 2 * 8 * 6**2)
    return Map(8, 6, request.param, "float32")


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize("part", [inference, training])
def test_all_sides_are_right_and_timed(small, part):
    row = part.measure(small, CPU, seconds=0)
    assert row["backend"] == "cpp"
    assert set(row["parity"]) < set(row["seconds"])
    assert "ours" in row["parity"]
    assert all(verdict["passed"] for verdict in row["parity"].values())
    assert set(row["seconds"]) == set(part.TABLE.times)
    assert set(row["ratios"]) == set(part.TABLE.ratios)


def test_without_a_kernel_ours_is_missing(small):
    with lk.use_backend("reference"):
        row = inference.measure(small, CPU, seconds=0)
    assert row["backend"] is None
    assert "would run on the reference" in row["missing"]["ours"]
    assert set(row["ratios"]) == set()


def test_a_wrong_step_gets_no_time(small, monkeypatch):
    contenders = training._contenders

    def wrong(*arguments):
        steps, *rest = contenders(*arguments)
        flipped = steps["flipped"]
        steps["flipped"] = lambda pair: {**flipped(pair), "deconv.weight": flipped(pair)["deconv.weight"] * 1.01}
        return steps, *rest

    monkeypatch.setattr(training, "_contenders", wrong)
    row = training.measure(small, CPU, seconds=0)
    assert not row["parity"]["flipped"]["passed"]
    assert "flipped" not in row["seconds"]


@pytest.mark.parametrize("part", [inference, training])
def test_cases(part):
    assert len(part.cases(quick=False)) == 8
    assert set(part.cases(quick=True)) < set(part.cases(quick=False))
