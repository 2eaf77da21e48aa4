"""What every program's command line shares: help, where results go, and refusals in a line."""

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import command, history, report

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
WRITERS = [name for name in PROGRAMS if name not in ("readme", "gpu_check")]
ARGUMENTS = {"compare": ["HEAD"], "tune": ["--rehearse"]}
"""What a program cannot do without."""


def _refusal(name, arguments, capsys):
    """The line with which a program ends."""
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main([*ARGUMENTS.get(name, ()), *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_reads_well(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith(f"usage: {name}.py")
    assert "``" not in text
    for option in ("--output", "--save") if name in WRITERS else ():
        assert option in text


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_cannot_be_written_is_a_line(name, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert _refusal(name, ["--output", str(tmp_path / "file")], capsys).startswith(f"{name}.py: --output: cannot write")


@pytest.mark.parametrize(("name", "arguments", "place"), [
    ("accuracy", ["--save"], "OUT"), ("accuracy", [], "checkpoints"), ("compare", ["--save"], "BUILDS"),
    ("tune", ["--prepare"], "FOLDER"), ("tune", ["--keep"], "LENI_KERNELS_CACHE")])
def test_another_folder_that_cannot_be_written_is_a_line(name, arguments, place, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    wanted = tmp_path / "file" / "folder"
    if place == "LENI_KERNELS_CACHE":
        monkeypatch.setenv(place, str(wanted))
    elif place == "checkpoints":
        (tmp_path / place).write_text("")
        wanted = tmp_path / place
    else:
        from tuning import candidates

        module = {"OUT": command, "BUILDS": importlib.import_module("compare"), "FOLDER": candidates}[place]
        monkeypatch.setattr(module, place, wanted)
        monkeypatch.setattr(command, "RESULTS", tmp_path)
    if arguments != ["--save"]:
        arguments = [*arguments, "--output", str(tmp_path)]
    monkeypatch.setitem(ARGUMENTS, "tune", ["--rehearse"] if arguments[0] == "--keep" else [])
    line = _refusal(name, arguments, capsys)
    shown = wanted / "checkpoints" if place == "OUT" else wanted
    assert line.startswith(f"{name}.py: cannot write into {shown}: ")


@pytest.mark.parametrize("name", ["accuracy", "compare", "memory", "overhead", "throughput"])
def test_a_gpu_that_is_not_there_is_a_line(name, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _refusal(name, ["--device", "cuda"], capsys) == f"{name}.py: --device cuda: PyTorch sees no GPU here"


@pytest.mark.parametrize(("name", "package", "arguments"), [
    ("memory", "torchvision", []), ("memory", "matplotlib", []), ("throughput", "torchvision", []),
    ("throughput", "timm", ["--networks"]), ("parameters", "timm", []), ("accuracy", "matplotlib", []),
    ("accuracy", "sklearn", [])])
def test_a_package_that_is_not_there_is_a_line(name, package, arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    line = _refusal(name, [*arguments, "--output", str(tmp_path)], capsys)
    assert line.startswith(f"{name}.py: needs {package}, which cannot be imported")


def test_one_mechanism_needs_no_networks(monkeypatch, tmp_path):
    throughput = importlib.import_module("throughput")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert throughput._options(["--only", "leni", "--output", str(tmp_path)]).only == "leni"


def test_a_match_without_a_kernel_is_a_line(capsys, tmp_path):
    pytest.importorskip("triton")
    line = _refusal("codegen", ["--match", "no such kernel", "--output", str(tmp_path)], capsys)
    assert line == "codegen.py: --match: no kernel has 'no such kernel' in its name and type"


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_committed_unless_it_is_said(name):
    options = importlib.import_module(name)._options
    assert options(ARGUMENTS.get(name, [])).output == command.OUT
    assert options([*ARGUMENTS.get(name, []), "--save"]).output == command.RESULTS


def test_git_ignores_what_is_not_saved():
    asked = subprocess.run(["git", "check-ignore", "-q", "benchmarks/out/memory-cpu.json"], cwd=ROOT)
    assert asked.returncode in (0, 128)  # 128: no checkout


# ---- poor terminals ----------------------------------------------------------------------------------------


def test_every_program_runs_where_the_terminal_lacks_characters():
    for name in PROGRAMS:
        assert (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8").endswith(
            'if __name__ == "__main__":\n    sys.exit(command.run(main))\n'), name


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("with_rich", [True, False])
def test_what_the_terminal_lacks_is_replaced(encoding, with_rich, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    if not with_rich:
        monkeypatch.setattr(report, "rich", None)

    def main():
        with report.progress(1) as step:
            step("64×56² → 1.5 µs")
        report.table("Θ ≤ 1 — accuracy", ["", "±"], [["×", "—"]])
        return 3

    assert command.run(main) == 3
    for stream in streams.values():
        stream.seek(0)
    assert "accuracy" in streams["stdout"].read()
    assert "64×56² ? 1.5 µs".encode(encoding, "replace").decode(encoding) in streams["stderr"].read()


@pytest.mark.parametrize("name", ["codegen", "gpu_check"])
def test_help_comes_without_docstrings_and_in_ascii(name):
    done = subprocess.run([sys.executable, "-OO", ROOT / "benchmarks" / f"{name}.py", "--help"], capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii").startswith(f"usage: {name}.py")


def test_what_watches_over_a_gpu_does_without_pytorch():
    code = "import sys, gpu_check; sys.exit('torch' in sys.modules)"
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode == 0


# ---- the history -------------------------------------------------------------------------------------------


def _run(commit, date, cpu="A CPU"):
    return {"date": date, "commit": commit, "machine": {"cpu": cpu}, "kernels_isa": "avx2", "threads": 2,
            "versions": {"python": "3.11", "torch": "2.14", "timm": "1"}}


def test_the_history_is_by_machine_and_commit(tmp_path):
    file = tmp_path / "deep" / "history.jsonl"
    history.append(_run("b", "2026-02-01T10:00"), {"LENI": 1.23456, "missing": None}, file)
    history.append(_run("a", "2026-01-01T10:00"), {"LENI": 1.5}, file)
    history.append(_run("b", "2026-02-01T12:00"), {"memory": 1.0}, file)
    history.append(_run("a", "2026-01-01T10:00", cpu="Another"), {"LENI": 9.0}, file)
    lines = history.read(file)
    assert [line["commit"] for line in lines] == ["a", "a", "b", "b"]
    assert lines[2]["ratios"] == {"LENI": 1.2346}
    assert lines[0]["versions"] == {"python": "3.11", "torch": "2.14", "triton": None}
    (title, head, cells), (other, _, _) = history.tables(lines)
    assert (title, other) == ("A CPU (avx2), 2 threads", "Another (avx2), 2 threads")
    assert head == ["", "a 2026-01-01", "b 2026-02-01"]
    assert cells == [["LENI", "1.50", "1.23"], ["memory", "—", "1.00"]]
    assert [row for _, _, rows in history.tables(lines, "memory") for row in rows] == [["memory", "1.00"]]
    assert list(history.tables(lines, "nothing")) == []
    assert history.read(tmp_path / "none.jsonl") == []


def test_the_newest_of_the_history_is_what_the_results_say():
    lines = history.read()
    for name in ("throughput", "memory", "overhead"):
        for path in command.RESULTS.glob(f"{name}-*.json"):
            run = json.loads(path.read_text(encoding="utf-8"))
            if run.get("arguments", {}).get("only"):
                continue  # Table 1 by itself
            kept = [line["ratios"] for line in lines if (line["date"], line["commit"]) == (run["date"], run["commit"])]
            found = importlib.import_module(name).summary(run)
            found = {key: pytest.approx(ratio, abs=1e-4) for key, ratio in found.items() if ratio is not None}
            assert kept == [found], path.name


def test_a_saved_run_is_added_and_another_is_not(tmp_path, monkeypatch):
    memory = importlib.import_module("memory")
    monkeypatch.setattr(history, "FILE", tmp_path / "history.jsonl")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(memory, "_blocks", lambda device, step: [])
    monkeypatch.setattr(memory, "_networks", lambda device, step: [])
    monkeypatch.setattr(memory, "_draw", lambda path, results: None)
    assert memory.main(["--device", "cpu", "--output", str(tmp_path / "elsewhere")]) == 0
    assert not history.FILE.exists()
    assert memory.main(["--device", "cpu", "--save"]) == 0
    (line,) = history.read()
    assert line["machine"]
    assert line["ratios"] == {}


def test_the_history_is_shown(monkeypatch, capsys, tmp_path):
    compare = importlib.import_module("compare")
    monkeypatch.setattr(history, "FILE", tmp_path / "history.jsonl")
    assert compare.main(["--history"]) == 2
    history.append(_run("c0ffee", "2026-02-01T10:00"), {"LENI inference": 1.25})
    assert compare.main(["--history"]) == 0
    printed = capsys.readouterr().out
    assert "c0ffee" in printed
    assert "1.25" in printed
