"""The LENI paper's MobileNets, by the parameters that its Table 1 prints."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from .libraries import activated

MOBILENETS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")


def mobilenet(name: str, activation: str, classes: int, channels: int, width: float, where: str,
              size: int) -> nn.Module:
    """A MobileNet, of ``[N, channels, H, W]``: torchvision's, or timm's for V1, which torchvision does not have.

    V2 and V3 are changed where the printed counts ask for it, as :func:`_projected` and :func:`_squeezed` say. What
    stays of their activations are their own, ReLU6 and Hardswish among them. There are no blocks to name.

    Raises:
        ValueError: if ``width`` is not 1, or if ``where`` names a block.
    """
    if width != 1 or where.endswith("-block"):
        raise ValueError(f"{name} has its own width only, and no named blocks; got width {width:g}, where {where!r}")
    if name == "mobilenet_v1":
        import timm

        network = timm.create_model("mobilenetv1_100", num_classes=classes, in_chans=channels)
    else:
        network = getattr(torchvision.models, name)(weights=None, num_classes=classes)
        stem = network.features[0][0]
        network.features[0][0] = nn.Conv2d(channels, stem.out_channels, 3, stride=2, padding=1, bias=False)
        if name == "mobilenet_v2":
            _projected(network)
        else:
            _squeezed(network, classes)
    return activated(network, activation, torch.zeros(1, channels, 64, 64), where)


class Projected(nn.Module):
    """A block ``[N, C, H, W] -> [N, C', H, W]`` beside a projection."""

    def __init__(self, block: nn.Module, channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = block
        self.shortcut = Conv2dNormActivation(channels, out_channels, 1, activation_layer=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.shortcut(x)


def _projected(network: nn.Module) -> None:
    """V2, as it is often written: also the first block expands, and shortcuts that change channels are projections."""
    first = network.features[1].conv
    first.insert(0, Conv2dNormActivation(32, 32, 1, activation_layer=nn.ReLU6))
    for index, block in enumerate(network.features):
        if isinstance(block, InvertedResidual) and block.stride == 1 and not block.use_res_connect:
            network.features[index] = Projected(block, block.conv[0][0].in_channels, block.out_channels)


def _squeezed(network: nn.Module, classes: int) -> None:
    """V3: squeezes to a fourth, not rounded to eights, without biases; a last layer of 1,280 in the small one too."""
    for module in network.modules():
        if isinstance(module, SqueezeExcitation):
            channels = module.fc1.in_channels
            module.fc1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
            module.fc2 = nn.Conv2d(channels // 4, channels, 1, bias=False)
    features = network.classifier[0].in_features
    network.classifier[0], network.classifier[-1] = nn.Linear(features, 1280), nn.Linear(1280, classes)
