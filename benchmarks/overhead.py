"""The time around the kernels: what a call costs where the kernels themselves have next to nothing to do.

On one thread, with x of shape [1, 16, 4, 4] in float32: inference (eval mode, no gradients), and a training step
(forward, and backward of a given gradient, which accumulates in x and all parameters). All sides alternate, and each
is compared with its peer; *composed* is the definition in ``reference.py`` on PyTorch's layers, called without this
package's choice of backend. Times are the host's, on a GPU until the last call of a turn is done.

Operator calls are counted in what PyTorch's profiler sees of one call, in forward and backward. Each operator of this
package counts, and each of PyTorch's (``aten::``) that no other one of PyTorch's has called: ``conv2d`` is one call,
whatever it calls in turn, and what our operators call of PyTorch's counts beside them. A view or an allocation does
not count, but what a view calls does: ``contiguous`` where it copies. The addition that accumulates a gradient is such
a call too, one for x and one for each parameter; the results have these apart.

On a GPU the kernels that a call launches and the time in them are counted too. Leaves a table and a JSON file in the
output folder; exits with 1 if an output differed from the float64 reference, and such a side has no time.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cases
import torch
from gpu.device import Gpu
from harness import bars, command, history, machine, parity, report, sides, tables, timing
from harness.report import number
from harness.tiny import SHAPE, WORKS, Subject
from torch import Tensor, nn

TITLE = "Call overhead"
SECONDS, ROUNDS = 15.0, (20, 5000)
TURN = 3e-4
"""Seconds of a side's turn, unless one call takes more: so many that the clock's own time is nothing, and so few that
other processes, where there are any, disturb few turns."""


SUBJECTS = [subject for module in cases.modules("overhead").values() for subject in module.SUBJECTS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit status."""
    options = _options(arguments)
    device = torch.device(options.device)
    _prepare()
    results = {**machine.facts(device), "shape": SHAPE, "overhead": rows(device)}
    path = options.output / f"overhead-{machine.kind(device)}.json"
    report.write_json(path, results)
    report.say(tables.title(results))
    report.table(heading(results), head(results), cells(results))
    report.table("Against the numbers to reach", *tables.of_bars([results], bars.of_overhead()))
    if command.saves(options):
        history.append(results, summary(results))
    return _conclude(results, path)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    command.add_device(parser)
    command.add_output(parser)
    return command.parse(parser, arguments)


def _prepare() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Full float32 on a GPU as well: parity is to 1e-5.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # The profiler reports on itself, and that it finds no GPU, on the terminal.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


# ---- one call ----------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A call that is ready to be timed, or why it is not to be."""

    subject: Subject
    work: str
    call: Callable[[], Tensor]
    backend: str | None
    missing: dict[str, str]
    verdict: parity.Verdict | None

    @property
    def timed(self) -> bool:
        return self.verdict is not None and self.verdict.passed


def _prepared(subject: Subject, work: str, device: torch.device) -> Prepared:
    module = _module(subject).to(device).train(work == "step")
    x = torch.randn(SHAPE, device=device)
    with torch.no_grad():
        grad = torch.randn_like(_forward(subject, module)(x))
    call = _call(subject, work, module, x, grad)
    try:
        backend = sides.backend_of(module, x) if _is_ours(subject) else None
    except sides.NotMeasured as reason:
        return Prepared(subject, work, call, None, {subject.name: str(reason)}, None)
    got = _outcome(work, call, module, x)
    return Prepared(subject, work, call, backend, {}, _judge(subject, work, got, module, x, grad))


def _is_ours(subject: Subject) -> bool:
    return subject.peer is not None


def _module(subject: Subject) -> nn.Module:
    """The module, with parameters and statistics such as training leaves."""
    module = sides.as_trained(subject.make())
    for name, parameter in module.named_parameters():
        if name.endswith(("threshold", "slope")):
            nn.init.normal_(parameter)
    return module


def _forward(subject: Subject, module: nn.Module) -> Callable[[Tensor], Tensor]:
    return module if subject.forward is None else partial(subject.forward, module)


def _call(subject: Subject, work: str, module: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    """What is timed: the forward, or in a step also the backward of ``grad``, which x then takes part in."""
    forward = _forward(subject, module)
    if work == "inference":
        return partial(forward, x)
    x.requires_grad_()

    def step() -> Tensor:
        y = forward(x)
        y.backward(grad)
        return y

    return step


def _judge(subject: Subject, work: str, got: Mapping[str, Tensor], module: nn.Module, x: Tensor,
           grad: Tensor) -> parity.Verdict:
    """Compare what a call ``got`` with the float64 reference: y, and in a step all gradients."""
    double, x_double = copy.deepcopy(module).double(), x.detach().double()
    truth = _outcome(work, sides.composed(_call(subject, work, double, x_double, grad.double())), double, x_double)
    # LENI's second norm undoes the shift and scale of its first, whose true gradients are 0, or nearly.
    scales = {name: truth[name.replace("negative", "fusion")] for name in ("bn_negative.weight", "bn_negative.bias")
              if "bn_fusion.weight" in truth}
    return parity.judge_steps({"ours" if _is_ours(subject) else "peer": got}, truth, scales).popitem()[1]


def _outcome(work: str, call: Callable[[], Tensor], module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """y, and in a step the gradients of x and all parameters, in which nothing has accumulated yet."""
    leaves = {"x": x, **dict(module.named_parameters())}
    for leaf in leaves.values():
        leaf.grad = None
    with torch.set_grad_enabled(work == "step"):
        y = call()
    gradients = {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}
    return {"y": y.detach(), **gradients}


# ---- its time, and the calls within it ---------------------------------------------------------------------


def rows(device: torch.device) -> list[dict[str, Any]]:
    """Everything measured: a row for each side and work."""
    prepared = {work: [_prepared(subject, work, device) for subject in SUBJECTS if work in subject.works]
                for work in WORKS}
    times: dict[str, dict[str, dict[str, Any]]] = {}
    with report.progress(len(WORKS)) as step:
        for work in WORKS:
            step(f"{TITLE}: {work}")
            with torch.set_grad_enabled(work == "step"):
                times[work] = _times([each for each in prepared[work] if each.timed], device)
    # Afterwards, as a profiler can slow down what is launched after it.
    return [_row(each, times[work], device) for work in WORKS for each in prepared[work]]


def _times(prepared: Sequence[Prepared], device: torch.device) -> dict[str, dict[str, Any]]:
    """The summary of the seconds of a call of each side."""
    clock = timing.timer(torch.device("cpu"))
    calls = {each.subject.name: _calls_in_a_turn(each.call, clock) for each in prepared}
    turns = {each.subject.name: _turn(each.call, calls[each.subject.name], device) for each in prepared}
    samples = timing.alternate(turns, clock, SECONDS, ROUNDS)
    return {name: timing.summary([value / calls[name] for value in values]) for name, values in samples.items()}


def _calls_in_a_turn(call: Callable[[], Tensor], clock: Callable[[timing.Side], float]) -> int:
    return max(1, round(TURN / min(clock(call) for _ in range(5))))


def _turn(call: Callable[[], Tensor], calls: int, device: torch.device) -> timing.Side:
    def run() -> None:
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _row(prepared: Prepared, times: Mapping[str, dict[str, Any]], device: torch.device) -> dict[str, Any]:
    subject = prepared.subject
    found = {
        "subject": subject.name, "work": prepared.work, "peer": subject.peer, "dtype": "float32",
        "backend": prepared.backend, "missing": prepared.missing,
        "parity": {subject.name: prepared.verdict.as_json()} if prepared.verdict else {}, "ratios": {},
    }
    if not prepared.timed:
        return found
    found |= {"seconds": times[subject.name], "calls": _counted(prepared, operator_calls)}
    if subject.peer in times:
        found["ratios"]["ours/peer"] = times[subject.name]["median"] / times[subject.peer]["median"]
    found["ratios"]["calls"] = sum(found["calls"].values())
    if device.type == "cuda":
        kernels = _counted(prepared, Gpu().kernels)
        found["kernels"] = {"launches": len(kernels), "microseconds": sum(kernel.microseconds for kernel in kernels)}
    return found


def _counted(prepared: Prepared, count: Callable[[Callable[[], Any]], Any]) -> Any:
    with torch.set_grad_enabled(prepared.work == "step"):
        return count(prepared.call)


def operator_calls(run: Callable[[], Any]) -> dict[str, int]:
    """The operator calls in ``run``: PyTorch's (``aten``), ours, and PyTorch's that accumulate gradients."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    counts = Counter({"aten": 0, "leni_kernels": 0, "accumulate": 0})
    for event in profile.events():
        if event.cpu_parent is None:
            counts.update(_kinds_of_calls(event, "aten"))
    return dict(counts)


ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")


def _kinds_of_calls(event: Any, kind: str) -> Iterator[str]:
    """The kinds of the calls that count in an event; ``kind`` is that of PyTorch's."""
    namespace, _, name = event.name.partition("::")
    if namespace == "aten" and not _is_view(name):
        if name not in ALLOCATIONS:
            yield kind
        return
    if namespace == "leni_kernels":
        yield namespace
    within = "accumulate" if event.name == "torch::autograd::AccumulateGrad" else kind
    for child in event.cpu_children:
        yield from _kinds_of_calls(child, within)


def _is_view(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(getattr(packet, overload).is_view for overload in packet.overloads())


# ---- what it found -----------------------------------------------------------------------------------------


LEGEND = ("The kernels themselves have next to nothing to do here. *Ratio* is to the peer's time; *calls* are those of "
          "operators, PyTorch's and ours, without views and allocations; a step's include those that accumulate "
          "gradients.")


def heading(results: dict[str, Any]) -> str:
    """What the numbers are."""
    shape = ", ".join(map(str, results["shape"]))
    return f"{TITLE}, x of [{shape}], float32: microseconds, and operator calls"


def head(results: dict[str, Any]) -> list[str]:
    """The head of the table."""
    columns = ("µs", "ratio", "calls", *_of_kernels(results))
    return ["", "peer", *(f"{work}: {column}" for work in WORKS for column in columns), "backend"]


def _of_kernels(results: dict[str, Any]) -> dict[str, str]:
    """The columns that only a GPU has, and what the results call them."""
    return {"kernels": "launches", "µs in kernels": "microseconds"} if results["device"] == "cuda" else {}


def cells(results: dict[str, Any]) -> Iterator[list[str]]:
    """The table, a row for each side; times in microseconds."""
    found = {(row["subject"], row["work"]): row for row in results["overhead"]}
    for subject in dict.fromkeys(row["subject"] for row in results["overhead"]):
        of_works = [found.get((subject, work), {}) for work in WORKS]
        numbers = [cell for row in of_works for cell in _work_cells(row, _of_kernels(results))]
        peer, backend = (next((row[key] for row in of_works if row.get(key)), "—") for key in ("peer", "backend"))
        yield [subject, peer, *numbers, backend]


def _work_cells(row: dict[str, Any], of_kernels: Mapping[str, str]) -> Iterator[str]:
    ratios, kernels = row.get("ratios", {}), row.get("kernels", {})
    yield number(1e6 * row["seconds"]["median"] if "seconds" in row else None, 1)
    yield number(ratios.get("ours/peer"))
    yield number(ratios.get("calls"), 0)
    for name in of_kernels.values():
        yield number(kernels.get(name), 0 if name == "launches" else 1)


def summary(results: dict[str, Any]) -> dict[str, float | None]:
    """The ratios: what the history keeps."""
    return {f"{TITLE}, {row['subject']}, {row['work']}, time / {row['peer']}": row["ratios"].get("ours/peer")
            for row in results["overhead"] if row["peer"]}


def _conclude(results: dict[str, Any], path: Path) -> int:
    """Say what is missing and what was refused, and return the exit status."""
    for reason in dict.fromkeys(f"{name}: {reason}" for row in results["overhead"]
                                for name, reason in row["missing"].items()):
        report.say(f"No time for {reason}")
    refused = [f"{name}, {row['work']}: error {verdict['error']}, allowed {verdict['allowed']}"
               for row in results["overhead"] for name, verdict in row["parity"].items() if not verdict["passed"]]
    for line in refused:
        report.say(f"REFUSED, differs from the reference: {line}")
    report.say(f"Results in {path}.")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(command.run(main))
