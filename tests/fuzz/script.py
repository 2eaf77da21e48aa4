"""Writes a case as a script of its own, which runs the kernels, the layers and the truth, and prints their results."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import fields

import tensors
from cases import BUFFERS, Case, Layout, Values, call, shapes, strides
from judge import dtype_of

FEW = 12
"""So many values are written out."""

_STEP = '''
def step(backend, {names}):
    leaves = {{{leaves}}}
    {autocast}with lk.use_backend(backend):
{call}
    gradients = torch.autograd.grad(y, list(leaves.values()), grad.to(y.dtype)) if leaves else ()
    return {{"y": y.detach(), **dict(zip(leaves, gradients)){buffers}}}


def copies(convert):
    return {{name: convert(tensor.detach()).requires_grad_(tensor.requires_grad) for name, tensor in tensors.items()}}


truth = step("reference", **copies(lambda tensor: tensor.to(torch.float64, copy=True)))
layers = step("reference", **copies(torch.clone))
kernels = step("cpp", **tensors)
for name, wanted in truth.items():
    print(f"{{name}}, in float64:", wanted, "kernels:", kernels[name], sep="\\n")
    for whose, result in (("kernels", kernels), ("layers", layers)):
        print(f"{{name}}: the largest error of {{whose}} is {{(result[name].double() - wanted).abs().max():.3g}}")
'''


def script_of(case: Case, title: str) -> str:
    """The script; ``title`` says what is wrong."""
    shaped = shapes(case)
    made = [f'    "{name}": {_tensor(case, name, shape)},' for name, shape in shaped.items()]
    needed = [function for function in (tensors.values, tensors.strided)
              if any(f"{function.__name__}(" in line for line in made)]
    buffers = [name for name in shaped if name in BUFFERS] if case.problem.get("form") == "training" else []
    autocast = 'with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype != torch.float64), ' if case.autocast else ""
    step = _STEP.format(
        names=", ".join(shaped), leaves=", ".join(f'"{name}": {name}' for name in case.needs),
        autocast=autocast, call="\n".join(f"        {line}" for line in call(case).splitlines()),
        buffers="".join(f', "{name}": {name}' for name in buffers)).replace(", with lk", ", lk")
    return "\n".join([
        f"# {title}", "import torch", "", "import leni_kernels as lk", "",
        "torch.use_deterministic_algorithms(True, warn_only=True)  # what no kernel writes is NaN",
        "torch.ops.leni_kernels.fill_empty(True)",
        f"torch.set_num_threads({case.threads})", "", "",
        *(f"{inspect.getsource(function)}\n" for function in needed),
        "tensors = {", *made, "}", "", step.strip("\n"), ""])


def _tensor(case: Case, name: str, shape: tuple[int, ...]) -> str:
    how, layout = case.operands[name].values, case.operands[name].layout
    given = [f"{field.name}={getattr(how, field.name)!r}" for field in fields(Values)
             if getattr(how, field.name) != field.default]
    text = f"values({', '.join([str(shape), *given])})"
    if math.prod(shape) <= FEW:
        exact = tensors.values(shape, *(getattr(how, field.name) for field in fields(Values)))
        text = f"torch.tensor({exact.to(dtype_of(case, name)).tolist()}).reshape({shape})"
    text = re.sub(r"\b(nan|inf)\b", r"torch.\1", text) + f".to({dtype_of(case, name)})"
    wanted = strides(shape, layout)
    if layout.offset or wanted != strides(shape, Layout()):
        text = f"strided({text}, {wanted}" + (f", offset={layout.offset})" if layout.offset else ")")
    return text + (".requires_grad_()" if name in case.needs else "")
