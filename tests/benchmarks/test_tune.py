"""The tuner: its grid, the list it prepares, what it times and refuses, and the whole of it in Triton's interpreter."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import on_triton  # noqa: F401  (skips where there is no Triton)
import pytest
import torch
import tune
from gpu import rooms
from tuning import candidates, race, subjects
from tuning.workers import Failure, Workers

from leni_kernels.common.gpu import support, tilings

ROOT = Path(__file__).parents[2]
EVERY = subjects.subjects("sm_90", "bf16")

without_interpreter = pytest.mark.skipif(support.interpreting, reason="it starts the interpreter itself")


# ---- what is tuned -----------------------------------------------------------------------------------------


def test_every_kernel_is_tuned_in_both_layouts_and_the_important_come_first():
    assert len(set(EVERY)) == len(EVERY) == 12 * 2 * 5
    assert len({subject.key for subject in EVERY}) == len(EVERY)
    assert str(EVERY[0]) == "leni folded channels-last C=64 bf16"
    first = EVERY[:21]
    assert all(subject.channels_last and subject.channels <= 64 for subject in first)
    assert not any("reborn" in str(subject) for subject in first)
    assert subjects.subjects("sm_90", "bf16", "reborn tail NCHW C=16 ") == [
        subject for subject in EVERY if str(subject) == "reborn tail NCHW C=16 bf16"]


@pytest.mark.parametrize("kernel", subjects.KERNELS, ids=lambda kernel: kernel.name)
def test_a_tiling_reaches_the_compile_cases_and_no_others(kernel):
    """The names are those of cases, whose warps an override changes."""
    subject = next(subject for subject in EVERY if subjects.KERNELS[subject.kernel] == kernel)
    changed = subject.incumbent()._replace(warps=16)
    cases = rooms.cases_of(kernel.mechanism)
    before = {(case.name, case.operand): case.warps for case in cases.compile_cases("sm_90")}
    with tilings.override(subject.key, changed):
        after = {(case.name, case.operand): case.warps for case in cases.compile_cases("sm_90")}
    wanted = {(case.format(layout=subject.layout, channels=subject.channels), "bf16") for case in kernel.cases}
    differ = {case for case in before if before[case] != after[case]}
    assert wanted <= differ
    # Other cases of the width may share it, such as those of 64-bit offsets.
    assert all(f"C={subject.channels}" in name or f"{subject.channels}→" in name for name, _ in differ)
    assert {operand for _, operand in differ} == {"bf16"}


# ---- the grid ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["sm_90", "gfx942", "gfx1100", ""])
def test_the_grid_begins_with_the_rules_tiling_and_every_tiling_may_stand_in_a_table(architecture):
    for subject in subjects.subjects(architecture, "bf16")[::5]:
        grid = candidates.grid(subject)
        assert grid[0] == subject.incumbent()
        assert len(grid) == len(set(grid)) > candidates.TRIED
        for tiling in grid[:candidates.TRIED]:
            _in_a_table(subject, tiling)


def _in_a_table(subject, tiling):
    entry = {**subject.key._asdict(), "tiling": tiling._asdict()}
    assert tilings._entry(entry) == (subject.key, tiling._asdict())


def test_fewer_instructions_and_more_resident_warps_score_better():
    tiling = EVERY[0].incumbent()
    scores = [candidates.score(tiling, candidates.Compiled(registers, shared, instructions, ""), "sm_90")
              for registers, shared, instructions in ((64, 0, 500), (64, 0, 600), (255, 0, 600), (255, 120_000, 600))]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


# ---- the list ----------------------------------------------------------------------------------------------


class Compilers:
    """Stands for the workers: every tiling compiles, but the second spills and the third cannot be compiled."""

    def __init__(self, count=1):
        self.calls = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, jobs, deadline=None):
        self.calls += 1
        found = [candidates.Compiled(100, 1024, 400 + index, "") for index, _ in enumerate(jobs)]
        return [found[0], found[1]._replace(faults="spills"), Failure("its process died"), *found[3:]]


@pytest.fixture
def list_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "FOLDER", tmp_path / "tilings")
    return tmp_path / "tilings"


def test_a_list_keeps_what_compiles_the_rules_first(list_folder):
    subject = EVERY[0]
    entry = candidates.prepare(subject, Compilers())
    candidates.write("sm_90", {subject.key: entry})
    kept = candidates.of_entry(subject, candidates.read("sm_90"))
    grid = candidates.grid(subject)
    assert kept[0] == grid[0] == subject.incumbent()
    assert len(kept) == candidates.KEPT
    assert not {grid[1], grid[2]} & set(kept)
    assert entry["left_out"] == {"its process died": 1, "spills": 1}


def test_preparing_goes_on_where_it_was_and_again_where_the_rule_has_changed(list_folder, monkeypatch, capsys):
    compilers = Compilers()
    monkeypatch.setattr(tune, "Workers", lambda count: compilers)
    arguments = ["--prepare", "--match", "reborn statistics channels-last"]
    assert tune.main(arguments) == 0
    assert compilers.calls == 5
    assert tune.main([*arguments[:-1], "reborn statistics"]) == 0
    assert compilers.calls == 10
    path = list_folder / "sm_90.json"
    stale = json.loads(path.read_text(encoding="utf-8"))
    stale["subjects"][0]["tilings"][0][0] *= 2
    path.write_text(json.dumps(stale), encoding="utf-8")
    assert tune.main(arguments) == 0
    assert compilers.calls == 11
    assert "4 of 5 subjects are up to date" in capsys.readouterr().out


def test_a_rule_that_cannot_be_compiled_is_said(list_folder, monkeypatch, capsys):
    class Broken(Compilers):
        def map(self, function, jobs, deadline=None):
            return [Failure("no such architecture")] * len(jobs)

    monkeypatch.setattr(tune, "Workers", Broken)
    assert tune.main(["--prepare", "--arch", "gfx1", "--match", "reborn tail NCHW C=64 "]) == 1
    assert "cannot be compiled: {'no such architecture': 20}" in capsys.readouterr().err


def test_without_a_list_those_most_like_the_rules_are_tried():
    subject = EVERY[0]
    assert candidates.to_try(subject, {}) == candidates.grid(subject)[:candidates.KEPT]


def test_a_list_of_another_rule_is_tried_after_the_rules(list_folder):
    subject = EVERY[0]
    candidates.write("sm_90", {subject.key: candidates.prepare(subject, Compilers())})
    listed = candidates.read("sm_90")
    other = candidates.grid(subject)[3]
    with tilings.override(subject.key, other):
        assert candidates.to_try(subject, listed)[0] == other
        assert len(candidates.to_try(subject, listed)) == candidates.KEPT


def test_the_committed_list_has_what_tables_and_kernels_take():
    listed = candidates.read("sm_90")
    assert set(listed) <= {subject.key for subject in EVERY}
    for subject in EVERY:
        found = candidates.of_entry(subject, listed)
        assert len(set(found)) == len(found) <= candidates.KEPT
        for tiling in found:
            _in_a_table(subject, tiling)


# ---- the race ----------------------------------------------------------------------------------------------


class Tiling(NamedTuple):
    speed: int
    error: float = 0.0


class Kernel:
    """Stands for a subject: a tiling says how fast it is, and how wrong."""

    operand = "bf16"

    def inputs(self, shape, device):
        return torch.zeros(1)

    def truth(self, inputs):
        return (torch.ones(2, dtype=torch.float64),)

    def run(self, tiling, inputs):
        self.last = tiling
        return (torch.ones(2) + tiling.error,)

    def __str__(self):
        return "kernel"


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(race.Plan, "shape", lambda *_: (1, 1))

    def measure(tried, noise=0.0):
        kernel, jitter = Kernel(), itertools.cycle([1, 1 + noise, 1 - noise])

        def time_call(side):
            side()
            return next(jitter) / kernel.last.speed

        return race.measure(race.REHEARSAL._replace(rounds=(9, 9)), kernel, tried, time_call, 0)

    return measure


def test_the_fastest_right_tiling_wins(measured):
    rule = Tiling(100, 1e-3)
    row, winner = measured({rule: None, Tiling(110): None, Tiling(150): None, Tiling(900, 0.1): None,
                            Tiling(999): Failure("it does not compile")})
    assert winner == Tiling(150)
    assert row.ratio == pytest.approx(1.5)
    assert (row.timed, row.refused) == (3, "")
    assert row.left_out == {"wrong": 1, "it does not compile": 1}
    assert row.best == {"speed": 150, "error": 0.0}


@pytest.mark.parametrize(("speed", "noise", "wins"), [(101, 0, False), (103, 0, True), (110, 0.2, False)])
def test_a_gain_has_to_be_larger_than_two_percent_and_than_the_spread(measured, speed, noise, wins):
    row, winner = measured({Tiling(100): None, Tiling(speed): None}, noise)
    assert (winner == Tiling(speed)) == wins == (row.ratio > 1)


@pytest.mark.parametrize(("tried", "reason"), [
    ({Tiling(100): Failure("no"), Tiling(150): None}, "the rule's tiling: no"),
    ({Tiling(100, 0.5): None, Tiling(150): None}, "off by 5.0e-01"),
    ({Tiling(100, float("nan")): None, Tiling(150): None}, "off by inf")])
def test_nothing_is_timed_where_the_rules_own_tiling_is_wrong(measured, tried, reason):
    row, winner = measured(tried)
    assert winner is None
    assert reason in row.refused
    assert row.times == []


def test_a_subject_that_fails_is_refused_and_the_others_go_on(monkeypatch):
    class All:
        def map(self, function, jobs, deadline):
            return [True if function is race.right else None for _ in jobs]

    def measure(plan, subject, tried, time_call, seconds):
        if not subject.channels_last:
            raise torch.OutOfMemoryError("no memory\nand more")
        return race.refused(subject, "")._replace(timed=2), list(tried)[1]

    monkeypatch.setattr(race, "measure", measure)
    found = list(race.run(race.REHEARSAL, "", "reborn tail", 60, All()))
    rows = [row for rows, _ in found for row in rows]
    assert [row.refused for row in rows] == ["", "OutOfMemoryError: no memory"]
    won = {key: fields for _, table in found for key, fields in table.items()}
    assert [(key.layout, key.operand) for key in won] == [("channels-last", "fp16"), ("channels-last", "fp32")]


def test_without_time_nothing_is_begun():
    class Idle:
        def map(self, function, jobs, deadline):
            assert list(jobs) == []
            return []

    assert list(race.run(race.REHEARSAL, "", "", 1e-9, Idle())) == []


# ---- the workers -------------------------------------------------------------------------------------------


def test_a_job_that_kills_its_process_or_takes_too_long_costs_only_itself():
    with Workers(1) as workers:
        found = workers.map(_job, [("ends",), ("dies",), ("fails",), ("ends",)])
        assert found == ["done", Failure("its process died"), Failure("ValueError: first line"), "done"]
        found = workers.map(_job, [("sleeps",), ("ends",)], time.monotonic() + 1)
        assert found == [Failure("it was not done in time"), Failure("no time was left")]


def _job(kind):
    if kind == "dies":
        os._exit(1)
    if kind == "fails":
        raise ValueError("first line\nsecond line")
    if kind == "sleeps":
        time.sleep(3)
    return "done"


# ---- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    [], ["--prepare", "--rehearse"], ["--rehearse", "--budget", "0"], ["--rehearse", "--workers", "0"],
    ["--device", "tpu"]])
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        tune.main(arguments)
    assert stopped.value.code == 2
    assert "tune.py: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        tune.main(["--device", "cuda"])
    assert stopped.value.code == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_an_architecture_that_is_not_supported_is_refused(capsys):
    assert tune.main(["--prepare", "--arch", "sm_75"]) == 1
    assert "sm_80 or newer" in capsys.readouterr().err


def test_a_cache_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LENI_KERNELS_CACHE", str(tmp_path / "file"))
    tune._keep({EVERY[0].key: EVERY[0].incumbent()._asdict()})
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line
    assert "not in the user's table" in line


def test_a_runs_file_is_adopted_into_the_packages_table(tmp_path, monkeypatch):
    before, key = tilings.packaged(), EVERY[0].key
    monkeypatch.setattr(tilings, "__file__", str(tmp_path / "tilings.py"))
    tilings.write(tmp_path / "run.json", {key: EVERY[0].incumbent()._asdict()}, rows=[{"subject": "one"}])
    assert tune.main(["--adopt", str(tmp_path / "run.json")]) == 0
    assert tilings.read(tmp_path / tilings.NAME) == {**before, key: EVERY[0].incumbent()._asdict()}


def test_a_file_that_is_no_table_is_not_adopted(tmp_path, capsys):
    (tmp_path / "run.json").write_text("[]")
    for name in ("run.json", "none.json"):
        assert tune.main(["--adopt", str(tmp_path / name)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_output_that_cannot_be_written_is_said_before_anything_is_timed(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(support, "interpreting", True)
    monkeypatch.setattr(tune, "Workers", None)
    with pytest.raises(SystemExit) as stopped:
        tune.main(["--rehearse", "--output", str(tmp_path / "file")])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@without_interpreter
def test_the_rehearsal_passes(tmp_path):
    """The command from end to end: processes, launches, parity, times, both tables."""
    command = [sys.executable, "benchmarks/tune.py", "--rehearse", "--workers", "1", "--match", "reborn tail"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 subjects were timed" in done.stdout
    assert "They are in the user's table" in done.stdout
    assert list(tmp_path.iterdir()) == []
