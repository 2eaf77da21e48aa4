"""timm's and torchvision's networks, with the activations of their feature maps replaced in place."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

import leni_kernels as lk

from .activations import by_name
from .plain import scaled

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
SURGERY = ("leni", "reborn", "conv_relu", "ada_relu", "fully_parametric_relu")
"""The activations that :func:`leni_kernels.replace_relu` puts in; the others are swapped here."""


def resnet(name: str, activation: str, classes: int, channels: int, width: float, first: int | None) -> nn.Module:
    """ResNet-18 or ResNet-34 for small images, ``[N, channels, H, W]``: timm's, with a 3×3 stem of stride 1.

    A width of 0.5 is the LENI paper's "Half": half the channels in every layer, the stem included. With CReLU
    every shortcut is a projection, since a block then returns twice what its last convolution does.
    """
    from timm.models.resnet import BasicBlock, ResNet

    widths = tuple(scaled(count, width) for count in (64, 128, 256, 512))
    # timm's stem has 64 channels, unless it is the deep one; either is replaced here.
    network = ResNet(BasicBlock, BLOCKS[name], classes, channels, channels=widths, stem_type="deep",
                     stem_width=widths[0] // 2, zero_init_last=False)
    network.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    if by_name(activation).growth > 1:
        for block in network.modules():
            if isinstance(block, BasicBlock) and block.downsample is None:
                count = block.bn2.num_features
                block.downsample = nn.Sequential(nn.Conv2d(count, count, 1, bias=False), nn.BatchNorm2d(count))
    return activated(network, activation, torch.zeros(1, channels, 32, 32), first)


def densenet(name: str, activation: str, classes: int, channels: int, width: float, first: int | None) -> nn.Module:
    """DenseNet-BC for small images, ``[N, channels, H, W]``: timm's, with nothing but a 3×3 convolution as its stem.

    The depth and growth in the ConvReLU paper are not available to us; our reading is the smallest BC network of
    the DenseNet paper: 100 layers in three blocks, 12 channels a layer, compression by half.
    """
    from timm.models.densenet import DenseNet

    growth = scaled(12, width)
    network = DenseNet(growth, (16, 16, 16), classes, channels)
    network.features.conv0 = nn.Conv2d(channels, 2 * growth, 3, padding=1, bias=False)
    network.features.norm0 = network.features.pool0 = nn.Identity()
    return activated(network, activation, torch.zeros(1, channels, 32, 32), first)


def activated(network: nn.Module, activation: str, example: Tensor, first: int | None = None) -> nn.Module:
    """The network with an activation by name in place of its ReLUs; ``network`` itself may change.

    Args:
        network: its ReLUs are modules of their own, each called once; for this package's activations any will do.
        activation: a name of ``ACTIVATIONS``.
        example: an input of the network.
        first: how many of the activations of feature maps to replace, in order of execution; None is all.

    Raises:
        ValueError: for an unknown activation.
    """
    made = by_name(activation)
    if activation == "relu" or first == 0:
        return network
    if activation in SURGERY:
        return lk.replace_relu(network, activation, "all" if first is None else f"first:{first}",
                               example_input=example)[0]
    for path, channels in list(places_of_relus(network, example).items())[:first]:
        network.set_submodule(path, made.make(channels))
    if made.growth > 1:
        _widen(network, example)
    return network


def places_of_relus(network: nn.Module, example: Tensor) -> dict[str, int]:
    """The paths of the ReLUs on feature maps, in order of execution, and the channels of each."""
    places: dict[str, int] = {}

    def note(path: str, y: Tensor) -> None:
        if y.dim() > 2:
            places.setdefault(path, y.shape[1])

    with ExitStack() as hooks:
        for path, module in network.named_modules():
            if isinstance(module, nn.ReLU):
                hooks.enter_context(module.register_forward_hook(lambda _, inputs, y, path=path: note(path, y)))
        _run(network, example)
    return places


def _widen(network: nn.Module, example: Tensor) -> None:
    """Rebuild each layer that meets more channels than it was built for."""
    def widen(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].shape[1]
        if channels != layer.weight.shape[1]:
            setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", channels)
            shape = (layer.weight.shape[0], channels, *layer.weight.shape[2:])
            layer.weight = nn.Parameter(layer.weight.new_empty(shape))
            layer.reset_parameters()

    with ExitStack() as hooks:
        for layer in filter(lambda module: isinstance(module, (nn.Conv2d, nn.Linear)), network.modules()):
            hooks.enter_context(layer.register_forward_pre_hook(widen))
        _run(network, example)


@torch.no_grad()
def _run(network: nn.Module, example: Tensor) -> None:
    training = network.training
    network.eval()(example)
    network.train(training)
