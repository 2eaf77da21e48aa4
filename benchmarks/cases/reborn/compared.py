"""What two commits are compared on."""

from __future__ import annotations

from functools import partial

from comparing.subjects import Subject, batch, everywhere, tiny

import leni_kernels as lk

INFERENCE, TRAINING = ((64, 56),), ((16, 112), (64, 56), (128, 28))
"""(C, H): first layers of MobileNetV3 and ResNet, and a deeper one."""

ELEMENTS = 64 * 112**2


def subjects() -> list[Subject]:
    """Everything that is compared of this mechanism."""
    return [subject for training, shapes in ((False, INFERENCE), (True, TRAINING)) for channels, size in shapes
            for subject in everywhere("Reborn", partial(lk.Reborn2d, channels), batch(ELEMENTS, channels, size),
                                      training)] + tiny("Reborn", partial(lk.Reborn2d, 16), 16)
