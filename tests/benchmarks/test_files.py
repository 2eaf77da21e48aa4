"""Files that are whole or as they were: what a disk without room leaves, and how programs tell of it."""

import json
from contextlib import contextmanager

import codegen
import pytest
import torch
from datasets import images
from gpu import records
from harness import command, figures, files, history, learning, plot, report
from tuning import candidates

from leni_kernels.common.gpu import tilings

resource = pytest.importorskip("resource")

RUN = learning.Run("convnet8", "relu", 0, "digits", 130, 0.0625, "all", learning.RECIPES["short"])
FACTS = {"date": "2026-01-01", "commit": "a", "machine": {"cpu": "A CPU"}, "kernels_isa": "avx2", "threads": 2,
         "versions": {"torch": "2.14"}}
CURVES = {"runs": [{"network": "convnet8", "method": "ReLU", "history": [{"accuracy": 10.0}, {"accuracy": 20.0}]}]}


@contextmanager
def no_room(size=100):
    """No file can have more bytes than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _append(path):
    history.append(FACTS, {"LENI": 1.0, "Reborn" * 20: 2.0}, path)


def _keep_counts(path):
    pytest.importorskip("triton")
    codegen.keep_counts(path, "sm_90", [codegen.Failure("sm_90", "a kernel" * 20, "bf16", "an error")], sample=False)


def _candidates(path):
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "FOLDER", path.parent)
        candidates.write(path.stem, {"key": {"name": "a kernel" * 20}})


WRITERS = {
    "results": ("run.json", lambda path: report.write_json(path, {"rows": list(range(100))})),
    "the history": ("history.jsonl", _append),
    "counts of machine code": ("codegen.json", _keep_counts),
    "candidates": ("sm_90.json", _candidates),
    "learning curves": ("curves.png", lambda path: figures.learning_curves(path, CURVES, "heading")),
    "bars": ("bars.png", lambda path: plot.draw_bars(path, [("row", {"relu": 1.0})], {"relu": "ReLU"}, "a", "b")),
    "a checkpoint": ("state.pt", lambda path: learning.Learner(RUN, images.digits(), torch.device("cpu")).save(path)),
}


@pytest.mark.parametrize("before", [None, "what was there"])
@pytest.mark.parametrize(("name", "write"), [pytest.param(*writer, id=what) for what, writer in WRITERS.items()])
def test_a_disk_without_room_leaves_what_was_there(tmp_path, name, write, before):
    path = tmp_path / name
    if before is not None:
        path.write_text(json.dumps({}) if name == "codegen.json" else before)
    left = path.read_bytes() if path.exists() else None
    with no_room(), pytest.raises(files.CannotWrite) as raised:
        write(path)
    assert str(raised.value) == f"cannot write {path}: File too large"
    assert [file.name for file in tmp_path.iterdir()] == ([] if left is None else [name])
    assert left is None or path.read_bytes() == left
    path.unlink(missing_ok=True)
    write(path)
    assert path.stat().st_size > 100


def test_tilings_leave_no_half_file(tmp_path):
    with no_room(), pytest.raises(OSError, match="File too large"):
        tilings.write(tmp_path / "tilings.json", {}, note="so long " * 100)
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_cannot_be_recorded_names_its_file(tmp_path):
    path = tmp_path / "smoke.jsonl"
    with no_room(), pytest.raises(files.CannotWrite, match=f"cannot write {path}: File too large"):
        records.append(path, {"case": "long" * 100})


def test_a_folder_without_room_is_found_before_the_work(tmp_path):
    assert command.why_not_writable(tmp_path) is None
    with no_room(command.ENOUGH - 1):
        assert command.why_not_writable(tmp_path) == f"cannot write into {tmp_path}: File too large"
    assert list(tmp_path.iterdir()) == []


def test_a_file_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run.json"
    with pytest.raises(files.CannotWrite, match=f"cannot write {path}: "):
        files.write_text(path, "text")


def test_a_program_that_cannot_write_ends_with_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks/memory.py"])
    with no_room():
        status = command.run(lambda: report.write_json(tmp_path / "memory.json", {"rows": [0] * 100}))
    assert status == 2
    assert capsys.readouterr().err == f"memory.py: cannot write {tmp_path / 'memory.json'}: File too large\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: 1 // 0)
