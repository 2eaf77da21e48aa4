"""FLOPs of the layers that LENI and Reborn share: the deconvolution and the 1×1 convolution that compresses."""

from __future__ import annotations

from typing import Any

from ..common.flops import Shape, convolution, convolution_backward


def _in_a_plane(x: Shape, taps: Shape) -> Shape:
    """``[C, C // groups, k, k]`` without the rows of taps that see nothing where x has one row, as a signal has."""
    return (*taps[:2], 1, taps[3]) if x[2] == 1 else taps


def deconvolution(x: Shape, deconv_weight: Shape, **_: Any) -> int:
    """Of ``D ⋆ᵀ min(x, 0)``, for D ``[C, C // groups, k, k]``."""
    return convolution(x, _in_a_plane(x, deconv_weight), x, x[1] // deconv_weight[1], transposed=True)


def deconvolution_backward(x: Shape, deconv_weight: Shape, needs: tuple[bool, bool]) -> int:
    """Of x's and D's gradients, as needed."""
    return convolution_backward(x, _in_a_plane(x, deconv_weight), x, needs, x[1] // deconv_weight[1], transposed=True)


def compression(x: Shape, weight: Shape, **_: Any) -> int:
    """Of the 1×1 convolution by ``[C, K]``, or ``[C, K, 1, 1]``, of K features with x's sites."""
    return convolution(_features(x, weight), _pointwise(weight), x)


def compression_backward(x: Shape, weight: Shape, needs: tuple[bool, bool]) -> int:
    """Of the features' and the weight's gradients, as needed."""
    return convolution_backward(_features(x, weight), _pointwise(weight), x, needs)


def _features(x: Shape, weight: Shape) -> Shape:
    return x[0], weight[1], *x[2:]


def _pointwise(weight: Shape) -> Shape:
    return *weight[:2], 1, 1


def block(x: Shape, deconv_weight: Shape, compress_weight: Shape, **_: Any) -> int:
    """Of a block's two convolutions."""
    return deconvolution(x, deconv_weight) + compression(x, compress_weight)
