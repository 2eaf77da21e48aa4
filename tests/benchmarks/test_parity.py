"""No side is timed whose output is not the reference's."""

import json
import math

import pytest
import torch
from cases.leni import inference as leni_inference
from cases.leni import training as leni_training
from harness import parity, sides
from harness.maps import Map
from networks import comparison, first_activation, inference, training

import leni_kernels as lk

CPU = torch.device("cpu")


def test_float32_may_be_off_by_1e_5_of_the_largest_value():
    truth = torch.tensor([1.0, -100.0], dtype=torch.float64)
    close, far = truth.float(), truth.float() + torch.tensor([1.1e-3, 0])
    verdicts = parity.judge({"composed": close, "ours": far}, truth, composed="composed")
    assert verdicts["composed"].passed
    assert verdicts["ours"].error == pytest.approx(1.1e-5, rel=1e-2)
    assert not verdicts["ours"].passed


def test_bfloat16_may_be_off_by_twice_the_error_of_the_composed_block():
    truth = torch.full((4,), 100.0, dtype=torch.float64)
    outputs = {name: torch.full((4,), value, dtype=torch.bfloat16)
               for name, value in (("composed", 101), ("twice", 102), ("worse", 103))}
    verdicts = parity.judge(outputs, truth, composed="composed")
    assert [verdict.passed for verdict in verdicts.values()] == [True, True, False]


@pytest.mark.parametrize("values", [(1, math.nan), (1, math.inf), (1,)], ids=["nan", "inf", "shape"])
def test_a_nan_an_infinity_and_a_wrong_shape_never_pass(values):
    truth, output = torch.ones(2, dtype=torch.float64), torch.tensor(values)
    verdict = parity.judge({"composed": torch.ones(2), "ours": output}, truth, composed="composed")["ours"]
    assert not verdict.passed
    assert json.loads(json.dumps(verdict.as_json(), allow_nan=False))["passed"] is False


class _Wrong(torch.nn.Module):
    """The right block, off in one element."""

    def __init__(self, right, by):
        super().__init__()
        self.right, self.by = right, by

    def forward(self, x):
        y = self.right(x)
        y[-1, -1, -1, -1] += self.by * y.abs().max()
        return y


@pytest.fixture
def small(monkeypatch):
    """Cases that take no time: one small batch, no compiler."""
    monkeypatch.setitem(leni_inference.ELEMENTS, "cpu", 2 * 8 * 6**2)
    monkeypatch.setattr(leni_inference, "_compiled", lambda block, x: sides.composed(block))
    monkeypatch.setattr(sides, "backend_of", lambda network, x: "test")
    return Map(8, 6, "channels_last", "float32")


def test_a_right_contender_is_timed(small):
    row = leni_inference.measure(small, CPU, seconds=0)
    assert set(row["seconds"]) == {"eager", "compiled", "ours", "copy", "product", "relu"}
    assert row["backend"] == "test"
    medians = {name: time["median"] for name, time in row["seconds"].items()}
    limit = max(medians["copy"], medians["product"])
    assert row["ratios"]["ours/L"] == pytest.approx(medians["ours"] / limit)
    json.dumps(row, allow_nan=False)


def test_a_wrong_contender_gets_no_time(small, monkeypatch):
    monkeypatch.setattr(sides, "folded", lambda block: _Wrong(lk.fold(block), by=2e-5))
    row = leni_inference.measure(small, CPU, seconds=0)
    assert not row["parity"]["ours"]["passed"]
    assert "ours" not in row["seconds"]
    assert not any("ours" in ratio for ratio in row["ratios"])
    assert "eager" in row["seconds"]


def test_a_compiler_that_fails_leaves_its_column_empty_and_says_why(small, monkeypatch):
    def fail(block, x):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(leni_inference, "_compiled", fail)
    row = leni_inference.measure(small, CPU, seconds=0)
    assert row["missing"]["compiled"] == "torch.compile failed: RuntimeError: no compiler"
    assert "compiled" not in row["seconds"]


def test_a_fallback_to_the_reference_is_not_timed_as_ours(small, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(leni_inference.ELEMENTS, "cpu", 2 * 8 * 6**2)
    monkeypatch.setattr(leni_inference, "_compiled", lambda block, x: sides.composed(block))
    with lk.use_backend("reference"):
        row = leni_inference.measure(small, CPU, seconds=0)
    assert row["backend"] is None
    assert "ours" not in row["seconds"]
    assert "leni_folded would run on the reference" in row["missing"]["ours"]


class _Tiny(torch.nn.Module):
    """A network with an activation on 16 channels where mobilenet_v3_small has its first."""

    def __init__(self):
        super().__init__()
        first = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Identity(), torch.nn.ReLU())
        self.features = torch.nn.Sequential(first, torch.nn.Conv2d(16, 4, 3))

    def forward(self, x):
        return self.features(x).mean((2, 3))


@pytest.mark.parametrize("wrong", [False, True])
def test_a_network_with_a_wrong_block_gets_no_time(monkeypatch, wrong):
    monkeypatch.setattr(first_activation, "build", lambda name: _Tiny().eval())
    monkeypatch.setattr(sides, "backend_of", lambda network, x: "test")
    if wrong:
        def wrong_fold(network):
            network = lk.fold(network)
            network.features[0][2] = _Wrong(network.features[0][2], by=0.1)
            return network

        monkeypatch.setattr(sides, "folded", wrong_fold)
    case = comparison.Case("mobilenet_v3_small", "float32")
    row = inference.measure(case, CPU, seconds=0, images=torch.randn(32, 3, 12, 12))
    assert row["replaced"] == "ReLU"
    assert ("ours" in row["images_per_second"]) is not wrong
    assert ("ours" in row["change_percent"]) is not wrong
    assert {"stock", "composed"} <= set(row["images_per_second"])


def test_the_change_of_images_per_second_is_the_median_over_rounds():
    assert comparison.change([1.0, 1.0, 1.0], [2.0, 1.25, 0.1]) == pytest.approx(-20.0)


# ---- training ----------------------------------------------------------------------------------------------


def _block_and_pair():
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    return sides.random_leni(8).train(), (x, torch.randn(2, 8, 6, 6))


@pytest.mark.parametrize("name", ["y", "x", "deconv.weight", "bn_negative.weight", "bn_negative.bias", "compress.bias"])
def test_a_step_with_one_wrong_tensor_does_not_pass(name):
    block, pair = _block_and_pair()
    right = sides.composed(sides.step(block))

    def wrong(pair):
        tensors = right(pair)
        scale = tensors[name.replace("negative", "fusion")].abs().max()
        tensors[name] = tensors[name] + 5e-5 * scale
        return tensors

    verdicts = sides.judge_steps(block, {"eager": right, "ours": wrong}, pair)
    assert verdicts["eager"].passed
    assert verdicts["ours"].error == pytest.approx(5e-5, rel=0.2)
    assert not verdicts["ours"].passed


@pytest.fixture
def small_step(monkeypatch):
    monkeypatch.setitem(leni_training.ELEMENTS, "cpu", 2 * 8 * 6**2)
    monkeypatch.setattr(sides, "backend_of", lambda network, x: "test")
    return Map(8, 6, "channels_last", "float32")


def test_a_right_step_is_timed_and_a_shape_not_compiled_says_so(small_step):
    row = leni_training.measure(small_step, CPU, seconds=0)
    assert set(row["seconds"]) == {"eager", "ours", "copy", "product"}
    assert row["missing"] == {"compiled": leni_training.NOT_COMPILED}
    assert "ours/relu" not in row["ratios"]
    json.dumps(row, allow_nan=False)


def test_a_step_on_the_reference_is_not_timed_as_ours(small_step, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(leni_training.ELEMENTS, "cpu", 2 * 8 * 6**2)
    with lk.use_backend("reference"):
        row = leni_training.measure(small_step, CPU, seconds=0)
    assert "ours" not in row["seconds"]
    assert "leni would run on the reference" in row["missing"]["ours"]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_network_trains_and_one_with_a_wrong_block_gets_no_time(monkeypatch, wrong):
    monkeypatch.setattr(first_activation, "build", lambda name: _Tiny().eval())
    monkeypatch.setattr(sides, "backend_of", lambda network, x: "test")
    monkeypatch.setitem(comparison.BATCHES["cpu"], "mobilenet_v3_small", 8)
    if wrong:
        monkeypatch.setattr(parity, "OUR_STEP", 1e-12)
    case = comparison.Case("mobilenet_v3_small", "float32")
    row = training.measure(case, CPU, seconds=0, images=torch.randn(8, 3, 12, 12))
    assert ("ours" in row["images_per_second"]) is not wrong
    assert {"stock", "composed"} <= set(row["images_per_second"])
    assert row["batch"] == 4
