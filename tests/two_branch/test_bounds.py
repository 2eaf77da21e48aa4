"""The C++ kernels read nothing outside their tensors, each of which lies against a forbidden page."""

import ctypes
import itertools
import math
import mmap
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from leni_kernels.common import extension
from leni_kernels.two_branch.reference import folding_dtype

pytestmark = [
    pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing)),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect through libc"),
]

SHAPES = ((1, 1, 1, 1), (1, 3, 1, 5), (2, 5, 4, 1), (2, 15, 3, 7), (1, 16, 5, 16), (1, 17, 4, 33),
          (1, 33, 2, 200), (2, 40, 5, 31))


def guarded(tensor, at_end):
    """A copy of a tensor's memory in pages of its own, flush with the forbidden page after or before them."""
    bytes_needed, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    middle = math.ceil(bytes_needed / page) * page
    memory = mmap.mmap(-1, middle + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for forbidden in (address, address + page + middle):
        if libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (middle - bytes_needed if at_end else 0)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def run_guarded():
    """Run every case between forbidden pages; the process dies at the first touch of one."""
    layouts = (torch.contiguous_format, torch.channels_last)
    for dtype, layout, kernel_size, shape in itertools.product(
            (torch.float32, torch.float64, torch.bfloat16, torch.float16), layouts, (3, 7), SHAPES):
        wide, channels = folding_dtype(dtype), shape[1]
        tensors = (torch.randn(shape).to(dtype).contiguous(memory_format=layout),
                   torch.randn(channels, kernel_size, kernel_size, dtype=wide),
                   torch.randn(channels, 2 * channels, dtype=wide), torch.randn(channels, dtype=wide))
        kernel = torch.ops.leni_kernels.leni_folded_cpp
        expected = kernel(*tensors)
        for at_end in (True, False):
            placed = [guarded(tensor, at_end) for tensor in tensors]
            assert torch.equal(kernel(*placed), expected)
        run_guarded_training(*tensors[:3])


def run_guarded_training(x, taps, weight):
    """The passes of training, LENI's and Reborn's, with a gradient in either layout."""
    ops, channels = torch.ops.leni_kernels, x.shape[1]
    z, deconv = torch.randn_like(x), torch.randn(channels, channels, 3, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        grad = torch.randn_like(x).contiguous(memory_format=layout)
        constant, slope = torch.randn(2, 2 * channels, dtype=taps.dtype)
        passes = [
            (ops.leni_statistics_cpp, (x, taps)), (ops.leni_weight_gradient_cpp, (grad, x, taps)),
            (ops.leni_input_gradient_cpp, (grad, x, taps, weight, constant, slope)),
            (ops.leni_covariance_cpp, (x, taps, slope[:channels])),
            (ops.leni_input_gradient_cpp,
             (grad, x, taps, weight, constant, slope, weight[:, :channels].contiguous(), slope[:channels])),
            (ops.reborn_tail_cpp, (x, z, weight, constant[:channels])), (ops.reborn_statistics_cpp, (z,)),
            (ops.reborn_weight_gradient_cpp, (grad, x, z, constant)),
            (ops.reborn_negative_gradient_cpp, (grad, z, weight, constant[:channels], slope[:channels])),
            (ops.reborn_input_gradient_cpp, (grad, x, z, weight)),
        ]
        if x.dtype in (torch.float32, torch.float16):
            deconv_gradient = partial(ops.reborn_deconv_gradient_cpp, needs_input=True, needs_deconv=True)
            passes += [(ops.reborn_deconvolve_cpp, (x, deconv)), (deconv_gradient, (grad, z, x, deconv, weight))]
        for kernel, tensors in passes:
            expected = as_tuple(kernel(*tensors))
            for at_end in (True, False):
                placed = [guarded(tensor, at_end) for tensor in tensors]
                assert all(map(torch.equal, as_tuple(kernel(*placed)), expected))


def as_tuple(result):
    """An operator's outputs, be they one or several."""
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("isa", ["generic", "avx2", "best"])
def test_nothing_outside_is_read(isa):
    best = extension.cpu_isa()
    if isa != "best" and (isa == best or best == "generic"):
        pytest.skip(f"the best instruction set here is {best}")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_bounds; test_bounds.run_guarded()"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "LENI_KERNELS_ISA": best if isa == "best" else isa, "OMP_NUM_THREADS": "2",
                   "PYTHONPATH": str(root)}
    process = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], env=environment,
                             capture_output=True, text=True, check=False)
    assert process.returncode == 0, f"exit {process.returncode} {process.stderr}"
