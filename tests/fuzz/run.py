"""A fuzzing campaign of the C++ kernels: random configurations, each compared with the definition in float64.

    python tests/fuzz/run.py --seconds 60 --seed 7

Configuration i of a seed is always the same, whatever ran before. Workers run them; one that dies of a signal costs
that one configuration, which is reported like any other failure. A failing configuration is made simpler as long as it
fails in the same way, and is printed as a script of its own. The exit status is 0 if some were run and none failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, get_context

from cases import MECHANISMS, Case, draw

PATIENCE, PROBE_PATIENCE = 30.0, 6.0
"""Seconds after which a configuration hangs, in a campaign and when it is made simpler."""
ATTEMPTS, FATAL_ATTEMPTS = 400, 40
"""To make a case simpler; where each failure costs a process there are fewer."""


# ---- workers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """Which configurations a campaign has, and what tests change in a worker before it begins."""

    seed: int
    without: frozenset[str] = frozenset()
    mechanism: str | None = None
    prepare: Callable[[], None] | None = None

    def case(self, index: int) -> Case:
        return draw(self.seed, index, self.without, self.mechanism)


def serve(draws: Draws, pipe: connection.Connection) -> None:
    """A worker: receives an index or a case, answers with the outcome and its details."""
    import torch
    from judge import judge

    from leni_kernels.common import extension

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills memory that no kernel writes with NaN
    extension.fill_empty(True)
    if draws.prepare is not None:
        draws.prepare()
    pipe.send(extension.cpu_isa())
    while True:
        asked = pipe.recv()
        try:
            pipe.send(tuple(judge(asked if isinstance(asked, Case) else draws.case(asked))))
        except Exception:
            pipe.send(("the fuzzer fails", traceback.format_exc()))


class Worker:
    """A process that runs configurations one by one."""

    def __init__(self, draws: Draws, patience: float = PATIENCE) -> None:
        self.patience = patience
        context = get_context("forkserver")
        # Imported once, with PyTorch, and with what use_deterministic_algorithms imports.
        context.set_forkserver_preload(["leni_kernels", "torch._inductor.config"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(draws, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.isa = self.pipe.recv()
        self.asked: int | Case | None = None
        self.since = 0.0

    def ask(self, what: int | Case) -> None:
        self.asked, self.since = what, time.monotonic()
        self.pipe.send(what)

    def answer(self, wait: float) -> tuple[str, str] | None:
        """The outcome and details, or None if there is none yet; a worker that died, or that hangs, is no more."""
        try:
            if self.pipe.poll(wait):
                return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            return f"dies of {signal.Signals(-code).name}" if code < 0 else f"exits with {code}", ""
        if time.monotonic() - self.since < self.patience:
            return None
        self.stop()
        return "hangs", f"for {self.patience:.0f} seconds"

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


class Probe:
    """Runs cases on demand, in a fresh process after each that killed the last."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.worker = draws, Worker(draws, PROBE_PATIENCE)

    def outcome(self, case: Case) -> tuple[str, str]:
        if not self.worker.alive:
            self.worker = Worker(self.draws, PROBE_PATIENCE)
        self.worker.ask(case)
        while (found := self.worker.answer(PROBE_PATIENCE)) is None:
            pass
        return found


# ---- the campaign --------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the configurations run."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[tuple[str, ...]] = field(default_factory=Counter)


def failed(outcome: str) -> bool:
    return outcome not in ("right", "refused", "skipped")


def kind_of(case: Case, outcome: str) -> tuple[str, ...]:
    """What makes two failures one."""
    return case.mechanism, case.problem.get("form", ""), outcome, case.dtype


def campaign(draws: Draws, options: argparse.Namespace) -> Tally:
    """Run configurations until time or count is up, or the first failure."""
    tally, start = Tally(), time.monotonic()
    workers = [Worker(draws) for _ in range(options.jobs)]
    print(f"seed {draws.seed}, instruction set {workers[0].isa}", flush=True)
    following, running = 0, True
    while True:
        if options.count is None:
            running = running and time.monotonic() - start < options.seconds
        for worker in workers:
            if running and worker.asked is None and (options.count is None or following < options.count):
                worker.ask(following)
                following += 1
        busy = [worker for worker in workers if worker.asked is not None]
        if not busy:
            break
        connection.wait([worker.pipe for worker in busy], timeout=1.0)
        for worker in busy:
            found = worker.answer(0.0)
            if found is None:
                continue
            index, worker.asked = worker.asked, None
            if not worker.alive:
                workers[workers.index(worker)] = Worker(draws)
            if not recorded(draws, index, *found, tally) and not options.keep_going:
                running = False
    for worker in workers:
        worker.stop()
    report(tally, time.monotonic() - start)
    return tally


def recorded(draws: Draws, index: int, outcome: str, details: str, tally: Tally) -> bool:
    """Count a configuration; whether it is not a failure. The first failure of a kind is printed."""
    case = draws.case(index)
    tally.outcomes[case.mechanism, outcome if not failed(outcome) else "failed"] += 1
    if not failed(outcome):
        return True
    kind = kind_of(case, outcome)
    tally.kinds[kind] += 1
    if tally.kinds[kind] == 1:
        print(f"\nconfiguration {index}, after {sum(tally.outcomes.values())}: {' '.join(filter(None, kind))}\n"
              f"{details}\n{', '.join(case.labels) or 'nothing out of the ordinary'}", flush=True)
        print_script(draws, case, outcome)
    return False


def print_script(draws: Draws, case: Case, outcome: str) -> None:
    """Make a case simpler and print it, as data and as a script."""
    from script import script_of
    from shrink import shrunk

    probe = Probe(draws)
    if probe.outcome(case)[0] != outcome:
        print("It does not repeat in a process of its own.")
        smallest = case
    else:
        attempts = ATTEMPTS if probe.worker.alive else FATAL_ATTEMPTS
        smallest = shrunk(case, lambda candidate: probe.outcome(candidate)[0] == outcome, attempts)
    title = ": ".join(filter(None, (outcome, *probe.outcome(smallest)[1].splitlines()[:1])))
    probe.worker.stop()
    print(f"{smallest}\n# ---- script\n{script_of(smallest, title)}# ---- end of script", flush=True)


def report(tally: Tally, seconds: float) -> None:
    total = sum(tally.outcomes.values())
    print(f"\n{total} configurations in {seconds:.0f} s, {total / seconds:.0f} a second")
    for mechanism in MECHANISMS:
        of_it = {outcome: count for (name, outcome), count in sorted(tally.outcomes.items()) if name == mechanism}
        if of_it:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in of_it.items())
            print(f"{mechanism}: {sum(of_it.values())} ({counts})")
    for kind, count in tally.kinds.most_common():
        print(f"failed {count} times: {' '.join(filter(None, kind))}")


def main(arguments: list[str] | None = None, prepare: Callable[[], None] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long to draw configurations (60)")
    parser.add_argument("--count", type=int, help="stop after so many configurations instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", help="the instruction set, as LENI_KERNELS_ISA names it; the best by default")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (1)")
    parser.add_argument("--mechanism", choices=MECHANISMS, help="only this one")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure; print one of each kind")
    parser.add_argument("--without", default="", metavar="KIND[,KIND]",
                        help="leave out what a failure is labelled with, as x-huge, or huge of any tensor")
    options = parser.parse_args(arguments)
    if options.isa:
        os.environ["LENI_KERNELS_ISA"] = options.isa
    draws = Draws(options.seed, frozenset(filter(None, options.without.split(","))), options.mechanism, prepare)
    tally = campaign(draws, options)
    return 1 if tally.kinds or not tally.outcomes else 0


if __name__ == "__main__":
    raise SystemExit(main())
