"""The pages say what the results say, and their ratios are those of the numbers beside them."""

import json
import re
from pathlib import Path

import overhead
import pytest
import readme
from harness import machine, report

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in readme.PAGES]


def _cases():
    for path in PAGES:
        for index, (head, rows) in enumerate(_tables(path.read_text(encoding="utf-8"))):
            yield pytest.param(head, rows, id=f"{path.name}-{index}")


def _tables(text):
    """The tables of a page: the head, and the rows as lists of cells."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, rule, *rows = ([cell.strip() for cell in line.strip("|\n").split(" | ")] for line in block.splitlines())
        if set("".join(rule)) <= set("-: |"):
            yield head, rows


def _span(cell):
    """The values that a printed number may stand for."""
    digits = re.fullmatch(r"-?[\d,]+(?:\.(\d+))?", cell)
    half = 0.5 * 10 ** -len(digits[1] or "")
    value = float(cell.replace(",", ""))
    return value - half, value + half


def _agrees(printed, low, high):
    """Whether a printed number may stand for one between the two."""
    least, most = _span(printed)
    return least <= high + 1e-9 and most >= low - 1e-9


def _ratio_agrees(printed, over, under):
    (least, most), (low, high) = _span(over), _span(under)
    return _agrees(printed, max(least, 0) / high, most / max(low, 1e-12))


def _number(cell):
    return re.fullmatch(r"-?[\d,]+(\.\d+)?", cell) is not None


@pytest.mark.parametrize(("head", "rows"), [*_cases()])
def test_what_a_reader_computes_from_a_table_is_what_it_says(head, rows):
    wrong = [*_wrong_ratios(head, rows), *_wrong_means(head, rows), *_wrong_peers(head, rows)]
    assert not wrong


def _wrong_ratios(head, rows):
    """Columns called "a / b" beside columns a and b."""
    for index, name in enumerate(head):
        over, _, under = name.partition(" / ")
        columns = [next((place for place, other in enumerate(head) if other.endswith(part)), None) if part else None
                   for part in (over, under)]
        if None in columns or index in columns:
            continue
        for row in rows:
            cells = [row[index], *(row[column] for column in columns)]
            if all(map(_number, cells)) and not _ratio_agrees(*cells):
                yield row[0], name, cells


def _wrong_means(head, rows):
    """The last row, where it is the geometric mean of those above."""
    label = rows[-1][0]
    if not label.startswith("geometric mean"):
        return
    most = re.search(r"C ≤ (\d+)", label)
    counted = [row for row in rows[:-1] if not most or int(row[0].partition(",")[0]) <= int(most[1])]
    for index in range(1, len(head)):
        spans = [_span(row[index]) for row in counted if _number(row[index])]
        bounds = [report.geometric_mean(max(bound, 1e-12) for bound in part) for part in zip(*spans, strict=True)]
        if spans and not _agrees(rows[-1][index], *bounds):
            yield label, head[index], rows[-1][index], bounds


def _wrong_peers(head, rows):
    """Ratios to the time of the row that is named as the peer."""
    if "peer" not in head:
        return
    named = {row[0]: row for row in rows}
    for index, name in enumerate(head):
        work, _, column = name.rpartition(": ")
        if column != "ratio":
            continue
        time = head.index(f"{work}: µs")
        for row in rows:
            if _number(row[index]) and not _ratio_agrees(row[index], row[time], named[row[1]][time]):
                yield row[0], name, row[index]


def test_the_tables_that_have_ratios_are_found():
    heads = [head for path in PAGES for head, _ in _tables(path.read_text(encoding="utf-8"))]
    assert any("ours / stock" in head for head in heads)
    assert any("step: ratio" in head for head in heads)
    assert sum(head[0] in ("C, H×W", "layer") for head in heads) >= 6


def test_a_wrong_number_is_seen():
    head, rows = ["", "stock", "ours", "ours / stock"], [["a", "44.1", "34.2", "0.94"]]
    assert list(_wrong_ratios(head, rows))
    assert not list(_wrong_ratios(head, [["a", "44.1", "34.2", "0.78"]]))
    assert list(_wrong_means(["C, H×W", "x"], [["16, 1", "2.00"], ["512, 1", "9.00"], ["geometric mean", "2.00"]]))
    assert not list(_wrong_means(["C, H×W", "x"], [["16, 1", "2.00"], ["512, 1", "9.00"],
                                                   ["geometric mean, C ≤ 256", "2.00"]]))
    peers = ["", "peer", "step: µs", "step: ratio"]
    assert list(_wrong_peers(peers, [["ReLU", "—", "2.0", "—"], ["ours", "ReLU", "3.0", "1.60"]]))
    assert not list(_wrong_peers(peers, [["ReLU", "—", "2.0", "—"], ["ours", "ReLU", "3.0", "1.50"]]))


def test_times_of_networks_stand_beside_one_change_only():
    """The change is of pairs of times: the median of the other network's own times would seem to contradict it."""
    for path in PAGES:
        for head, _ in _tables(path.read_text(encoding="utf-8")):
            if head[0] == "network" and "method" not in head:
                assert [name for name in head if "images/s" in name] == ["stock, images/s"]


# ---- the pages and the results -----------------------------------------------------------------------------


def test_the_pages_say_what_the_results_say():
    for path, wanted in readme.pages(readme.RESULTS).items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path.name}: run `python benchmarks/readme.py`"


@pytest.fixture
def folder(tmp_path):
    """Copies of the committed results that a test may change."""
    target = tmp_path / "benchmarks" / "results"
    target.mkdir(parents=True)
    for path in readme.RESULTS.glob("*.json"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


def _changed(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_the_tables_are_generated_from_the_results(folder):
    path = folder / "throughput-cpu-avx2.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    for row in run["leni_inference"]:
        row["ratios"]["ours/L"] = 7.77
    (folder / "throughput-cpu-amx.json").write_text(json.dumps({
        **run, "kernels_isa": "amx", "date": "2000-01-01", "commit": "0ld", "leni_inference": [],
        "left_out": {"bfloat16": "none here"}}))
    _changed(path, leni_inference=run["leni_inference"], date="2100-01-01")
    text = readme.section(folder)
    assert "|  | dtype | first bar | moonshot | amx | avx512_bf16 | avx2 |" in text
    assert "of an earlier commit than the newest; without bfloat16: none here" in text
    assert "](benchmarks/results/throughput-cpu-avx2.png)" in text
    assert re.search(r"^\| 16, 112×112 \| 7\.77 \|", text, re.MULTILINE)
    assert "| geometric mean, C ≤ 256 | 7.77 |" in text
    assert "Table 1 in full" in text
    (folder / "throughput-cpu-avx2-table1.json").unlink()
    assert "Table 1 in full" not in readme.section(folder)


def test_without_results_the_pages_say_so(tmp_path):
    assert readme.section(tmp_path) == readme.highlights(tmp_path) == readme.NOTHING
    assert readme.counts(tmp_path).startswith("Nothing has been counted yet")
    assert "have not run on one yet" in readme.where(tmp_path)
    assert "nothing is known of their machine code" in readme.where(tmp_path)


def test_the_parameters_of_each_network_stand_beside_the_published_ones(folder):
    text = readme.counts(folder)
    ((_, rows),) = _tables(text)
    assert [row[1:] for row in rows if row[0] == "densenet, 100 classes"] == [
        ["ConvReLU, Table 6", "1,035,268", "1,035,268", "exact"]]
    assert len({row[0] for row in rows}) == len(rows) == 9
    run = json.loads((folder / "parameters.json").read_text(encoding="utf-8"))
    _changed(folder / "parameters.json", rows=[{**row, "difference": "exact"} for row in run["rows"]])
    assert f"{len(run['rows'])} of {len(run['rows'])} counts are the published ones" in readme.counts(folder)


def test_the_highlights_are_a_dozen_and_each_says_where_it_was_measured(folder):
    text = readme.highlights(folder)
    ((_, rows),) = _tables(text)
    assert 12 <= len(rows) <= 15
    sources = dict(re.findall(r"^(\d)\. .*\[(.*)\]\(", text, re.MULTILINE))
    assert {row[-1] for row in rows} == set(sources)
    for row in rows:
        low, high = row[2].split(" – ")
        assert float(low) <= float(row[1]) <= float(high)
    (kept,) = (row for row in rows if row[0].startswith("LENI block, ours: kept"))
    run = json.loads((folder / sources[kept[-1]]).read_text(encoding="utf-8"))
    held = run["blocks"][0]["bytes"]
    assert float(kept[1]) == pytest.approx(held["ours"] / held["relu"], abs=0.01)


def test_what_was_measured_where_follows_from_the_results(folder):
    before = readme.where(folder)
    unmeasured = re.search(r"- \*\*(.*)\*\*: no times", before)[1].split(", ")
    assert set(unmeasured) < set(machine.ISAS)
    run = folder / f"throughput-cpu-{unmeasured[0]}.json"
    run.write_bytes((folder / "throughput-cpu-avx2.json").read_bytes())
    _changed(run, kernels_isa=unmeasured[0])
    after = readme.where(folder)
    assert f"- **{unmeasured[0]}**, throughput: " in after
    assert unmeasured[0] not in re.search(r"- \*\*(.*)\*\*: no times", after)[1].split(", ")
    assert "have not run on one yet" in after
    card = {"machine": {"gpu": {"name": "A card"}}, "date": "2026-12-01T00:00", "commit": "c0ffee", "rehearsal": True}
    (folder / "gpu-check-A-card.json").write_text(json.dumps(card))
    assert "have not run on one yet" in readme.where(folder)
    _changed(folder / "gpu-check-A-card.json", rehearsal=False)
    assert "- **A card**: 2026-12-01, commit c0ffee." in readme.where(folder)
    assert "have not run on one yet" not in readme.where(folder)


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="markers"):
        readme.replaced("# nothing here", "measured", "")


def test_a_stale_page_is_told(tmp_path, monkeypatch, capsys):
    markers = "<!-- measured: written by benchmarks/readme.py -->", "<!-- end of measured -->"
    (tmp_path / "README.md").write_text("\nold\n".join(markers))
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "PAGES", ("README.md",))
    assert readme.main(["--check"]) == 1
    assert "README.md" in capsys.readouterr().out
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    assert overhead.TITLE in (tmp_path / "README.md").read_text(encoding="utf-8")
