"""The mechanisms as functions of tensors."""

from .conv_relu.ops import conv_relu1d, conv_relu2d, conv_relu3d
from .leni.ops import leni, leni_folded
from .pointwise.ops import ada_relu, crelu, fully_parametric_relu
from .reborn.ops import reborn

__all__ = [
    "ada_relu",
    "conv_relu1d",
    "conv_relu2d",
    "conv_relu3d",
    "crelu",
    "fully_parametric_relu",
    "leni",
    "leni_folded",
    "reborn",
]
