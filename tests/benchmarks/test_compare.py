"""Two commits beside one another: their files, their turns, and what counts as slower."""

import ast
import concurrent.futures
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import cases
import compare
import pytest
import torch
from comparing import checkouts, found, subjects, turns
from comparing.checkouts import CannotCompare, Checkout
from harness import timing

from leni_kernels.common import extension

ROOT = Path(__file__).parents[2]
needs_extension = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))


# ---- the files of a commit ---------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit, in which a build copies the source."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path / "repository"
    for name, text in {"csrc/kernels.cpp": "1", "leni_kernels/__init__.py": "", ".gitignore": "*.so\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True)
        return done.stdout

    for arguments in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        git(*arguments)
    built = []

    def build(folder):
        built.append((folder / "csrc/kernels.cpp").read_text())
        path = folder / "leni_kernels/libleni_kernels.so"
        path.write_text(built[-1])
        return [path]

    monkeypatch.setattr(checkouts, "ROOT", root)
    monkeypatch.setattr(checkouts, "_built", build)
    return root, git, built


def test_the_working_tree_is_taken_as_it_is_and_left_alone(repository, tmp_path):
    root, git, _ = repository
    (root / "csrc/kernels.cpp").write_text("2")
    (root / "new.py").write_text("new")
    (root / "ignored.so").write_text("binary")
    before = git("status", "--porcelain")
    base, head = (checkouts.checkout(revision, tmp_path / "out", build=True) for revision in ("HEAD", "."))
    assert git("status", "--porcelain") == before
    assert (base.folder / "csrc/kernels.cpp").read_text() == "1"
    assert (head.folder / "csrc/kernels.cpp").read_text() == "2"
    assert (head.folder / "new.py").exists()
    assert not (head.folder / "ignored.so").exists()
    assert head.commit == f"{base.commit}+"
    assert [(side.folder / "leni_kernels/libleni_kernels.so").read_text() for side in (base, head)] == ["1", "2"]


def test_an_extension_is_built_once_for_its_sources(repository, tmp_path):
    root, git, built = repository
    first = checkouts.checkout(".", tmp_path / "out", build=True)
    assert first.commit == git("rev-parse", "--short=12", "HEAD").strip()
    (root / "leni_kernels/__init__.py").write_text("# changed")
    second = checkouts.checkout(".", tmp_path / "out", build=True)
    assert first.folder != second.folder
    assert built == ["1"]
    assert (second.folder / "leni_kernels/libleni_kernels.so").exists()
    (root / "setup.py").write_text("# how to build")
    checkouts.checkout(".", tmp_path / "out", build=True)
    assert built == ["1", "1"]


def test_a_commit_that_is_none_is_named(repository, tmp_path):
    with pytest.raises(CannotCompare, match="git rev-parse"):
        checkouts.checkout("nothing", tmp_path / "out", build=True)


def test_a_build_that_fails_says_where_the_reason_is(tmp_path):
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler today')")
    (tmp_path / "leni_kernels").mkdir()
    with pytest.raises(CannotCompare, match=r"build\.log"):
        checkouts._built(tmp_path)
    assert "no compiler today" in (tmp_path / "build.log").read_text()


# ---- what is measured --------------------------------------------------------------------------------------


def test_every_mechanism_is_compared_in_both_works_dtypes_and_layouts():
    assert {path.name for path in (ROOT / "benchmarks" / "cases").iterdir() if (path / "compared.py").exists()} \
        == set(cases.mechanisms())
    everything = found.subjects()
    assert len({str(subject) for subject in everything}) == len(everything)
    for mechanism in cases.mechanisms():
        variants = {(subject.training, subject.dtype, subject.layout) for subject in found.subjects(mechanism)}
        assert len(variants) == 8
    assert found.subjects("leni", "no such thing") == []


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_runs_on_an_older_commit_reads_its_public_names_only():
    folder = ROOT / "benchmarks"
    files = [*(folder / "comparing" / f"{name}.py" for name in ("worker", "subjects", "found")),
             folder / "harness" / "timing.py", *(folder / "cases").glob("*/compared.py"),
             folder / "cases" / "__init__.py", *(folder / "cases").glob("*/__init__.py")]
    names = {name for path in files for name in _imports(path)}
    assert {name for name in names if name.startswith("leni_kernels")} == {"leni_kernels"}
    ours = {name for name in names if name.split(".")[0] in {path.stem for path in folder.iterdir()}}
    assert {name for name in ours if not name.startswith(("comparing.subjects.", "cases"))} == {"harness.timing"}


@pytest.mark.parametrize("subject", [each for each in found.subjects() if each.shape[2:] == (4, 4)], ids=str)
def test_a_subject_is_the_same_in_every_process_and_moves_its_inputs(subject):
    first, second = (subjects.prepare(subject, torch.device("cpu")) for _ in range(2))
    assert first.sizes == second.sizes
    assert len(first.sizes) > 1 if subject.training else len(first.sizes) == 1
    assert first.call()[0].abs().mean().item() != pytest.approx(first.sizes[0], rel=1e-6)


def test_sizes_agree_but_for_rounding():
    assert subjects.agree([1.0, 100.0, 1e-5], [1.0005, 100.0, 3e-5], "float32")
    assert not subjects.agree([1.0, 100.0], [1.01, 100.0], "float32")
    assert subjects.agree([1.0, 100.0], [1.01, 100.0], "bfloat16")
    assert not subjects.agree([1.0], [1.0, 1.0], "float32")


# ---- turns -------------------------------------------------------------------------------------------------

SUBJECT = subjects.Subject("LENI", None, (1, 16, 4, 4), False, "channels_first", "float32")


class Scripted:
    """A worker with its answers prepared; notes when it was asked."""

    def __init__(self, name, log, seconds=1.0, answer=None):
        self.name, self.log, self.seconds = name, log, seconds
        self.answer = answer or {"backend": "cpp", "sizes": [1.0]}

    def ask(self, **request):
        if "subject" in request:
            return self.answer
        self.log.append(self.name)
        return {"seconds": self.seconds, "interrupted": 0.0}


def _measured(rounds=3, **answers):
    log = []
    workers = {side: Scripted(side, log, answer=answers.get(side)) for side in turns.SIDES}
    return turns.measure(workers, SUBJECT, rounds, 0.0), log


def test_the_sides_take_turns_and_every_second_round_begins_with_the_other():
    row, log = _measured()
    assert log == ["base", "head", "head", "base", "base", "head"]
    assert turns.ratios(row) == [1.0] * 3


@pytest.mark.parametrize(("head", "reason"), [
    ({"missing": "AttributeError: no LENI2d"}, "no LENI2d"),
    ({"backend": "cpp", "sizes": [2.0]}, "the results differ")])
def test_what_cannot_be_compared_gets_no_time(head, reason):
    row, log = _measured(head=head)
    assert log == []
    assert reason in row["missing"]["head"]
    assert compare.ratio(row) is None


def test_the_reference_on_both_sides_gets_no_time_and_on_one_side_does():
    reference = {"backend": "reference", "sizes": [1.0]}
    assert _measured(base=reference, head=reference)[1] == []
    assert len(_measured(head=reference)[1]) == 6


def _row(case, ratios, **changes):
    return {"case": case, "missing": {}, "backend": {"base": "cpp", "head": "cpp"},
            "seconds": {"base": [1.0] * len(ratios), "head": ratios},
            "interrupted": dict.fromkeys(("base", "head"), [0.0] * len(ratios)), **changes}


def _results(*rows):
    return {"threshold": 5.0, "compared": list(rows), "base": {"commit": "a"}, "head": {"commit": "b"}}


def test_slower_is_a_median_past_the_threshold(capsys):
    steady, slower, outlier = (_row("steady", [1.04, 1.0, 1.02]), _row("slow", [1.0, 1.1, 1.2]),
                               _row("outlier", [1.0, 1.0, 9.0]))
    assert compare._conclude(_results(steady, outlier), Path("x.json")) == 0
    assert compare._conclude(_results(steady, slower), Path("x.json")) == 1
    assert "SLOWER by 10.0 % (half of the rounds: +5.0 % to +15.0 %): slow" in capsys.readouterr().out
    cells = list(compare.cells(_results(steady, slower)))
    assert cells[1] == ["slow", "1000.000", "1.100", "1.050 to 1.150", "cpp", "slower"]
    assert cells[-1][:3] == ["geometric mean", "", "1.059"]


def test_times_that_others_disturbed_are_no_success(capsys):
    """Where threads wait for one that is not running, both sides take the same slices of the scheduler's."""
    noisy = _row("noisy", [1.0, 1.0], interrupted={"base": [200.0, 0.0], "head": [200.0, 200.0]})
    once = _row("once", [1.0, 1.0], interrupted={"base": [200.0, 0.0], "head": [0.0, 0.0]})
    assert compare._conclude(_results(once), Path("x.json")) == 0
    assert compare._conclude(_results(once, noisy), Path("x.json")) == 1
    assert "NO VERDICT on 1 of them" in capsys.readouterr().out
    assert [cells[-1] for cells in compare.cells(_results(once, noisy))] == ["", "disturbed", ""]


def test_a_thread_that_has_to_leave_its_core_is_counted():
    before = timing.interruptions()
    end = time.perf_counter() + 5
    with concurrent.futures.ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:
        calls = [pool.submit(_spin, end, before) for _ in range(4 * (os.cpu_count() or 1))]
    assert all(call.done() for call in calls)
    assert timing.interruptions() > before


def _spin(end, before):
    x = torch.randn(256, 256)
    while time.perf_counter() < end and timing.interruptions() == before:
        x @ x


def test_nothing_compared_is_no_success():
    reference = {"backend": {"base": "reference", "head": "reference"}, "missing": {"base": "slow", "head": "slow"}}
    assert compare._conclude(_results(_row("a", [], **reference)), Path("x.json")) == 1
    assert compare._conclude(_results(_row("a", [], **reference), _row("b", [1.0])), Path("x.json")) == 0
    assert compare._conclude(_results(_row("a", [], missing={"head": "gone"}), _row("b", [1.0])), Path("x.json")) == 1


def test_a_case_past_the_threshold_is_measured_again(monkeypatch, capsys):
    asked = []

    def passes(sides, wanted, options):
        asked.append(wanted)
        return [_row(name, [1.2 if (name, len(asked)) == ("slow at first", 1) else 1.0] * 3) for name in wanted]

    monkeypatch.setattr(compare, "_passes", passes)
    options = compare._options(["HEAD"])
    steady, again = compare._measured({}, ["steady", "slow at first"], options)
    assert asked == [["steady", "slow at first"], ["slow at first"]]
    assert len(turns.ratios(steady)) == 3
    assert turns.ratios(again) == [1.2] * 3 + [1.0] * 3


@needs_extension
def test_two_processes_measure_a_case(monkeypatch, tmp_path, capsys):
    here = Checkout("here", "tree", ROOT)
    monkeypatch.setattr(checkouts, "checkout", lambda revision, builds, build: here)
    monkeypatch.setattr(compare, "PASSES", 1)
    monkeypatch.setattr(compare, "SECONDS", 0.0)
    monkeypatch.setattr(turns, "QUIET", float("inf"))  # tests run beside one another
    status = compare.main(["HEAD", "--match", "AdaReLU inference, 1×16×4×4", "--rounds", "2", "--threshold", "1e6",
                           "--device", "cpu", "--threads", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    (row,) = json.loads((tmp_path / "compare-here-here.json").read_text(encoding="utf-8"))["compared"]
    assert all(value > 0 for side in turns.SIDES for value in row["seconds"][side])
    assert "geometric mean" in printed


def test_a_process_that_has_the_wrong_package_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with turns.Worker(Checkout("empty", "tree", tmp_path), "cpu", 1) as worker, \
            pytest.raises(CannotCompare, match="the process of empty ended with 1"):
        worker.ask(subject="x")


def test_bad_arguments_are_refused(capsys):
    assert compare.main(["HEAD", "--match", "no such case", "--device", "cpu"]) == 2
    assert "no such case" in capsys.readouterr().err
    for arguments in ([], ["HEAD", "--history"], ["HEAD", "--rounds", "0"], ["HEAD", "--only", "everything"]):
        with pytest.raises(SystemExit) as stopped:
            compare.main(arguments)
        assert stopped.value.code == 2
