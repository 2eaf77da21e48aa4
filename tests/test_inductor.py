"""What torch.compile takes of a kernel: the source of it and of all that it calls, as a file of its own."""

from __future__ import annotations

import importlib.util

import pytest

from leni_kernels.common.gpu import support

if support.why_missing is not None:
    pytest.skip(support.why_missing, allow_module_level=True)
if support.interpreting:
    pytest.skip("with TRITON_INTERPRET=1 there is nothing to compile", allow_module_level=True)

import codegen

CASES = {case.kernel: case for case in codegen.cases("sm_90") if case.operand == "bf16"}
"""One of each kernel."""


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_kernel_compiles_from_what_inductor_takes_of_it(case, tmp_path):
    from torch._inductor.codegen.triton import TritonKernel
    from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code as closure

    path = tmp_path / "taken.py"
    path.write_text(f"{TritonKernel.gen_common_triton_imports()}\n@triton.jit\n{closure(case.kernel)}")
    spec = importlib.util.spec_from_file_location("taken", path)
    taken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(taken)
    codegen.parse_case("sm_90", case._replace(kernel=getattr(taken, case.kernel.__name__)))
