"""Learnable activations for CNNs at the price of a ReLU: LENI, Reborn, ConvReLU, AdaReLU, FullyParametricReLU."""

from . import functional
from ._version import __version__ as __version__
from .backends import BackendUnavailableError, explain, use_backend
from .conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from .folding import fold
from .leni.modules import LENI2d, Reborn2d
from .leni.reference import Norm
from .pointwise.modules import AdaReLU, CReLU, FullyParametricReLU
from .recipes import AlternatingSchedule, parameter_groups
from .surgery import replace_relu

__all__ = [
    "AdaReLU",
    "AlternatingSchedule",
    "BackendUnavailableError",
    "CReLU",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "FullyParametricReLU",
    "LENI2d",
    "Norm",
    "Reborn2d",
    "explain",
    "fold",
    "functional",
    "parameter_groups",
    "replace_relu",
    "use_backend",
]
