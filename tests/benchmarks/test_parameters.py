"""The table of parameter counts, and how it compares with what is printed."""

import json

import parameters
import pytest
from networks import published


@pytest.mark.parametrize(("count", "printed", "difference"), [
    (10_240, "+0.010 M", "exact"), (9_216, "+0.010 M", "-0.001 M"), (11_173_962, "11.17 M", "exact"),
    (11_175_001, "11.17 M", "+0.01 M"), (769_162, "769,162", "exact"), (769_163, "769,162", "+1"),
    (12_345, "12.4 K", "-0.1 K"), (1, None, None)])
def test_counts_are_compared_in_the_digits_that_are_printed(count, printed, difference):
    assert parameters.difference(parameters.Row("table", "network", "relu", count, printed, "")) == difference


def test_the_readings_of_a_layer_of_64_channels():
    default, matching = list(parameters._leni_layer())
    assert (default.count, parameters.difference(default)) == (9_216, "-0.001 M")
    assert (matching.count, parameters.difference(matching)) == (10_240, "exact")


def test_the_table_and_the_json_say_the_same(tmp_path, capsys, monkeypatch):
    small = ("ConvReLU Table 6", ("vgg16",), ("relu", "conv_relu"), 0.5, "reading")
    monkeypatch.setattr(parameters, "SMALL_IMAGES", (small,))
    monkeypatch.setattr(parameters, "_leni_table_1", lambda: ())
    monkeypatch.setitem(published.PARAMETERS, ("ConvReLU Table 6", "vgg16 ×0.5", "relu"), "3.69 M")
    assert parameters.main(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "parameters.json").read_text(encoding="utf-8"))["rows"]
    assert [row["difference"] for row in rows] == ["-0.001 M", "exact", "exact", None]
    assert all(f"{row['count']:,}" in printed for row in rows)
    assert "1 of 4 published counts are not available to us" in printed


def test_progress_knows_how_many_rows_there_are(monkeypatch):
    monkeypatch.setattr(parameters, "parameter_count", lambda network: 1)
    monkeypatch.setattr(parameters, "build", lambda *arguments, **options: None)
    monkeypatch.setattr(parameters.table1, "build", lambda name: None)
    monkeypatch.setattr(parameters.table1, "with_leni", lambda stock, layers: (None, None))
    assert len(list(parameters.rows())) == parameters.how_many()
