"""What is called on a tiny input."""

from __future__ import annotations

from functools import partial

from harness import sides
from harness.tiny import CHANNELS, Subject
from torch import Tensor, nn

import leni_kernels as lk
from leni_kernels.leni import reference


def _composed(block: nn.Module, x: Tensor) -> Tensor:
    return reference.leni(x, block.deconv, block.bn_negative, block.bn_fusion, block.compress)


SUBJECTS = (
    Subject("composed LENI", None, partial(lk.LENI2d, CHANNELS), _composed),
    Subject("LENI2d", "composed LENI", partial(lk.LENI2d, CHANNELS)),
    Subject("folded LENI", "composed LENI", lambda: sides.folded(sides.random_leni(CHANNELS)), works=("inference",)),
)
