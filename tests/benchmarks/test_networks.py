"""The papers' networks: shapes and counts for every activation, partial replacement, and Table 1's networks."""

import pytest
import torch
from networks import table1
from networks.activations import ACTIVATIONS, PYTORCHS
from networks.catalogue import NETWORKS, build, parameter_count
from networks.libraries import activated
from torch import nn

import leni_kernels as lk

PAPERS = [name for name in ACTIVATIONS if name not in PYTORCHS]
ON_TEXTS = [name for name, activation in ACTIVATIONS.items() if not activation.images_only]


def images(size=32):
    return torch.randn(2, 3, size, size)


@pytest.mark.parametrize(("name", "activation"), [
    *(("convnet8", activation) for activation in ACTIVATIONS), *(("resnet18", activation) for activation in PAPERS),
    *(("densenet", activation) for activation in ("prelu", "leni", "conv_relu", "crelu"))])
def test_every_activation_trains_in_every_family(name, activation):
    network = build(name, activation, classes=7, width=0.125)
    y = network(images())
    assert y.shape == (2, 7)
    y.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("activation", ON_TEXTS)
def test_every_activation_that_can_trains_on_texts(activation):
    network = build("text", activation, classes=4, channels=5, width=0.03)
    assert network(torch.randn(2, 5, 1014)).shape == (2, 4)


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("name", ["convnet8", "convnet13", "vgg16"])
def test_images_of_every_data_set_fit(name, size):
    assert build(name, width=0.0625)(images(size)).shape == (2, 10)


@pytest.mark.parametrize(("name", "count"), [
    ("vgg16", 14_728_266), ("resnet18", 11_173_962), ("resnet34", 21_282_122), ("densenet", 769_162)])
def test_counts_are_those_known_for_ten_classes_of_small_images(name, count):
    with torch.device("meta"):
        assert parameter_count(build(name)) == count


@pytest.mark.parametrize("name", ["convnet8", "resnet18"])
def test_what_each_activation_adds_is_what_its_blocks_hold(name):
    # A ReLU on feature maps follows every batch norm but those of ResNet's projected shortcuts.
    sizes = [module.num_features for path, module in build(name, width=0.125).named_modules()
             if isinstance(module, nn.BatchNorm2d) and "downsample" not in path]
    stock = parameter_count(build(name, width=0.125))
    for activation in ("prelu", "leni", "reborn", "ada_relu", "fully_parametric_relu", "extended_conv"):
        added = sum(parameter_count(ACTIVATIONS[activation].make(size)) for size in sizes)
        assert parameter_count(build(name, activation, width=0.125)) - stock == added, activation


def test_extended_conv_has_as_many_parameters_as_reborn():
    assert parameter_count(build("convnet8", "extended_conv")) == parameter_count(build("convnet8", "reborn"))


def test_a_threshold_for_every_input_and_tap_of_every_convolution_behind_a_relu():
    added = parameter_count(build("vgg16", "conv_relu")) - parameter_count(build("vgg16"))
    convolutions = [module for module in build("vgg16").modules() if isinstance(module, nn.Conv2d)]
    assert added == sum(9 * convolution.in_channels for convolution in convolutions[1:])


def test_crelu_doubles_the_input_of_the_next_layer():
    plain, doubled = ([module for module in build("convnet8", activation).modules()
                       if isinstance(module, (nn.Conv2d, nn.Linear))] for activation in ("relu", "crelu"))
    assert [layer.weight.shape[1] for layer in doubled][1:-1] == [2 * layer.weight.shape[1] for layer in plain][1:-1]
    assert [layer.weight.shape[0] for layer in doubled] == [layer.weight.shape[0] for layer in plain]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("text", "resnet34")])
def test_with_thresholds_of_0_conv_relu_is_the_stock_network(name):
    fused, stock = build(name, "conv_relu", width=0.125).eval(), build(name, width=0.125).eval()
    weights = [parameter for path, parameter in fused.named_parameters() if not path.endswith("threshold")]
    with torch.no_grad():
        for ours, theirs in zip(weights, stock.parameters(), strict=True):
            assert ours.shape == theirs.shape
            ours.copy_(theirs)
        x = images()
        torch.testing.assert_close(fused(x), stock(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "activation", "kind"), [
    ("vgg11", "leni", lk.LENI2d), ("vgg11", "conv_relu", lk.ConvReLU2d), ("resnet18", "reborn", lk.Reborn2d)])
def test_only_the_first_layers_are_replaced(name, activation, kind):
    def count(first):
        return sum(isinstance(module, kind) for module in build(name, activation, width=0.125, first=first).modules())

    assert [count(first) for first in (0, 1, 3)] == [0, 1, 3]


def test_half_has_half_the_channels_in_every_layer():
    whole, half = ([module.out_channels for module in build("resnet18", width=width).modules()
                    if isinstance(module, nn.Conv2d)] for width in (1, 0.5))
    assert whole == [2 * channels for channels in half]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "alexnet"}, "unknown network 'alexnet'; the networks are convnet8"),
    ({"name": "vgg11", "activation": "swoosh"}, "unknown activation 'swoosh'; the activations are relu"),
    ({"name": "vgg11", "width": 0}, "width must be positive"),
    ({"name": "vgg11", "first": -1}, "first must not be negative"),
    ({"name": "text", "activation": "leni"}, "defined on images"),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


# ---- Table 1 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels"), [
    ("resnet18", (64, 64, 64)), ("mobilenet_v2", (32, 32, 96)), ("mobilenet_v3_small", (16, 16, 72)),
    ("mobilenetv1_100", (32, 32, 64))])
def test_leni_stands_in_the_first_layers_in_order_of_execution(name, channels):
    stock = table1.build(name)
    for layers in table1.LAYERS:
        network, changes = table1.with_leni(stock, layers)
        assert changes.replaced == layers
        blocks = [module.channels for module in network.modules() if isinstance(module, lk.LENI2d)]
        assert tuple(blocks) == channels[:layers]
        assert not network.training
    assert not any(isinstance(module, lk.LENI2d) for module in stock.modules())


def test_the_cases_of_table_1():
    cases = table1.cases(quick=False)
    assert len(set(cases)) == len(cases) == 6 * 3 * 2
    assert set(table1.cases(quick=True)) < set(cases)
    assert str(cases[2]) == "vgg16_bn float32, LENI in 1, 2, 3"
    for batches in table1.BATCHES.values():
        assert set(batches) == set(table1.NETWORKS)


def test_an_activation_of_linear_layers_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4), nn.ReLU())
    activated(network, "prelu", torch.zeros(1, 3, 4, 4))
    assert [type(network[index]) for index in (1, 4)] == [nn.PReLU, nn.ReLU]
