"""The command line, the parts, the networks' places, the pictures and the report."""

import copy
import json
from pathlib import Path

import cases
import pytest
import throughput
import torch
from cases.leni import bars
from cases.leni import inference as leni_inference
from cases.leni import training as leni_training
from cases.leni.shared import ratios
from harness import machine, report, tables
from networks import first_activation
from PIL import Image

ROOT = Path(__file__).parents[2]


def _row(case, work, seconds):
    return {
        **case._asdict(), "batch": 1, "backend": "cpp", "missing": {}, "parity": {},
        "seconds": {name: {"median": value} for name, value in seconds.items()},
        "ratios": ratios(seconds, work.limit(seconds)),
    }


def _inference_row(case):
    seconds = {"copy": 1.0, "product": 2.0, "relu": 1.0, "eager": 8.0, "compiled": 4.0, "ours": 2.5}
    return _row(case, leni_inference, seconds)


def _training_row(case):
    seconds = {"copy": 2.0, "product": 2.0, "eager": 40.0, "ours": 12.0}
    compiled = {"compiled": 30.0} if case[:3] in leni_training.COMPILED else {}
    return _row(case, leni_training, {**seconds, **compiled})


@pytest.fixture
def results():
    """A run in which ours takes 2.5 s, and L is 2 s; in training 12 s and 8 s."""
    inference = [_inference_row(case) for case in leni_inference.cases(quick=False)]
    training = [_training_row(case) for case in leni_training.cases(quick=False)]
    network = {
        "network": "resnet18", "dtype": "float32", "batch": 8, "backend": "cpp", "missing": {}, "parity": {},
        "images_per_second": {"stock": 10.0, "composed": 8.0, "ours": 9.9},
        "change_percent": {"composed": -20.0, "ours": -1.0},
    }
    return {
        **machine.facts(torch.device("cpu")), "kernels_isa": "avx2", "arguments": {"quick": False},
        "complete": True, "seconds": 1.0, **{name: [] for name in throughput.LISTS}, "leni_inference": inference,
        "leni_training": training, "networks": [network], "networks_training": [network],
    }


# ---- what runs ---------------------------------------------------------------------------------------------


def test_every_mechanism_has_the_same_files_and_they_are_found():
    folders = {path.parent.name for path in (ROOT / "benchmarks" / "cases").glob("*/__init__.py")}
    assert set(cases.mechanisms()) == folders
    for file in (*cases.WORKS, "bars", "overhead", "compared"):
        assert set(cases.modules(file)) == folders, file
    assert list(throughput.BLOCKS) == [f"{name}_{work}" for name in cases.mechanisms() for work in cases.WORKS]


@pytest.mark.parametrize("name", throughput.LISTS)
def test_parts_are_alike(name):
    module = {**throughput.BLOCKS, **throughput.NETWORKS}[name]
    assert set(module.SECONDS) == {"cpu", "cuda", "quick"}
    assert module.TITLE
    assert callable(module.measure)
    assert {case.dtype for case in module.cases(quick=True)} <= {case.dtype for case in module.cases(quick=False)}
    if name in throughput.BLOCKS:
        assert module.TABLE.times
        assert module.PICTURE is None or module.PICTURE.limit


def test_a_new_mechanism_is_a_new_folder(tmp_path, monkeypatch):
    folder = tmp_path / "newest"
    folder.mkdir()
    (folder / "__init__.py").write_text("ORDER = -1\n")
    (folder / "training.py").write_text("TITLE = 'Newest'\n")
    monkeypatch.setattr(cases, "__path__", [*cases.__path__, str(tmp_path)])
    assert cases.mechanisms()[0] == "newest"
    assert next(iter(cases.parts().items()))[0] == "newest_training"


def test_table_1_runs_only_if_named():
    def lists(*arguments):
        cases, _ = throughput._cases(throughput._options(["--device", "cpu", *arguments]))
        return {name for name, _, _ in cases}

    assert lists("--networks") == lists("--only", "table1") == {"table1"}
    assert "table1" not in lists()
    assert throughput._suffix(throughput._options(["--networks"])) == "-table1"
    assert lists("--only", "leni") == {"leni_inference", "leni_training"}
    assert lists("--only", "leni_training") == {"leni_training"}
    assert lists("--only", "networks") == {"networks", "networks_training"}


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_is_left_out_and_said_so_where_pytorch_has_no_kernels(monkeypatch, capsys, supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    cases, left_out = throughput._cases(throughput._options(["--device", "cpu"]))
    assert ("bfloat16" in {case.dtype for _, _, case in cases}) == supported
    assert ("bfloat16" in left_out) == ("No bfloat16" in capsys.readouterr().out) == (not supported)


def test_every_peer_compiles_every_training_step(monkeypatch):
    monkeypatch.setattr(leni_training, "COMPILED", leni_training.COMPILED)
    leni_training.compile_every_case()
    assert {case[:3] for case in leni_training.cases(quick=False)} == set(leni_training.COMPILED)


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--only", "both"], ["--device", "tpu"],
                                       ["--images", "nowhere"]])
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        throughput.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_partial_run_does_not_pass_for_a_full_one():
    names = {throughput._suffix(throughput._options(arguments))
             for arguments in ([], ["--quick"], ["--only", "leni"], ["--quick", "--only", "networks"])}
    assert names == {"", "-quick", "-leni", "-quick-networks"}


def test_cases_cover_every_shape_layout_and_dtype():
    cases = leni_inference.cases(quick=False)
    assert len(set(cases)) == len(cases) == 9 * 2 * 2
    assert set(leni_inference.cases(quick=True)) < set(cases)
    assert leni_training.cases(quick=False) == [case for case in cases if case.dtype == "float32"]
    assert set(leni_training.COMPILED) < {case[:3] for case in cases}


def test_the_limit_of_a_step_is_four_copies_or_three_products():
    assert leni_training.limit({"copy": 1.0, "product": 1.0}) == 4
    assert leni_training.limit({"copy": 1.0, "product": 2.0}) == 6


def test_ours_is_compared_with_the_best_of_the_others():
    found = ratios({"eager": 8.0, "compiled": 9.0, "ours": 2.0}, limit=1.0)
    assert found["best/ours"] == found["eager/ours"] == 4
    assert "best/ours" not in ratios({"ours": 2.0}, limit=1.0)


# ---- the networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_only_the_first_activation_is_replaced_and_it_has_these_channels(name):
    place = first_activation.PLACES[name]
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return x

    stock = first_activation.build(name)
    network = first_activation.swapped(stock, place, Spy())
    with torch.inference_mode():
        network(torch.randn(1, 3, 224, 224))
    assert seen == [(1, place.channels, place.size, place.size)]
    pairs = zip(stock.named_modules(), network.named_modules(), strict=True)
    assert {path for (path, old), (_, new) in pairs if type(old) is not type(new)} == {place.path}


def test_pictures_are_cropped_and_repeated(tmp_path):
    for index, size in enumerate([(300, 400), (230, 224)]):
        Image.new("RGB", size, (255 * index,) * 3).save(tmp_path / f"{index}.png")
    images = first_activation.pictures(str(tmp_path), 3)
    assert images.shape == (3, 3, 224, 224)
    assert images[0].max() < 0 < images[1].min()
    assert torch.equal(images[0], images[2])


def test_a_folder_without_pictures_and_a_broken_picture_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no JPEG or PNG pictures"):
        first_activation.pictures(str(tmp_path), 1)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        first_activation.pictures(str(tmp_path), 1)


# ---- the report --------------------------------------------------------------------------------------------


def _bars(*runs):
    return {(cells[0].partition(":")[0].removeprefix("LENI, "), cells[1]): cells[2:]
            for cells in tables.of_bars(runs)[1]}


def test_bars_say_what_was_reached(results):
    cells = _bars(results)
    assert cells["inference, slowest case, 64 ≤ C ≤ 256", "float32"] == ["≤ 1.5", "≤ 1.15", "1.25, first bar"]
    assert cells["inference, slowest case, C ≤ 256", "bfloat16"] == ["≤ 2.5", "≤ 1.3", "1.25, moonshot"]
    assert cells["training step, slowest case, C ≤ 128", "float32"] == ["≤ 2.2", "≤ 1.4", "1.50, first bar"]
    faster = f"inference, times faster than {bars.COMPOSED}, geometric mean, C ≤ 256"
    assert cells[faster, "bfloat16"] == ["≥ 4.0", "—", "3.20, no"]


def test_a_bar_is_not_judged_without_all_its_cases(results):
    whole = copy.deepcopy(results)
    case = results["leni_inference"][0]
    del case["ratios"]["ours/L"]
    assert (case["channels"], case["dtype"]) == (16, "float32")
    cells = _bars(results, whole)
    assert cells["inference, slowest case, C < 64", "float32"][2:] == ["—", "1.25, first bar"]
    assert cells["inference, slowest case, 64 ≤ C ≤ 256", "float32"][2:] == ["1.25, first bar"] * 2


@pytest.mark.parametrize("with_rich", [True, False])
def test_tables_show_every_cell_and_a_refused_case_shows_none(results, capsys, monkeypatch, with_rich):
    if not with_rich:
        monkeypatch.setattr(report, "rich", None)
    refused = results["leni_inference"][0]
    refused["parity"] = {"ours": {"error": 0.1, "allowed": 1e-5, "passed": False}}
    del refused["seconds"]["ours"]
    refused["ratios"] = {}
    throughput._show(results)
    assert throughput._conclude(results, Path("somewhere.json")) == 1
    printed = capsys.readouterr().out
    assert "compiled/ours" in printed
    assert "2500.00" in printed
    assert "…" not in printed
    line = next(line for line in printed.splitlines() if "16, 112×112" in line)
    assert "2500.00" not in line
    assert "—" in line
    assert "REFUSED" in printed


def test_results_come_back_from_json_and_a_nan_does_not_get_in(tmp_path, results):
    path = tmp_path / "deep" / "results.json"
    report.write_json(path, results)
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_json(path, {"seconds": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == results


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_stopped_run_leaves_the_last_whole_one_as_it_was(tmp_path, results, monkeypatch, interrupted):
    rows = iter(results["leni_inference"])

    def measure(case, device, seconds):
        if interrupted and case == leni_inference.cases(quick=True)[-1]:
            raise KeyboardInterrupt
        return next(rows)

    monkeypatch.setattr(leni_inference, "measure", measure)
    monkeypatch.setattr(throughput, "_prepare", lambda options: None)
    monkeypatch.setattr(machine, "why_no_bfloat16", lambda device: None)
    whole = tmp_path / f"throughput-{machine.kind(torch.device('cpu'))}-quick-leni.json"
    whole.write_text("before")
    status = throughput.main(["--quick", "--only", "leni", "--device", "cpu", "--output", str(tmp_path)])
    assert status == int(interrupted)
    found = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.json")}
    if interrupted:
        assert found.pop(whole.name) == "before"
    (text,) = found.values()
    assert len(json.loads(text)["leni_inference"]) == 4 - interrupted
    assert json.loads(text)["complete"] is not interrupted


def test_the_plot_is_drawn(tmp_path, results):
    throughput._draw(tmp_path / "plot.png", results)
    for name in ("plot.png", "plot-steps.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_history_keeps_the_means(results):
    kept = throughput.summary(results)
    assert kept["LENI inference, float32, ours/L"] == pytest.approx(1.25)
    assert kept["LENI training step, float32, eager/ours"] == pytest.approx(40 / 12)
    assert "best/ours" not in "".join(kept)


@pytest.mark.parametrize(("load", "quiet"), [(None, True), (0.9, True), (1.1, False)])
def test_a_machine_that_is_not_quiet_is_told_of(monkeypatch, load, quiet):
    monkeypatch.setattr(machine, "load", lambda: load)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert (machine.why_not_quiet() is None) == quiet


def test_the_facts_name_the_machine():
    facts = machine.facts(torch.device("cpu"))
    assert facts["machine"]["cpu"]
    assert facts["machine"]["cores"] >= 1
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
