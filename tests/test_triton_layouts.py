"""As ``test_layouts.py``, of the Triton kernels: on a GPU where there is one, else in Triton's interpreter."""

import copy

import on_triton
import pytest
import torch
from exports import BLOCKS, C, assert_same, blocks, examples, exported, images
from on_triton import DEVICE, runs_kernels

import leni_kernels as lk

test_in_the_interpreter = on_triton.in_the_interpreter(__file__)


@runs_kernels
@examples
@blocks
def test_exported(name, channels_last):
    block = BLOCKS[name]().to(DEVICE)
    with lk.use_backend("triton"):
        program = exported(copy.deepcopy(block), images(channels_last, 2, C, 3, 4).to(DEVICE))
        assert_same(program.module(), block, 3, C, 4, 5, device=DEVICE)


@runs_kernels
@pytest.mark.parametrize("operator", ["leni_statistics", "reborn_statistics"])
def test_what_would_have_to_be_copied_is_refused(operator):
    x, taps = torch.randn(1, C, 2, 6, device=DEVICE)[..., ::2], torch.randn(C, 3, 3, device=DEVICE)
    arguments = (x, taps) if operator == "leni_statistics" else (x,)
    message = rf"{operator}_triton: [xz] must have stride 1 along channels or columns, .* strides are \[36, 12, 6, 2\]"
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.leni_kernels, f"{operator}_triton")(*arguments)
