"""The table of parameter counts, and how it compares with what is printed."""

import json

import parameters
import pytest
from networks import tables
from networks.catalogue import parameter_count

import leni_kernels as lk


def row(count, printed):
    return parameters.Row("table", "network", "ReLU", "reading", count, printed)


@pytest.mark.parametrize(("count", "printed", "difference"), [
    (10_240, "+0.010M", "to the printed digits"), (9_216, "+0.010M", "-0.001M"),
    (11_173_962, "11.17M", "to the printed digits"), (11_175_001, "11.17M", "+0.01M"),
    (1_035_268, "1,035,268", "exact"), (1_035_269, "1,035,268", "+1"), (12_345, "12.4K", "-0.1K")])
def test_counts_are_compared_in_the_digits_that_are_printed(count, printed, difference):
    assert parameters.difference(row(count, printed)) == difference


def counted(name, network, method):
    found, = (each for each in tables.TABLES[name].rows if (each.network, each.method) == (network, method))
    return [(each.method, each.count, parameters.difference(each)) for each in parameters.counted(name, found)]


def test_a_layer_of_64_channels_grows_as_printed_with_a_deconvolution_of_5():
    assert counted("leni-1", "convnet13", "layer 1") == [
        ("layer 1", 15_245_352, "-0.001M"), ("layer 1, added", 9_216, "-0.001M"),
        ("layer 1", 15_246_376, "to the printed digits"), ("layer 1, added", 10_240, "to the printed digits"),
        ("layer 1", 15_249_448, "+0.003M"), ("layer 1, added", 13_312, "+0.003M")]


@pytest.mark.parametrize(("name", "network", "method", "counts"), [
    ("leni-1", "mobilenet_v3_small", "ReLU", [("ReLU", 2_938_080, "to the printed digits")]),
    ("leni-2", "resnet34", "PReLU", [("PReLU", 21_328_325, "to the printed digits")]),
    ("leni-3", "convnet8", "Half ReLU", [("Half ReLU", 1_329_716, "+0.03M")]),
    ("leni-3", "convnet8", "Extended Conv",
     [("Extended Conv", 5_220_228, "-0.80M"), ("Extended Conv", 6_778_308, "+0.76M")]),
    ("conv_relu-6", "densenet", "ConvReLU", [("ConvReLU", 1_038_184, "exact")])])
def test_each_way_to_read_a_row_is_counted(name, network, method, counts):
    assert counted(name, network, method) == counts


@pytest.mark.parametrize(("reading", "options"), [
    ("deconvolution 3×3", {}), ("deconvolution 5×5", {"kernel_size": 5}),
    ("deconvolution 3×3 and pointwise", {"separable": True})])
def test_what_a_way_to_read_the_leni_paper_adds_is_what_such_a_block_has(reading, options):
    added = parameter_count(lk.LENI2d(12, **options)) - parameter_count(lk.LENI2d(12))
    assert parameters.LENI[reading](12) == added


def test_the_table_and_the_json_say_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parameters, "COUNTED", ("conv_relu-6",))
    assert parameters.main(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "parameters.json").read_text(encoding="utf-8"))["rows"]
    assert [row["difference"] for row in rows] == ["exact"] * 6
    assert all(f"{row['count']:,}" in printed for row in rows)
    assert "6 of 6 counts are the published ones" in printed


def test_the_tables_that_print_parameters_are_counted():
    assert parameters.COUNTED == ("leni-1", "leni-2", "leni-3", "conv_relu-6")
