"""Blocks of every mechanism that takes two layouts, and programs that are exported from an example in one of them."""

import pytest
import torch

import leni_kernels as lk

C = 3
BLOCKS = {
    "leni": lambda: lk.LENI2d(C),
    "leni in eval mode": lambda: lk.LENI2d(C).eval(),
    "leni folded": lambda: lk.fold(lk.LENI2d(C).eval()),
    "separable leni": lambda: lk.LENI2d(C, separable=True),
    "separable leni in eval mode": lambda: lk.LENI2d(C, separable=True).eval(),
    "reborn": lambda: lk.Reborn2d(C),
    "reborn in eval mode": lambda: lk.Reborn2d(C).eval(),
    "reborn folded": lambda: lk.fold(lk.Reborn2d(C).eval()),
    "conv_relu": lambda: lk.ConvReLU2d(C, 4, 3, padding=1),
}
blocks = pytest.mark.parametrize("name", BLOCKS)
examples = pytest.mark.parametrize("channels_last", [False, True], ids=["from nchw", "from channels-last"])


def images(channels_last, *shape, dtype=torch.float32):
    """A batch in a layout, in any number of dimensions."""
    x = torch.randn(shape).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


def exported(block, x, strict=False):
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in (0, *range(2, x.dim()))}
    program = torch.export.export(block, (x,), dynamic_shapes=(sizes,), strict=strict)
    assert any(str(node.target).startswith("leni_kernels.") for node in program.graph.nodes)
    return program


def assert_same(program, block, *shape, dtype=torch.float32, device="cpu"):
    """The program's output is the block's, in value and in memory format, for both layouts."""
    for channels_last in (False, True):
        x = images(channels_last, *shape, dtype=dtype).to(device)
        y, wanted = program(x), block(x)
        assert torch.equal(y, wanted)
        assert y.stride() == wanted.stride() == images(channels_last, *y.shape).stride()
