"""timm's and torchvision's networks, with the activations of their feature maps replaced in place."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

import leni_kernels as lk

from .activations import by_name, chosen
from .plain import scaled

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
LARGE = 128
"""The least side of images that are ImageNet's, not CIFAR's."""


def resnet(name: str, activation: str, classes: int, channels: int, width: float, where: str, size: int) -> nn.Module:
    """ResNet-18 or ResNet-34, of ``[N, channels, H, W]``: timm's. Its first block is the stem and the first stage.

    For small images its stem is a 3×3 convolution of stride 1. A width of 0.5 is the LENI paper's "Half": half the
    channels in every layer, the stem included. With CReLU every shortcut is a projection, since a block then returns
    twice what its last convolution does.
    """
    from timm.models.resnet import BasicBlock, ResNet

    widths = tuple(scaled(count, width) for count in (64, 128, 256, 512))
    # timm's stem has 64 channels, unless it is the deep one; either is replaced here.
    network = ResNet(BasicBlock, BLOCKS[name], classes, channels, channels=widths, stem_type="deep",
                     stem_width=widths[0] // 2, zero_init_last=False)
    if size >= LARGE:
        network.conv1 = nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False)
    else:
        network.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    if by_name(activation).growth > 1:
        for block in network.modules():
            if isinstance(block, BasicBlock) and block.downsample is None:
                count = block.bn2.num_features
                block.downsample = nn.Sequential(nn.Conv2d(count, count, 1, bias=False), nn.BatchNorm2d(count))
    return activated(network, activation, torch.zeros(1, channels, 32, 32), where, ("act1", "layer1."), ("layer4.",))


def densenet(name: str, activation: str, classes: int, channels: int, width: float, where: str,
             size: int) -> nn.Module:
    """The ConvReLU paper's DenseNet-40, ``[N, channels, H, W]``: torchvision's, with a 3×3 convolution as its stem.

    The paper's text and its Fig. 4 say three dense blocks of 8 layers with a growth of 12. Its Table 6 says
    otherwise, to the last parameter, and is followed: four blocks of 6, 12, 24 and 16 bottleneck layers, as
    DenseNet-121 has, a growth of 12, and 100 classes. The last norm's ReLU is no module, and stays a ReLU; by the
    table's count of PReLUs it did there too.
    """
    from torchvision.models.densenet import DenseNet

    growth = scaled(12, width)
    network = DenseNet(growth, (6, 12, 24, 16), 2 * growth, num_classes=classes)
    network.features.conv0 = nn.Conv2d(channels, 2 * growth, 3, padding=1, bias=False)
    for layer in ("norm0", "relu0", "pool0"):
        delattr(network.features, layer)
    return activated(network, activation, torch.zeros(1, channels, 32, 32), where, ("features.denseblock1.",),
                     ("features.denseblock4.",))


def activated(network: nn.Module, activation: str, example: Tensor, where: str = "all",
              first_block: tuple[str, ...] = (), last_block: tuple[str, ...] = ()) -> nn.Module:
    """The network with an activation by name in place of its activations; ``network`` itself may change.

    Args:
        network: its activations are modules of their own, each called once.
        activation: a name of ``ACTIVATIONS``.
        example: an input of the network.
        where: as of :func:`.catalogue.build`.
        first_block: what the paths of the first block's modules begin with.
        last_block: what those of the last block's do.

    Raises:
        ValueError: for an unknown activation or ``where``.
    """
    wanted = by_name(activation)
    places = places_of_activations(network, example)
    paths = chosen(where, list(places), *([path for path in places if path.startswith(block)]
                                          for block in (first_block, last_block)))
    if activation == "relu" or not paths:
        return network
    if wanted.threshold_init is not None:
        return lk.replace_relu(network, "conv_relu", paths, example_input=example, include=("relu6", "hardswish"),
                               threshold_init=wanted.threshold_init)[0]
    for path in paths:
        network.set_submodule(path, wanted.make(places[path]))
    if wanted.growth > 1:
        _widen(network, example)
    return network


def places_of_activations(network: nn.Module, example: Tensor) -> dict[str, int]:
    """The paths of the activations on feature maps, in order of execution, and the channels of each.

    One on pooled features, as squeeze-and-excitation has, is none of these.
    """
    places: dict[str, int] = {}

    def note(path: str, y: Tensor) -> None:
        if y.dim() > 2 and max(y.shape[2:]) > 1:
            places.setdefault(path, y.shape[1])

    with ExitStack() as hooks:
        for path, module in network.named_modules():
            if isinstance(module, (nn.ReLU, nn.ReLU6, nn.Hardswish)):
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
