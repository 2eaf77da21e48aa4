"""What two commits are compared on."""

from __future__ import annotations

from functools import partial

from comparing.subjects import Subject, batch, everywhere, tiny

import leni_kernels as lk

CHANNELS, SIZE = 64, 56
MODULES = {"AdaReLU": partial(lk.AdaReLU, CHANNELS), "CReLU": lk.CReLU,
           "FullyParametricReLU": partial(lk.FullyParametricReLU, CHANNELS)}
ELEMENTS = 2 * 64 * 112**2


def subjects() -> list[Subject]:
    """Everything that is compared of this mechanism."""
    return [subject for training in (False, True) for name, make in MODULES.items()
            for subject in everywhere(name, make, batch(ELEMENTS, CHANNELS, SIZE), training)
            ] + tiny("AdaReLU", partial(lk.AdaReLU, 16), 16)
