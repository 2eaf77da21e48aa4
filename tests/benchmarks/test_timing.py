"""Sides alternate, and the summary is of what was sampled."""

import pytest
import torch
from harness import timing


def test_every_side_runs_once_a_round_and_every_second_round_runs_backwards():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = timing.alternate(sides, timing.timer(torch.device("cpu")), seconds=0, rounds=(4, 4))
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    warm_up = 3 * timing.WARM_UP
    assert calls[warm_up:] == [*"abc", *"cba", *"abc", *"cba"]


def test_samples_belong_to_their_side_and_round():
    clock = iter(range(100))
    samples = timing.alternate({"a": lambda: None, "b": lambda: None}, lambda side: next(clock), 0, (3, 3))
    assert samples == {"a": [0, 3, 4], "b": [1, 2, 5]}


def test_sampling_ends_with_the_time_but_not_before_the_least_rounds():
    samples = timing.alternate({"a": lambda: None}, lambda side: 1.0, seconds=0, rounds=(3, 1000))
    assert len(samples["a"]) == 3
    samples = timing.alternate({"a": lambda: None}, lambda side: 1.0, seconds=60, rounds=(3, 7))
    assert len(samples["a"]) == 7


def test_the_clock_measures_the_call_it_makes():
    assert timing.timer(torch.device("cpu"))(lambda: torch.cos(torch.ones(2**20))) > 0


def test_summary_is_robust_against_one_outlier():
    found = timing.summary([3.0, 1.0, 2.0, 1000.0, 2.0])
    assert found["median"] == 2.0
    assert found["count"] == 5
    assert found["quantiles"]["0.5"] == 2.0
    assert found["quantiles"]["0.25"] == 2.0
    assert found["quantiles"]["0.95"] == pytest.approx(800.6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_clock_sees_the_work_and_not_only_its_launch():
    timer = timing.timer(torch.device("cuda"))
    small, large = (torch.randn(size, size, device="cuda") for size in (64, 8192))
    assert timer(lambda: large @ large) > 5 * timer(lambda: small @ small)
