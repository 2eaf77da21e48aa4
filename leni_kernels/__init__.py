"""Learnable activations for CNNs, fused: LENI, Reborn, ConvReLU, AdaReLU, FullyParametricReLU, CReLU."""

from . import functional
from ._version import __version__ as __version__
from .common.backends import BackendUnavailableError, explain, use_backend
from .common.extension import library_path
from .common.norm import Norm
from .conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d, LazyConvReLU1d, LazyConvReLU2d, LazyConvReLU3d
from .leni.modules import LazyLENI1d, LazyLENI2d, LazyLENI3d, LENI1d, LENI2d, LENI3d
from .networks import surgery
from .networks.folding import fold
from .networks.recipes import AlternatingSchedule, parameter_groups
from .networks.surgery import replace_relu
from .pointwise.modules import AdaReLU, CReLU, FullyParametricReLU, LazyAdaReLU, LazyFullyParametricReLU
from .reborn.modules import LazyReborn1d, LazyReborn2d, LazyReborn3d, Reborn1d, Reborn2d, Reborn3d

__all__ = [
    "AdaReLU",
    "AlternatingSchedule",
    "BackendUnavailableError",
    "CReLU",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "FullyParametricReLU",
    "LENI1d",
    "LENI2d",
    "LENI3d",
    "LazyAdaReLU",
    "LazyConvReLU1d",
    "LazyConvReLU2d",
    "LazyConvReLU3d",
    "LazyFullyParametricReLU",
    "LazyLENI1d",
    "LazyLENI2d",
    "LazyLENI3d",
    "LazyReborn1d",
    "LazyReborn2d",
    "LazyReborn3d",
    "Norm",
    "Reborn1d",
    "Reborn2d",
    "Reborn3d",
    "explain",
    "fold",
    "functional",
    "library_path",
    "parameter_groups",
    "replace_relu",
    "surgery",
    "use_backend",
]
