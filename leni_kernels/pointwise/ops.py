"""AdaReLU, FullyParametricReLU and CReLU as operations: checks and the choice of backend; no arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .. import checks
from ..backends import Backend, Operation
from . import reference


class AdaReluCall(NamedTuple):
    """One call of AdaReLU."""

    x: Tensor
    threshold: Tensor


_ADA_RELU = Operation("ada_relu", Backend("reference", lambda call: None,
                                          lambda call: reference.ada_relu(*call)))


def ada_relu(x: Tensor, threshold: Tensor) -> Tensor:
    """AdaReLU (Gao, Cai, Ji 2020, eq. 4-6): ``x if x > threshold else threshold``.

    Where x equals the threshold, the gradient goes to the threshold and none to x.

    Args:
        x: ``[N, C, *spatial]`` with any number of spatial dimensions, none included; any floating dtype.
        threshold: ``[C]``, one per channel; ``[1]`` or a scalar, one for all; or ``[C, *spatial]``, one per
            element of a sample. In x's dtype; under autocast in any, and compared in x's.

    Returns:
        x's shape, dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, or tensors on several devices.
        TypeError: for dtypes that do not fit.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    channels = checks.channels("ada_relu", x)
    wanted = {"one per channel": (channels,), "one for all": (1,), "one per element": tuple(x.shape[1:])}
    if threshold.dim() > 0 and tuple(threshold.shape) not in wanted.values():
        listed = ", ".join(f"{list(shape)} ({meaning})" for meaning, shape in wanted.items())
        raise ValueError(f"ada_relu: threshold must have shape {listed}, got {tuple(threshold.shape)}")
    checks.same_device("ada_relu", x=x, threshold=threshold)
    checks.same_dtype("ada_relu", x=x, threshold=threshold)
    return _ADA_RELU(AdaReluCall(x, threshold))


class FullyParametricReluCall(NamedTuple):
    """One call of FullyParametricReLU."""

    x: Tensor
    positive_slope: Tensor
    negative_slope: Tensor


_FULLY_PARAMETRIC_RELU = Operation(
    "fully_parametric_relu",
    Backend("reference", lambda call: None, lambda call: reference.fully_parametric_relu(*call)))


def fully_parametric_relu(x: Tensor, positive_slope: Tensor, negative_slope: Tensor) -> Tensor:
    """FullyParametricReLU (Varshney, Singh 2021, "FReLU"): a learnable slope per channel and sign.

    ``positive_slope · x if x > 0 else negative_slope · x``; at x = 0 the slope is the negative one.

    Args:
        x: ``[N, C, *spatial]`` with any number of spatial dimensions, none included; any floating dtype.
        positive_slope, negative_slope: ``[C]``, in x's dtype; under autocast in any, and multiplied in x's.

    Returns:
        x's shape, dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, or tensors on several devices.
        TypeError: for dtypes that do not fit.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    name = "fully_parametric_relu"
    channels = checks.channels(name, x)
    slopes = {"positive_slope": positive_slope, "negative_slope": negative_slope}
    for what, slope in slopes.items():
        checks.shape(name, what, slope, (channels,))
    checks.same_device(name, x=x, **slopes)
    checks.same_dtype(name, x=x, **slopes)
    return _FULLY_PARAMETRIC_RELU(FullyParametricReluCall(x, positive_slope, negative_slope))


class CReluCall(NamedTuple):
    """One call of CReLU."""

    x: Tensor


_CRELU = Operation("crelu", Backend("reference", lambda call: None, lambda call: reference.crelu(*call)))


def crelu(x: Tensor) -> Tensor:
    """CReLU (Shang et al. 2016): ``[max(x, 0); max(-x, 0)]`` on channels, both with gradient 0 at x = 0.

    Args:
        x: ``[N, C, *spatial]`` with any number of spatial dimensions, none included; any floating dtype.

    Returns:
        ``[N, 2C, *spatial]`` in x's dtype and memory format.

    Raises:
        ValueError: if x has no channel axis, or no channels.
        TypeError: if x is not floating-point.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    checks.channels("crelu", x)
    return _CRELU(CReluCall(x))
