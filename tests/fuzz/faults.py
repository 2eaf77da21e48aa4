"""Campaigns on kernels with a fault put into them, which show that the fuzzer can fail.

    python tests/fuzz/faults.py wrong --count 100
    python tests/fuzz/faults.py wrong script.py      # the same fault under a script that a campaign printed
"""

import os
import runpy
import signal
import sys

from run import main

from leni_kernels.conv_relu import ops


def wrong() -> None:
    """ConvReLU's last output channel, if there are several, is off by one part in ten thousand."""
    _change_forward(lambda y: y * y.new_tensor([1.0] * (y.shape[1] - 1) + [1.0001]).view(-1, *[1] * (y.dim() - 2))
                    if y.shape[1] > 1 else y)


def dies() -> None:
    """ConvReLU with several output channels is a segmentation fault."""
    _change_forward(lambda y: os.kill(os.getpid(), signal.SIGSEGV) if y.shape[1] > 1 else y)


def hangs() -> None:
    """ConvReLU with several output channels does not end."""
    _change_forward(lambda y: signal.pause() if y.shape[1] > 1 else y)


def _change_forward(change) -> None:
    sound = ops._CPP.forward
    ops._CPP = ops._CPP._replace(forward=lambda *arguments: change(sound(*arguments)))


if __name__ == "__main__":
    _, name, *rest = sys.argv
    fault = {"wrong": wrong, "dies": dies, "hangs": hangs}[name]
    if rest[0].endswith(".py"):
        fault()
        runpy.run_path(rest[0])
    else:
        raise SystemExit(main(["--mechanism", "conv_relu", *rest], prepare=fault))
