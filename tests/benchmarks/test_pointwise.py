"""The pointwise activations' part of the benchmark."""

import pointwise
import pytest
import torch


def test_cases_cover_both_layouts_and_works():
    found = pointwise.cases(quick=False)
    assert len(set(found)) == len(found) == 2 * 2 * len(pointwise.SHAPES)
    assert set(pointwise.cases(quick=True)) <= set(found)


@pytest.mark.parametrize("work", ["forward", "step"])
def test_a_row_has_times_ratios_and_verdicts(work, monkeypatch):
    monkeypatch.setitem(pointwise.ELEMENTS, "cpu", 2 * 8 * 6**2)
    row = pointwise.measure(pointwise.Case(work, 8, 6, "channels_last"), torch.device("cpu"), 0.0)
    assert row["batch"] == 2
    assert set(row["parity"]) == set(pointwise.OURS)
    assert all(verdict["passed"] for verdict in row["parity"].values())
    assert {"ReLU", "PReLU", *pointwise.OURS, "composed CReLU"} <= set(row["seconds"])
    assert set(pointwise.TABLE.ratios) == set(row["ratios"])
    assert pointwise.TABLE.label(row) == f"{work}, 8, 6²"
