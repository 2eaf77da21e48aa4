"""Tensors whose elements no 32-bit number counts, through the C++ kernels: pytest -m huge, with 14 GiB.

Kernels are local, so what they give for a huge tensor is what they give for a part of it. Huge inputs cost nothing:
they are expanded, or pages that nobody writes to.
"""

import copy
import math
import mmap

import pytest
import torch

import leni_kernels as lk
from leni_kernels.common import extension

pytestmark = [pytest.mark.huge,
              pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))]

CHANNELS = 16
BLOCKS = {
    "ConvReLU": lambda: lk.ConvReLU2d(CHANNELS, CHANNELS, 3, padding=1),
    "depthwise ConvReLU": lambda: lk.ConvReLU2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "LENI": lambda: lk.LENI2d(CHANNELS),
    "Reborn": lambda: lk.Reborn2d(CHANNELS),
    "AdaReLU": lambda: lk.AdaReLU(CHANNELS),
    "FullyParametricReLU": lambda: lk.FullyParametricReLU(CHANNELS),
    "CReLU": lambda: lk.CReLU(),
}
FOLDED = {name: lambda make=BLOCKS[name]: lk.fold(make().eval()) for name in ("LENI", "Reborn")}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

HUGE = 2**31
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@pytest.fixture(autouse=True)
def _on_cpp():
    with lk.use_backend("cpp"):
        yield


@pytest.fixture
def block(request):
    return request.param().bfloat16()


blocks = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS, indirect=True)
folded = pytest.mark.parametrize("block", FOLDED.values(), ids=FOLDED, indirect=True)


def zeros(shape):
    """Of bfloat16, in pages that take no memory before they are written to."""
    pages = mmap.mmap(-1, 2 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.bfloat16).view(shape)


def step(block, x, grad):
    """y, and the gradients of x and of the parameters, for a gradient of y."""
    block, x = copy.deepcopy(block), x.detach().requires_grad_()
    y = block(x)
    return y.detach(), *torch.autograd.grad(y, (x, *block.parameters()), grad)


def assert_close(got, wanted, tolerance=2**-7):
    """Equal but for the order in which gradients of parameters are summed."""
    for one, other in zip(got, wanted, strict=True):
        size = float(other.abs().max())
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance / 2 * size)


# ---- strides past 2³¹ --------------------------------------------------------------------------------------

DIMENSIONS = {"images": 0, "channels": 1, "rows": 2, "columns": 3}
INNERMOST = {torch.contiguous_format: "columns", torch.channels_last: "channels"}
SPREAD = [(layout, dimension) for layout in LAYOUTS.values() for dimension in DIMENSIONS
          if dimension != INNERMOST[layout]]

spread = pytest.mark.parametrize(("layout", "dimension"), SPREAD, ids=lambda value: str(value).split(".")[-1])


def far_apart(tensor, dimension):
    """The same values in the same layout, but for one dimension, along which the last is past 2³¹ elements."""
    dimension = DIMENSIONS[dimension]
    strides, size = list(tensor.stride()), tensor.shape[dimension]
    strides[dimension] = HUGE // (size - 1) + tensor.numel()
    room = zeros((strides[dimension] * size,))
    return room.as_strided(tensor.shape, strides).copy_(tensor)


@spread
@blocks
def test_inputs_and_gradients_far_apart(block, layout, dimension):
    x = torch.randn(3, CHANNELS, 6, 37).bfloat16().contiguous(memory_format=layout)
    grad = torch.randn_like(block(x)).contiguous(memory_format=layout)
    assert_close(step(block, far_apart(x, dimension), far_apart(grad, dimension)), step(block, x, grad))


@spread
@folded
@torch.no_grad()
def test_folded_inputs_far_apart(block, layout, dimension):
    x = torch.randn(3, CHANNELS, 6, 37).bfloat16().contiguous(memory_format=layout)
    assert torch.equal(block(far_apart(x, dimension)), block(x))


# ---- more than 2³¹ elements --------------------------------------------------------------------------------

def image(layout, channels=CHANNELS):
    return torch.randn(1, channels, 64, 64).bfloat16().contiguous(memory_format=layout)


def batch_of(image):
    """How many of its size are more than 2³¹ elements."""
    return HUGE // image.numel() + 1


def last_of_zeros(image, count):
    """The image as the last one of a batch, the others zero."""
    _, channels, height, width = image.shape
    if image.is_contiguous():
        batch = zeros((count, channels, height, width))
    else:
        batch = zeros((count, height, width, channels)).movedim(-1, 1)
    batch[-1:] = image
    return batch


@layouts
@pytest.mark.parametrize("block", [BLOCKS[name] for name in BLOCKS if name not in FOLDED], indirect=True,
                         ids=[name for name in BLOCKS if name not in FOLDED])
def test_the_last_image_of_many(block, layout):
    x = image(layout)
    grad = image(layout, block(x).shape[1])
    count = batch_of(grad)
    y, dx, *rest = step(block, last_of_zeros(x, count), last_of_zeros(grad, count))
    assert_close((y[-1:], dx[-1:], *rest), step(block, x, grad))


@layouts
@folded
@torch.no_grad()
def test_the_last_image_of_many_folded(block, layout):
    x = image(layout)
    assert torch.equal(block(last_of_zeros(x, batch_of(x)))[-1:], block(x))


@layouts
def test_training_on_many_equal_images_is_training_on_one(layout):
    """So are their statistics; of 2²⁷ sites, whose equal terms a float32 sum would all round the same way."""
    block, x, grad = BLOCKS["LENI"]().bfloat16(), image(layout), image(layout)
    count = batch_of(x)
    y, dx, *rest = step(block, *(tensor.expand(count, -1, -1, -1) for tensor in (x, grad)))
    assert_close((y[-1:], dx[-1:], *(gradient / count for gradient in rest)), step(block, x, grad))
