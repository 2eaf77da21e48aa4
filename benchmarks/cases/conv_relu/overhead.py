"""What is called on a tiny input."""

from __future__ import annotations

from functools import partial

from harness.tiny import CHANNELS, Subject
from torch import nn

import leni_kernels as lk

SUBJECTS = (
    Subject("conv(relu(x))", None, partial(nn.Conv2d, CHANNELS, CHANNELS, 3, padding=1),
            lambda conv, x: conv(x.relu())),
    Subject("ConvReLU2d", "conv(relu(x))", partial(lk.ConvReLU2d, CHANNELS, CHANNELS, 3, padding=1)),
)
