"""The papers' tables: every number that is printed is entered, and every row can be built."""

from decimal import Decimal

import pytest
from networks import published
from networks.activations import ACTIVATIONS, chosen
from networks.catalogue import NETWORKS
from networks.published import PRINTED
from networks.tables import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_a_table_and_what_is_printed_have_the_same_names(name):
    table = TABLES[name]
    assert len(set(table.rows)) == len(table.rows)
    assert {(row.network, row.method) for row in table.rows} == set(PRINTED[name])
    assert all(tuple(row.accuracies) == table.datasets for row in PRINTED[name].values())


def test_every_row_is_one_that_the_catalogue_builds():
    assert set(TABLES) == set(PRINTED)
    for table in TABLES.values():
        assert table.recipe in ("reborn", "conv_relu", "imagenet")
        for row in table.rows:
            assert row.network in NETWORKS
            assert row.activation in ACTIVATIONS
            assert row.width in (1, 0.5)
            chosen(row.where, ())


@pytest.mark.parametrize(("name", "rows", "accuracies", "total"), [
    ("leni-1", 16, 16, "1136.68"), ("leni-2", 27, 162, "14745.68"), ("leni-3", 15, 90, "8186.74"),
    ("reborn-2", 27, 162, "14745.683"), ("reborn-3", 15, 90, "8192.05"), ("reborn-4", 9, 54, "4943.05"),
    ("conv_relu-1", 6, 18, "1356.27"), ("conv_relu-2", 6, 18, "1381.79"), ("conv_relu-3", 6, 12, "1016.35"),
    ("conv_relu-4", 3, 6, "511.38"), ("conv_relu-5", 3, 3, "283.61"), ("conv_relu-6", 6, 0, "0")])
def test_every_accuracy_is_entered(name, rows, accuracies, total):
    values = [Decimal(value) for row in PRINTED[name].values() for value in row.accuracies.values()]
    assert (len(PRINTED[name]), len(values), sum(values)) == (rows, accuracies, Decimal(total))


@pytest.mark.parametrize(("name", "network", "method", "dataset", "accuracy", "parameters"), [
    ("leni-1", "convnet13", "layer 1,2,3", "imagenet", "73.92", "15.266M"),
    ("leni-2", "convnet8", "GELU", "cifar100", "61.13", "5.21M"),
    ("leni-3", "resnet34", "Half LENI", "fashion-mnist", "93.97", "7.10M"),
    ("reborn-2", "convnet13", "CELU", "fashion-mnist", "92.793", None),
    ("reborn-3", "convnet8", "Half Reborn Mechanism", "kmnist", "96.92", None),
    ("reborn-4", "resnet34", "Extended Conv", "svhn", "95.36", None),
    ("conv_relu-1", "densenet", "ConvReLU", "tiny-imagenet", "56.47", None),
    ("conv_relu-2", "text", "PReLU (A)", "mr", "79.83", None),
    ("conv_relu-3", "resnet18", "ConvReLU", "cifar100", "75.97", None),
    ("conv_relu-4", "densenet", "Glort Init", "cifar10", "94.45", None),
    ("conv_relu-5", "densenet", "R2 (Last)", "cifar10", "94.34", None),
    ("conv_relu-6", "densenet", "PReLU (A)", "cifar10", None, "1,035,387")])
def test_a_number_stands_where_it_is_printed(name, network, method, dataset, accuracy, parameters):
    assert published.accuracy(name, network, method, dataset) == accuracy
    assert published.parameters(name, network, method) == parameters
    assert published.accuracy(name, network, "Swish", dataset) is published.parameters(name, network, "Swish") is None


def test_printed_differences_are_those_of_the_printed_numbers():
    def number(text):
        return Decimal(text.rstrip("M/s"))

    rows = PRINTED["leni-1"]
    for (network, _), row in rows.items():
        stock = rows[network, "ReLU"]
        if row.changes:
            pairs = ((row.accuracies["imagenet"], stock.accuracies["imagenet"]), (row.parameters, stock.parameters),
                     (row.speed, stock.speed))
            assert [number(ours) - number(theirs) for ours, theirs in pairs] == [number(text) for text in row.changes]
    assert published.LENI_SPEED_CHANGE == (-2.6, -0.1)
    counts = {method: (int(row.parameters.replace(",", "")), row.changes)
              for (_, method), row in PRINTED["conv_relu-6"].items()}
    for count, changes in counts.values():
        assert changes == (f"{100 * (count / counts['ReLU'][0] - 1):.2f}",)


def test_the_leni_and_reborn_papers_print_the_same_accuracies_but_for_names_and_one_exchange():
    names = {"SELU": "GELU", "Reborn Mechanism": "LENI", "Half Reborn Mechanism": "Half LENI"}
    leni = {**PRINTED["leni-3"], **PRINTED["leni-2"]}
    unlike = {(network, method) for table in ("reborn-2", "reborn-3", "reborn-4")
              for (network, method), row in PRINTED[table].items()
              if row.accuracies != leni[network, names.get(method, method)].accuracies}
    assert unlike == {("convnet13", "CELU"), ("convnet8", "Extended Conv"), ("convnet13", "Extended Conv")}
    ours, theirs = ([PRINTED[table][network, "Extended Conv"].accuracies["cifar100"] for network in networks]
                    for table, networks in (("leni-3", ("convnet8", "convnet13")),
                                            ("reborn-4", ("convnet13", "convnet8"))))
    assert ours == theirs
