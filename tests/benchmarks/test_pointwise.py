"""The pointwise activations' part of the benchmark."""

import pytest
import torch
from cases.pointwise import inference, shared, training

PARTS = {"forward": inference, "step": training}


@pytest.mark.parametrize("work", PARTS)
def test_cases_cover_both_layouts(work):
    found = PARTS[work].cases(quick=False)
    assert len(set(found)) == len(found) == 2 * len(shared.SHAPES)
    assert {case.work for case in found} == {work}
    assert set(PARTS[work].cases(quick=True)) <= set(found)


@pytest.mark.parametrize("work", PARTS)
def test_a_row_has_times_ratios_and_verdicts(work, monkeypatch):
    monkeypatch.setitem(shared.ELEMENTS, "cpu", 2 * 8 * 6**2)
    row = PARTS[work].measure(shared.Case(work, 8, 6, "channels_last"), torch.device("cpu"), 0.0)
    assert row["batch"] == 2
    assert set(row["parity"]) == set(shared.OURS)
    assert all(verdict["passed"] for verdict in row["parity"].values())
    assert {"ReLU", "PReLU", *shared.OURS, "composed CReLU"} <= set(row["seconds"])
    assert set(PARTS[work].TABLE.ratios) == set(row["ratios"])
    assert PARTS[work].TABLE.label(row) == "8, 6×6"
