"""Every instruction set of the C++ kernels gives the right answer, not only the one this CPU would choose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_steps import dense_truth

from leni_kernels.common import extension
from leni_kernels.leni import reference
from leni_kernels.two_branch.reference import folding_dtype

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

ISAS = extension.INSTRUCTION_SETS
ROOT = Path(__file__).resolve().parents[2]
DECONVOLUTION_LIMITS = {torch.float32: 1e-5, torch.float16: 2**-11 + 1e-5}


def parity_errors() -> None:
    """Raise if the kernels of this process's instruction set are not within their tolerances."""
    torch.manual_seed(0)
    shapes = [(2, 20, 7, 19), (1, 33, 15, 16), (3, 5, 1, 3), (1, 64, 9, 225), (1, 130, 6, 5)]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for index, shape in enumerate(shapes):
            for kernel_size in (3, 5, 7):
                for channels_last in (False, True):
                    _check_case(dtype, shape, kernel_size, channels_last)
            for channels_last in (False, True):
                _check_training(dtype, shape, 3 + 2 * (index % 3), channels_last)
                if dtype in DECONVOLUTION_LIMITS:
                    _check_deconvolution(dtype, shape, channels_last)


def _check_case(dtype, shape, kernel_size, channels_last):
    channels = shape[1]
    wide = folding_dtype(dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    taps = torch.randn(channels, kernel_size, kernel_size, dtype=wide) / kernel_size
    weight, bias = torch.randn(channels, 2 * channels, dtype=wide) / channels**0.5, torch.randn(channels, dtype=wide)
    truth = reference.leni_folded(x.double(), taps.double(), weight.double(), bias.double())
    y = torch.ops.leni_kernels.leni_folded_cpp(x, taps, weight, bias)
    error = (y.double() - truth).abs().max() / truth.abs().max()
    if dtype == torch.bfloat16:
        composed = reference.leni_folded(x, taps, weight, bias)
        limit = 2 * (composed.double() - truth).abs().max() / truth.abs().max()
    else:
        limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-11 + 1e-5}[dtype]
    assert error <= limit, f"{dtype} {shape} k={kernel_size} channels_last={channels_last}: {error:.1e} > {limit:.1e}"


def _check_deconvolution(dtype, shape, channels_last):
    """Reborn's dense deconvolution and the last pass of its backward against autograd in float64."""
    channels = shape[1]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, grad, grad_z = (torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(3))
    deconv, weight = torch.randn(channels, channels, 3, 3), torch.randn(channels, 2 * channels)
    ops = torch.ops.leni_kernels
    got = (ops.reborn_deconvolve_cpp(x, deconv)[0],
           *ops.reborn_deconv_gradient_cpp(grad, grad_z, x, deconv, weight, True, True))
    for result, true in zip(got, dense_truth(grad, grad_z, x, deconv, weight), strict=True):
        error = (result.double() - true).abs().max() / true.abs().max()
        assert error <= DECONVOLUTION_LIMITS[result.dtype], \
            f"deconvolution {dtype} {shape} channels_last={channels_last}: {error:.1e}"


def _check_training(dtype, shape, kernel_size, channels_last):
    """The passes of training against autograd in float64; sums over pixels are float32 for x of half precision too."""
    channels = shape[1]
    wide = folding_dtype(dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(2))
    taps = torch.randn(channels, kernel_size, kernel_size, dtype=wide) / kernel_size
    weight, bias = torch.randn(channels, 2 * channels, dtype=wide) / channels**0.5, torch.zeros(channels, dtype=wide)
    inputs = [tensor.double().requires_grad_() for tensor in (x, taps, weight, bias)]
    exact = torch.autograd.grad(reference.leni_folded(*inputs), inputs, grad.double())
    ops = torch.ops.leni_kernels
    got = {
        "statistics": (ops.leni_statistics_cpp(x, taps),
                       reference.leni_statistics(x.double(), taps.double())),
        "input gradient": (ops.leni_input_gradient_cpp(grad, x, taps, weight, None, None), exact[:2]),
        "weight gradient": (ops.leni_weight_gradient_cpp(grad, x, taps), exact[2:]),
        "covariance": ([ops.leni_covariance_cpp(x, taps, bias)],
                       [reference.leni_covariance(*map(torch.Tensor.double, (x, taps, bias)))]),
    }
    added = (*torch.randn(2, 2 * channels, dtype=wide), weight[:, :channels].contiguous(), bias)
    got["input gradient of a matrix"] = (
        ops.leni_input_gradient_cpp(grad, x, taps, weight, *added),
        reference.leni_input_gradient(grad.double(), *(tensor.double() for tensor in (x, taps, weight, *added))))
    limit = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2**-11 + 2e-5}[dtype]
    for name, (results, wanted) in got.items():
        for result, true in zip(results, wanted, strict=True):
            error = (result.double() - true).abs().max() / true.abs().max()
            assert error <= limit, f"{name} {dtype} {shape} channels_last={channels_last}: {error:.1e} > {limit:.1e}"


@pytest.mark.parametrize("isa", ISAS)
def test_parity_on_every_instruction_set(isa):
    best = extension.cpu_isa()
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this process has only {best}")
    script = "import sys; sys.path[:0] = sys.argv[1:]; import test_isa; test_isa.parity_errors()"
    environment = {**os.environ, "LENI_KERNELS_ISA": isa, "OMP_NUM_THREADS": "2"}
    process = subprocess.run([sys.executable, "-c", script, *map(str, Path(__file__).parents[:2])], cwd=ROOT,
                             env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_an_instruction_set_that_does_not_exist_is_refused():
    process = subprocess.run([sys.executable, "-c", "from leni_kernels.common import extension; extension.cpu_isa()"],
                             cwd=ROOT, env={**os.environ, "LENI_KERNELS_ISA": "mmx"}, capture_output=True, text=True)
    assert process.returncode != 0
    assert "the names are generic, avx2, avx512, avx512_bf16, amx" in process.stderr
