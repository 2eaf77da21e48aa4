"""What two commits are compared on."""

from __future__ import annotations

from functools import partial

from comparing.subjects import Subject, batch, everywhere, tiny

import leni_kernels as lk

LAYERS = (
    ("DenseNet 128 → 32, 3×3", partial(lk.ConvReLU2d, 128, 32, 3, padding=1), batch(2 * 128 * 28**2, 128, 28)),
    ("DenseNet 256 → 128, 1×1", partial(lk.ConvReLU2d, 256, 128, 1), batch(4 * 256 * 28**2, 256, 28)),
    ("ResNet 64 → 64, 3×3", partial(lk.ConvReLU2d, 64, 64, 3, padding=1), batch(2 * 64 * 56**2, 64, 56)),
    ("ResNet 128 → 128, 3×3 / 2", partial(lk.ConvReLU2d, 128, 128, 3, 2, 1), batch(2 * 128 * 56**2, 128, 56)),
    ("text 256 → 256, 7", partial(lk.ConvReLU1d, 256, 256, 7), batch(256 * 512, 256, 512, dimensions=1)),
)
"""Of the paper's networks: name, layer, and the shape of an input."""


def subjects() -> list[Subject]:
    """Everything that is compared of this mechanism."""
    return [subject for training in (False, True) for name, make, shape in LAYERS
            for subject in everywhere(f"ConvReLU, {name}", make, shape, training)
            ] + tiny("ConvReLU", partial(lk.ConvReLU2d, 16, 16, 3, padding=1), 16)
