"""Steps on pairs of half-precision numbers: what they give, in the interpreter, and what they compile to."""

import pytest
import torch
from on_triton import DEVICE, in_the_interpreter, runs_kernels

from leni_kernels.common.gpu.packed import (
    compiled_for,
    difference,
    maximum,
    minimum,
    negative_part,
    positive_part,
    widened,
)
from leni_kernels.common.gpu.support import interpreting, jit, tl

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@jit
def _every_step(x, y, narrow, wide, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    values = tl.load(x + lane)
    others = tl.load(y + lane)
    tl.store(narrow + lane, maximum(values, others))
    tl.store(narrow + SIZE + lane, minimum(values, others))
    tl.store(narrow + 2 * SIZE + lane, positive_part(values))
    tl.store(narrow + 3 * SIZE + lane, difference(values, others))
    tl.store(wide + lane, negative_part(values, wide.dtype.element_ty))
    tl.store(wide + SIZE + lane, widened(values, wide.dtype.element_ty))


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_steps(dtype):
    """On a GPU this holds what the instructions do, too."""
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 3e-5], device=DEVICE)
    x = torch.cat([torch.randn(192, device=DEVICE), special.repeat(8)]).to(dtype)
    y = torch.cat([torch.randn(192, device=DEVICE), special.repeat_interleave(8)]).to(dtype)
    narrow = x.new_empty(4, 256)
    wide = x.new_empty(2, 256, dtype=torch.promote_types(dtype, torch.float32))
    _every_step[(1,)](x, y, narrow, wide, SIZE=256)
    expected = torch.stack([torch.maximum(x, y), torch.minimum(x, y), x.clamp(min=0), x - y])
    torch.testing.assert_close(narrow[:3], expected[:3], rtol=0, atol=0, equal_nan=True)
    rounding = torch.finfo(dtype).eps  # the interpreter cuts bfloat16 off
    torch.testing.assert_close(narrow[3], expected[3], rtol=rounding, atol=0, equal_nan=True)
    torch.testing.assert_close(wide, torch.stack([x.clamp(max=0), x]).to(wide.dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(interpreting, reason="with TRITON_INTERPRET=1 there is nothing to compile")
@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "gfx942"])
def test_pairs_are_one_instruction(architecture, element, tmp_path):
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    nvidia = architecture.startswith("sm_")
    target = GPUTarget("cuda", int(architecture[3:]), 32) if nvidia else GPUTarget("hip", architecture, 64)
    wide = "fp64" if element == "fp64" else "fp32"
    signature = dict.fromkeys(("x", "y", "narrow"), f"*{element}") | {"wide": f"*{wide}", "SIZE": "constexpr"}
    source = ASTSource(_every_step, signature, {"SIZE": 1024}, {(i,): [["tt.divisibility", 16]] for i in range(4)})
    with knobs.cache.scope(), compiled_for(nvidia):
        knobs.cache.dir = str(tmp_path)
        text = triton.compile(source, target=target, options={"num_warps": 4}).asm["ptx" if nvidia else "amdgcn"]
    # Eight elements a thread; positive_part is a maximum, negative_part a minimum.
    pairs = 2 * 4 if nvidia and element in ("fp16", "bf16") else 0
    kind = "bf16x2" if element == "bf16" else "f16x2"
    assert text.count(f"max.NaN.{kind}") == pairs
    assert text.count(f"min.NaN.{kind}") == pairs
    assert text.count(f"fma.rn.{kind}") == pairs // 2
    if nvidia:
        assert text.count("0xffff0000") == (pairs if element == "bf16" else 0)


test_in_the_interpreter = in_the_interpreter(__file__)
