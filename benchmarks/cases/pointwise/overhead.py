"""What is called on a tiny input."""

from __future__ import annotations

from functools import partial

from harness.tiny import CHANNELS, Subject
from torch import nn

import leni_kernels as lk

SUBJECTS = (
    Subject("ReLU", None, nn.ReLU),
    Subject("PReLU", None, partial(nn.PReLU, CHANNELS)),
    Subject("AdaReLU", "PReLU", partial(lk.AdaReLU, CHANNELS)),
    Subject("FullyParametricReLU", "PReLU", partial(lk.FullyParametricReLU, CHANNELS)),
    Subject("CReLU", "PReLU", lk.CReLU),
)
