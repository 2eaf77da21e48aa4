"""The time around the kernels: how calls are counted, and what a row says."""

import json
from functools import partial

import overhead
import pytest
import readme
import torch
from gpu.device import StandIn
from harness import bars, sides, tables, tiny
from torch import nn

import leni_kernels as lk
from leni_kernels.common import extension

CPU = torch.device("cpu")
SUBJECTS = {subject.name: subject for subject in overhead.SUBJECTS}
needs_extension = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(overhead, "SECONDS", 0.0)
    monkeypatch.setattr(overhead, "ROUNDS", (1, 1))
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---- calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "calls"), [
    (torch.relu, 1), (lambda x: x.flatten()[1:].t(), 0), (torch.empty_like, 0), (torch.zeros_like, 1),
    (lambda x: x.contiguous(), 0), (lambda x: x.transpose(1, 2).contiguous(), 1),  # a view that copies, or does not
    (lambda x: x.to(torch.float64).to(torch.float64), 1), (lambda x: torch.relu(x).mul_(2) + 1, 3)])
def test_what_computes_or_copies_counts_and_views_and_allocations_do_not(run, calls):
    x = torch.randn(tiny.SHAPE)
    assert overhead.operator_calls(lambda: run(x)) == {"aten": calls, "leni_kernels": 0, "accumulate": 0}


def test_what_pytorch_calls_in_turn_is_one_call():
    layer, x = nn.Conv2d(16, 4, 3), torch.randn(tiny.SHAPE)
    assert overhead.operator_calls(lambda: layer(x))["aten"] == 1


def test_a_step_counts_backward_and_one_addition_for_each_gradient():
    layer, x, grad = nn.Linear(4, 3, bias=False), torch.randn(2, 4, requires_grad=True), torch.ones(2, 3)

    def step():
        layer(x).relu().backward(grad)

    step()
    found = overhead.operator_calls(step)  # a product and relu; the backward of relu, and two products
    assert found == {"aten": 5, "leni_kernels": 0, "accumulate": 2}


def test_what_an_operator_of_ours_calls_counts_beside_it():
    with torch.library._scoped_library("leni_kernels", "FRAGMENT") as library:
        library.define("counted(Tensor x) -> Tensor")
        library.impl("counted", lambda x: torch.relu(x.view(-1)) + 1, "CompositeExplicitAutograd")
        found = overhead.operator_calls(lambda: torch.ops.leni_kernels.counted(torch.ones(3)))
    assert found == {"aten": 3, "leni_kernels": 1, "accumulate": 0}  # torch.ones is one of them


# ---- rows --------------------------------------------------------------------------------------------------


@needs_extension
def test_everything_is_right_timed_and_judged(tmp_path, capsys):
    folder = tmp_path / "benchmarks" / "results"
    assert overhead.main(["--device", "cpu", "--output", str(folder)]) == 0
    (path,) = folder.iterdir()
    assert path.name == f"overhead-cpu-{extension.cpu_isa()}.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["threads"] == 1
    rows = results["overhead"]
    assert [(row["subject"], row["work"]) for row in rows] == [
        (subject.name, work) for work in tiny.WORKS for subject in overhead.SUBJECTS if work in subject.works]
    for row in rows:
        assert row["parity"][row["subject"]]["passed"]
        assert row["seconds"]["median"] > 0
        assert ("ours/peer" in row["ratios"]) == (row["backend"] == "cpp") == (row["peer"] is not None)
        assert (row["calls"]["leni_kernels"] > 0) == (row["peer"] is not None)
        assert (row["calls"]["accumulate"] > 0) == (row["work"] == "step")
    assert all(bar.measured(results) for bar in bars.of_overhead())
    assert not any(bar.measured({"overhead": []}) for bar in bars.of_overhead())
    printed = capsys.readouterr().out
    assert all(subject in printed for subject in ("LENI2d", "ConvReLU2d"))
    assert "Against the numbers to reach" in printed
    written = readme.section(folder)
    for cells in (*overhead.cells(results), *tables.of_bars([results], bars.of_overhead())[1]):
        assert f"| {' | '.join(cells)} |" in written


@pytest.mark.parametrize("work", tiny.WORKS)
def test_only_a_step_accumulates_and_in_x_and_all_parameters(work):
    prepared = overhead._prepared(SUBJECTS["composed LENI"], work, CPU)
    calls = overhead._row(prepared, {"composed LENI": {"median": 1.0}}, CPU)["calls"]
    parameters = len([*lk.LENI2d(tiny.CHANNELS).parameters()])
    assert calls["accumulate"] == (parameters + 1 if work == "step" else 0)


@pytest.mark.parametrize("work", tiny.WORKS)
def test_a_wrong_side_gets_no_time_and_fails_the_run(work, tmp_path, monkeypatch, capsys):
    def wrong(layer, x):
        return layer(x) * (1 if x.dtype == torch.float64 else 1.01)

    subject = tiny.Subject("wrong", None, partial(nn.Conv2d, tiny.CHANNELS, 4, 1), wrong, works=(work,))
    monkeypatch.setattr(overhead, "SUBJECTS", (SUBJECTS["ReLU"], subject))
    assert overhead.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    assert f"REFUSED, differs from the reference: wrong, {work}" in capsys.readouterr().out
    results = json.loads(next(tmp_path.iterdir()).read_text(encoding="utf-8"))
    assert {row["subject"] for row in results["overhead"] if "seconds" in row} == {"ReLU"}


def test_a_side_without_a_kernel_is_missing(monkeypatch):
    def fail(module, x):
        raise sides.Fallback("no kernel")

    monkeypatch.setattr(sides, "backend_of", fail)
    prepared = overhead._prepared(SUBJECTS["LENI2d"], "step", CPU)
    row = overhead._row(prepared, {}, CPU)
    assert row["missing"] == {"LENI2d": "no kernel"}
    assert "seconds" not in row


def test_on_a_gpu_the_table_has_launches_and_the_time_in_kernels(monkeypatch):
    monkeypatch.setattr(overhead, "Gpu", StandIn)
    prepared = [overhead._prepared(SUBJECTS["conv(relu(x))"], work, CPU) for work in tiny.WORKS]
    rows = [overhead._row(each, {each.subject.name: {"median": 2e-6}}, torch.device("cuda")) for each in prepared]
    assert all(row["kernels"]["launches"] > 1 and row["kernels"]["microseconds"] > 0 for row in rows)
    results = {"device": "cuda", "overhead": rows, "shape": tiny.SHAPE}
    (cells,) = overhead.cells(results)
    found = dict(zip(overhead.head(results), cells, strict=True))
    assert found["inference: kernels"] == str(rows[0]["kernels"]["launches"])
    assert found["step: µs"] == "2.0"
    assert found["peer"] == "—"


def test_bars_of_overhead_stay_out_of_the_main_table():
    run, wanted = {"device": "cpu", "machine": {}, "kernels_isa": "avx2"}, [bar.what for bar in bars.of_overhead()]
    assert not {cells[0] for cells in tables.of_bars([run])[1]} & set(wanted)
    assert [cells[0] for cells in tables.of_bars([run], bars.of_overhead())[1]] == wanted
