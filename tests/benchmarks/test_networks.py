"""The papers' networks: shapes and counts for every activation, partial replacement, and Table 1's networks."""

import pytest
import torch
from networks import table1
from networks.activations import ACTIVATIONS, PYTORCHS
from networks.catalogue import NETWORKS, TEXTS, build, parameter_count
from networks.libraries import activated
from networks.mobilenets import MOBILENETS
from torch import nn

import leni_kernels as lk

PAPERS = [name for name in ACTIVATIONS if name not in PYTORCHS]


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


@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("name", ["convnet8", "convnet13", "vgg16", "resnet18"])
def test_images_of_every_data_set_fit(name, size):
    assert build(name, width=0.0625, size=size)(images(size)).shape == (2, 10)


@pytest.mark.parametrize(("name", "options", "count"), [
    ("convnet8", {"classes": 100}, 5_210_628), ("convnet13", {"classes": 1000}, 15_236_136),
    ("vgg16", {}, 14_728_266), ("resnet18", {}, 11_173_962), ("resnet18", {"classes": 1000, "size": 224}, 11_689_512),
    ("resnet34", {"classes": 100}, 21_328_292), ("densenet", {"classes": 100}, 1_035_268),
    ("mobilenet_v1", {"classes": 1000}, 4_231_976), ("mobilenet_v2", {"classes": 1000}, 3_564_680),
    ("mobilenet_v3_small", {"classes": 1000}, 2_938_080), ("mobilenet_v3_large", {"classes": 1000}, 5_476_128)])
def test_counts_are_the_papers_where_they_print_them_and_the_known_ones_elsewhere(name, options, count):
    assert parameter_count(build(name, **options)) == count


@pytest.mark.parametrize(("name", "widths", "strides", "linear"), [
    ("convnet8", [32, 32, 64, 64, 128, 128, 256, 256], [1, 2, 1, 2, 1, 2, 1, 1], 3),
    ("convnet13", [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512], [1, 2, 1, 2, *[1, 1, 2] * 3], 1),
    ("vgg16", [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512], [1] * 13, 1),
    ("text", [256] * 6, [1] * 6, 3), ("text-words", [256] * 6, [1] * 6, 3)])
def test_layers_are_as_the_papers_say(name, widths, strides, linear):
    modules = list(build(name).modules())
    convolutions = [module for module in modules if isinstance(module, (nn.Conv1d, nn.Conv2d))]
    assert [convolution.out_channels for convolution in convolutions] == widths
    assert [convolution.stride[0] for convolution in convolutions] == strides
    assert sum(isinstance(module, nn.Linear) for module in modules) == linear
    poolings = sum(isinstance(module, (nn.MaxPool1d, nn.MaxPool2d)) for module in modules)
    assert poolings == {"vgg16": 5, "text": 3, "text-words": 3}.get(name, 0)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == (0 if name in TEXTS else len(widths))


@pytest.mark.parametrize("name", ["convnet8", "resnet18"])
def test_what_each_activation_adds_is_what_its_blocks_hold(name):
    # A ReLU on feature maps follows every batch norm but those of ResNet's projected shortcuts.
    sizes = [module.num_features for path, module in build(name, width=0.125).named_modules()
             if isinstance(module, nn.BatchNorm2d) and "downsample" not in path]
    stock = parameter_count(build(name, width=0.125))
    for activation in ("prelu", "leni", "reborn", "ada_relu", "fully_parametric_relu", "extended_conv"):
        added = sum(parameter_count(ACTIVATIONS[activation].make(size)) for size in sizes)
        assert parameter_count(build(name, activation, width=0.125)) - stock == added, activation


def test_an_extended_convolution_follows_a_relu_and_nothing_follows_it():
    relu, convolution = ACTIVATIONS["extended_conv"].make(4)
    assert isinstance(relu, nn.ReLU)
    assert convolution.weight.shape == (4, 4, 3, 3)
    assert ACTIVATIONS["extended_depthwise_conv"].make(4)[1].weight.shape == (4, 1, 3, 3)
    assert ACTIVATIONS["extended_conv"].make(4)(torch.randn(1, 4, 5, 6)).shape == (1, 4, 5, 6)


@pytest.mark.parametrize(("activation", "where", "added"), [
    ("leaky_relu", "all", 0), ("prelu", "first-block", 12), ("prelu", "all", 119), ("conv_relu", "first-block", 2_916)])
def test_densenet_grows_as_table_6_of_the_conv_relu_paper_counts(activation, where, added):
    counts = [parameter_count(build("densenet", name, classes=100, where=where)) for name in ("relu", activation)]
    assert counts == [1_035_268, 1_035_268 + added]


@pytest.mark.parametrize(("name", "start"), [("conv_relu", "zeros"), ("conv_relu_normal", "normal"),
                                             ("conv_relu_xavier", "xavier")])
@pytest.mark.parametrize("network", ["convnet8", "resnet18", "text"])
def test_thresholds_begin_as_the_name_says(network, name, start):
    channels = {"text": 5}.get(network)
    made = [module for module in build(network, name, channels=channels, width=0.125).modules()
            if isinstance(module, (lk.ConvReLU1d, lk.ConvReLU2d))]
    assert made
    assert all(module.threshold_init == start for module in made)
    assert all(bool(module.threshold.any()) == (start != "zeros") for module in made)


def test_a_threshold_for_every_input_and_tap_of_every_convolution_behind_a_relu():
    added = parameter_count(build("vgg16", "conv_relu")) - parameter_count(build("vgg16"))
    convolutions = [module for module in build("vgg16").modules() if isinstance(module, nn.Conv2d)]
    assert added == sum(9 * convolution.in_channels for convolution in convolutions[1:])


def test_crelu_doubles_the_input_of_the_next_layer():
    plain, doubled = ([module for module in build("convnet8", activation).modules()
                       if isinstance(module, (nn.Conv2d, nn.Linear))] for activation in ("relu", "crelu"))
    growths = [ours.weight.shape[1] / stock.weight.shape[1] for ours, stock in zip(doubled, plain, strict=True)]
    assert growths == [1, *[2] * 8, 1, 1]
    assert [layer.weight.shape[0] for layer in doubled] == [layer.weight.shape[0] for layer in plain]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in (*TEXTS, "resnet34", *MOBILENETS)])
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
    ("vgg16", "leni", lk.LENI2d), ("vgg16", "conv_relu", lk.ConvReLU2d), ("resnet18", "reborn", lk.Reborn2d)])
def test_only_the_first_layers_are_replaced(name, activation, kind):
    def count(where):
        return sum(isinstance(module, kind) for module in build(name, activation, width=0.125, where=where).modules())

    assert [count(f"first:{number}") for number in (0, 1, 3)] == [0, 1, 3]


@pytest.mark.parametrize(("name", "first", "last"), [
    ("convnet8", [1, 2], [7, 8]), ("convnet13", [1, 2], [11, 12, 13]), ("vgg16", [1, 2], [11, 12, 13]),
    ("text", [1, 2], [3, 4, 5, 6]), ("text-words", [1, 2], [3, 4, 5, 6])])
def test_the_blocks_of_plain_networks_end_where_the_size_falls_and_those_of_texts_with_the_long_kernels(
        name, first, last):
    for where, places in (("first-block", first), ("last-block", last)):
        kinds = [type(module) for module in build(name, "elu", width=0.125, where=where).modules()
                 if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ELU))]
        before = [sum(kind is not nn.ELU for kind in kinds[:index]) for index in range(len(kinds))]
        assert [count for count, kind in zip(before, kinds, strict=True) if kind is nn.ELU] == places


@pytest.mark.parametrize(("name", "first", "last"), [
    ("resnet18", ["act1", *(f"layer1.{block}.act{index}" for block in (0, 1) for index in (1, 2))],
     [f"layer4.{block}.act{index}" for block in (0, 1) for index in (1, 2)]),
    ("densenet", [f"features.denseblock1.denselayer{layer}.relu{index}" for layer in range(1, 7) for index in (1, 2)],
     [f"features.denseblock4.denselayer{layer}.relu{index}" for layer in range(1, 17) for index in (1, 2)])])
def test_the_blocks_of_library_networks_are_their_stages(name, first, last):
    for where, places in (("first-block", first), ("last-block", last)):
        network = build(name, "elu", width=0.125, where=where)
        assert [path for path, module in network.named_modules() if isinstance(module, nn.ELU)] == places


@pytest.mark.parametrize("name", MOBILENETS)
def test_leni_stands_in_the_first_layer_of_a_mobilenet(name):
    network = build(name, "leni", classes=7, where="first:1", size=64)
    first, = (module for module in network.modules() if isinstance(module, lk.LENI2d))
    assert first.channels == (16 if "v3" in name else 32)
    assert network(images(64)).shape == (2, 7)


def test_half_has_half_the_channels_in_every_layer():
    whole, half = ([module.out_channels for module in build("resnet18", width=width).modules()
                    if isinstance(module, nn.Conv2d)] for width in (1, 0.5))
    assert whole == [2 * channels for channels in half]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "alexnet"}, "unknown network 'alexnet'; the networks are convnet8"),
    ({"name": "vgg16", "activation": "swoosh"}, "unknown activation 'swoosh'; the activations are relu"),
    ({"name": "vgg16", "width": 0}, "width must be positive"),
    ({"name": "vgg16", "where": "first:-1"}, "where must be 'all', 'first:N', 'first-block' or 'last-block'"),
    ({"name": "mobilenet_v2", "width": 0.5}, "its own width only"),
    ({"name": "mobilenet_v2", "where": "first-block"}, "no named blocks"),
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
