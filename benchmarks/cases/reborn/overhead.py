"""What is called on a tiny input."""

from __future__ import annotations

from functools import partial

from harness.tiny import CHANNELS, Subject
from torch import Tensor, nn

import leni_kernels as lk
from leni_kernels.reborn import reference


def _composed(block: nn.Module, x: Tensor) -> Tensor:
    return reference.reborn(x, block.deconv, block.bn_negative, block.compress)


SUBJECTS = (
    Subject("composed Reborn", None, partial(lk.Reborn2d, CHANNELS), _composed),
    Subject("Reborn2d", "composed Reborn", partial(lk.Reborn2d, CHANNELS)),
)
