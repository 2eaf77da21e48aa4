"""Which tiling is the fastest on a GPU: compiled in parallel, checked against float64, then timed in turns."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from harness import parity, timing

from leni_kernels.common.gpu import tilings

from . import candidates
from .subjects import OPERANDS, SIZES, Inputs, Outputs, Subject, subjects
from .workers import Failure, Workers, failure_of

CHUNK = 8
"""Subjects whose tilings are compiled at a time, before any of them is timed."""

RESERVE = 0.1
"""The part of the budget that is left for the check in the other half precision."""

LEAST_GAIN = 0.02
BUFFERS = 2
"""Sets of inputs that take turns."""

_RULES_ALLOWED = {"fp16": 5e-3, "bf16": 3e-2, "fp32": 1e-4}
"""What the rule's tiling may be off by, of the largest value; others may be off by twice as much as it is, and by what
float32 may be off."""


class Plan(NamedTuple):
    """How much is done; it is sent to other processes."""

    device: torch.device
    operands: tuple[str, ...]
    """The one that is timed, then those that get the same tilings, once they are checked."""
    sizes: Mapping[int, int]
    elements: int
    """Of an activation."""
    tried: int
    seconds: float
    """For the times of a subject, at most."""
    rounds: tuple[int, int]
    """At least and at most, of launches of each tiling."""

    def shape(self, subject: Subject, part: int = 1) -> tuple[int, int]:
        """N and H of an activation of ``elements // part``."""
        size = self.sizes[subject.channels]
        return max(1, self.elements // part // (subject.channels * size**2)), size


def plan(device: torch.device) -> Plan:
    """For a GPU: activations of 128 MiB, several times any L2 cache, or of 1/512 of a small GPU's memory."""
    memory = torch.cuda.get_device_properties(device).total_memory
    elements = min(2**26, memory // 2**10)
    return Plan(device, OPERANDS, SIZES, elements, candidates.KEPT, 0.5, (5, 60))


# The interpreter is wrong for bfloat16.
REHEARSAL = Plan(torch.device("cpu"), ("fp16", "fp32"), {16: 4}, 1, 2, 0, (1, 1))


class Row(NamedTuple):
    """What became of a subject."""

    subject: str
    best: dict[str, int]
    """The fastest tiling, or the rule's where none is faster enough."""
    microseconds: float | None
    ratio: float | None
    """How many times faster it is than the rule's."""
    timed: int
    left_out: dict[str, int]
    refused: str
    """Why nothing was timed."""
    times: list[dict[str, Any]]


def run(plan: Plan, architecture: str, match: str, budget: float,
        workers: Workers) -> Iterator[tuple[list[Row], dict[tilings.Key, dict[str, int]]]]:
    """Time the subjects until ``budget`` seconds have passed; yields their rows and the tilings that won.

    Last come the winners in the other half precision; those that are not right there have a row without a time.
    """
    end = time.monotonic() + budget
    enough = end - RESERVE * budget
    listed = candidates.read(architecture)
    timed, *others = plan.operands
    waiting = subjects(architecture, timed, match, plan.sizes)
    time_call = timing.timer(plan.device)
    winners = []
    while waiting and time.monotonic() < enough:
        chunk, waiting = waiting[:CHUNK], waiting[CHUNK:]
        jobs = [(plan, subject, tiling) for subject in chunk
                for tiling in candidates.to_try(subject, listed)[:plan.tried]]
        results = workers.map(launch, jobs, enough)
        for index, subject in enumerate(chunk):
            tried = {tiling: result for (_, of, tiling), result in zip(jobs, results, strict=True) if of == subject}
            left = enough - time.monotonic()
            if left < 0:
                break
            seconds = min(plan.seconds, left / 2 / (len(chunk) - index + len(waiting)))
            try:
                row, winner = measure(plan, subject, tried, time_call, seconds)
            except Exception as error:  # too little memory, say: the others go on
                row, winner = refused(subject, failure_of(error).reason), None
            if winner is not None:
                winners += [(plan, subject._replace(operand=operand), winner) for operand in others]
            yield [row], {} if winner is None else {subject.key: winner._asdict()}
    for (_, subject, tiling), found in zip(winners, workers.map(right, winners, end), strict=True):
        reason = found.reason if isinstance(found, Failure) else "" if found else "its outputs are wrong"
        rows = [Row(str(subject), tiling._asdict(), None, None, 0, {reason: 1}, "", [])] if reason else []
        yield rows, {} if reason else {subject.key: tiling._asdict()}


def at_once(device: torch.device, wanted: int) -> int:
    """How many processes may use the GPU: each wants about 2 GiB of its memory."""
    if device.type == "cpu":
        return wanted
    return max(1, min(wanted, torch.cuda.get_device_properties(device).total_memory // 2**31))


def launch(plan: Plan, subject: Subject, tiling: Any) -> None:
    """Launch once as it will be timed: what this process compiles, the others find in Triton's cache."""
    subject.run(tiling, subject.inputs(plan.shape(subject), plan.device))
    _finish(plan.device)


def right(plan: Plan, subject: Subject, tiling: Any) -> bool:
    """Whether a tiling's outputs are as near the truth as those of the rule's, on smaller inputs."""
    inputs = subject.inputs(plan.shape(subject, 16), plan.device)
    truth = subject.truth(inputs)
    allowed = _allowed(_errors(subject, subject.incumbent(), inputs, truth))
    found = _errors(subject, tiling, inputs, truth)
    _finish(plan.device)
    return _within(found, allowed) and max(found) <= _RULES_ALLOWED[subject.operand]


def measure(plan: Plan, subject: Subject, tried: Mapping[Any, Any], time_call: Any,
            seconds: float) -> tuple[Row, Any | None]:
    """Time the tilings whose ``tried`` is no failure; returns the row, and the one that beats the rule's or None.

    The rule's is the first.
    """
    rule = next(iter(tried))
    left_out: Counter[str] = Counter(result.reason for result in tried.values() if isinstance(result, Failure))
    alive = [tiling for tiling, result in tried.items() if not isinstance(result, Failure)]
    if rule not in alive:
        return refused(subject, f"the rule's tiling: {tried[rule].reason}"), None
    sets = [subject.inputs(plan.shape(subject), plan.device) for _ in range(BUFFERS)]
    truth = subject.truth(sets[0])
    errors = _errors(subject, rule, sets[0], truth)
    if not max(errors) <= _RULES_ALLOWED[subject.operand]:
        return refused(subject, f"the rule's tiling is off by {max(errors):.1e}"), None
    allowed = _allowed(errors)
    passed = [rule, *(tiling for tiling in alive if tiling != rule
                      and _within(_errors(subject, tiling, sets[0], truth), allowed))]
    left_out["wrong"] += len(alive) - len(passed)
    turns = itertools.cycle(sets)
    sides = {tiling: lambda tiling=tiling: subject.run(tiling, next(turns)) for tiling in passed}
    samples = timing.alternate(sides, time_call, seconds, plan.rounds)
    times = {tiling: timing.summary(values) for tiling, values in samples.items()}
    best = min(times, key=lambda tiling: times[tiling]["median"])
    gain = times[rule]["median"] / times[best]["median"]
    if gain <= 1 + max(LEAST_GAIN, _spread(times[rule]), _spread(times[best])):
        best, gain = rule, 1.0
    listed = [{"tiling": list(tiling), **summary} for tiling, summary in times.items()]
    row = Row(str(subject), best._asdict(), times[best]["median"] * 1e6, gain, len(passed), dict(+left_out), "", listed)
    _finish(plan.device)
    return row, None if best == rule else best


def refused(subject: Subject, reason: str) -> Row:
    """The row of a subject of which nothing was timed."""
    return Row(str(subject), {}, None, None, 0, {}, reason, [])


def _errors(subject: Subject, tiling: Any, inputs: Inputs, truth: Outputs) -> list[float]:
    outputs = subject.run(tiling, inputs)
    return [parity.error(output, wanted) for output, wanted in zip(outputs, truth, strict=True)]


def _allowed(rules: list[float]) -> list[float]:
    return [2 * error + 1e-5 for error in rules]


def _within(errors: list[float], allowed: list[float]) -> bool:
    return all(error <= limit for error, limit in zip(errors, allowed, strict=True))


def _spread(times: Mapping[str, Any]) -> float:
    """The distance between the quartiles, in medians."""
    quantiles = times["quantiles"]
    return (quantiles["0.75"] - quantiles["0.25"]) / times["median"]


def _finish(device: torch.device) -> None:
    """Wait for the GPU, and leave its memory to the other processes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
