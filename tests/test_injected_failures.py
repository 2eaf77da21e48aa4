"""What goes wrong in a call stays in it: memory that runs out and interrupts end it, and the next calls are right.

Each test runs a function of this file in a process of its own, which may crash.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import every_operator
import pytest
import torch

import leni_kernels as lk
from leni_kernels.common import backends, extension

pytestmark = [pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing)),
              pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what a process holds")]

HERE = Path(__file__).parent
MIB = 2**20


def start(function, *arguments):
    code = "import sys, test_injected_failures as t; getattr(t, sys.argv[1])(*sys.argv[2:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))}
    return subprocess.Popen([sys.executable, "-c", code, function, *arguments], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, f"status {process.returncode}\n{output}"


def pages(field):
    """What this process holds, in bytes: all of its addresses (0) or what of them is in memory (1)."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


# ---- memory ------------------------------------------------------------------------------------------------


@contextmanager
def memory_for(count):
    """Allocations fail when they take ``count`` bytes more than now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages(0) + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def conv_relu(channels, outputs, kernel_size=1):
    """A ConvReLU of 2×2 sites, ready to be called."""
    x = torch.randn(1, channels, 2, 2).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, kernel_size, kernel_size)
    threshold = torch.randn(channels, kernel_size, kernel_size)
    return lambda: lk.functional.conv_relu2d(x, weight, threshold, padding=kernel_size // 2)


def leni_folded(channels):
    x, bias = torch.randn(1, channels, 1, 1), torch.randn(channels)
    taps, weight = torch.randn(channels, 3, 3), torch.randn(channels, 2 * channels)
    return lambda: lk.functional.leni_folded(x, taps, weight, bias)


CALLS = {
    "ConvReLU": lambda: conv_relu(3000, 3000),  # packs its weights, 34 MiB, in the memory of the thread that calls
    "LENI": lambda: leni_folded(2200),  # so does it, 37 MiB
    "ConvReLU's threads": lambda: conv_relu(2, 400_000),  # 49 MiB of sums in the memory of each thread
}


def out_of_memory(name):
    torch.set_num_threads(2)
    call = CALLS[name]()
    every_operator.compare_all()
    with memory_for(16 * MIB):
        try:
            call()
        except RuntimeError as error:
            message = str(error)
        else:
            raise AssertionError("there was memory enough")
    assert "out of memory" in message, message
    every_operator.compare_all()
    with lk.use_backend("cpp"):
        y = call()
    with lk.use_backend("reference"):
        torch.testing.assert_close(y, call(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CALLS)
def test_out_of_memory_is_an_error_and_the_next_calls_are_right(name):
    finish(start("out_of_memory", name))


def memory_is_given_back():
    torch.set_num_threads(1)
    call = conv_relu(2048, 2048, kernel_size=3)  # packs 144 MiB of weights
    conv_relu(8, 8)()
    before = pages(1)
    call()
    kept = pages(1) - before
    assert kept <= 48 * MIB, f"{kept // MIB} MiB are kept"


def test_a_large_call_gives_its_memory_back():
    finish(start("memory_is_given_back"))


# ---- interrupts --------------------------------------------------------------------------------------------


def long_call():
    x, taps, weight, bias = (torch.randn(shape) for shape in ((64, 64, 112, 112), (64, 3, 3), (64, 128), (64,)))
    return lambda: lk.functional.leni_folded(x, taps, weight, bias)


def training_loop():
    block, x = torch.nn.Sequential(lk.ConvReLU2d(16, 16, 3, padding=1), lk.LENI2d(16)), torch.randn(8, 16, 32, 32)
    optimizer = torch.optim.SGD(block.parameters(), lr=1e-6)

    def loop():
        while True:
            optimizer.zero_grad()
            block(x).square().sum().backward()
            optimizer.step()

    return loop


def interrupted(name):
    torch.set_num_threads(2)
    call = {"a long call": long_call, "a training loop": training_loop}[name]()
    try:
        with lk.use_backend("cpp"):
            print("begins", flush=True)
            call()
            time.sleep(60)
        raise AssertionError("there was no interrupt")
    except KeyboardInterrupt:
        pass
    assert backends._forced is None
    every_operator.compare_all()


@pytest.mark.parametrize("name", ["a long call", "a training loop"])
def test_after_an_interrupt_the_next_calls_are_right(name):
    process = start("interrupted", name)
    assert process.stdout.readline() == "begins\n", finish(process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    finish(process)
