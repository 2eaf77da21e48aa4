"""Training steps on a backend and in float64, and the layouts that they must be right in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks

import leni_kernels as lk
from leni_kernels.reborn import reference

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)

half_precision = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def laid_out(layout, *shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout)


def step(backend, block, x, grad, autocast=False):
    """y, the gradients and the buffers that one step of a copy of the block leaves on a backend.

    With ``autocast`` it is to grad's dtype.
    """
    block, x = copy.deepcopy(block), x.detach().requires_grad_()
    with lk.use_backend(backend), torch.autocast("cpu", grad.dtype if autocast else None, enabled=autocast):
        y = block(x)
    y.backward(grad)
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients, **dict(block.named_buffers())}


def truth(block, x, grad):
    return step("reference", copy.deepcopy(block).double(), x.double(), grad.double())


def loss(block, x):
    return block(x).sin().sum()


def second_gradients(block, x):
    """The gradients of a loss, and then those of a penalty on them: each of x and of every parameter that trains."""
    x = x.detach().clone().requires_grad_()
    leaves = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    first = torch.autograd.grad(loss(block, x), leaves, create_graph=True)
    weights = (torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype, device=leaf.device).view_as(leaf)
               for leaf in leaves)
    penalty = sum((gradient * weight).sum() for gradient, weight in zip(first, weights, strict=True))
    return *first, *torch.autograd.grad(penalty, leaves, allow_unused=True, materialize_grads=True)


def dense_truth(grad, grad_z, x, deconv_weight, weight):
    """z and the gradients of x and D in float64: what Reborn's own deconvolution and its last pass are to give."""
    leaves = x.double().requires_grad_(), deconv_weight.double().requires_grad_()
    z = reference.reborn_deconvolve(*leaves, 1)
    positive = F.conv2d(leaves[0].clamp(min=0), weight[:, :x.shape[1], None, None].double())
    return z.detach(), *torch.autograd.grad((positive, z), leaves, (grad.double(), grad_z.double()))


def errors(got, exact):
    """Each result's largest error, and its largest true magnitude."""
    assert got.keys() == exact.keys()
    for name, wanted in exact.items():
        assert got[name].shape == wanted.shape, name
        yield name, float((got[name].double() - wanted).abs().max()), float(wanted.abs().max())


def assert_right(got, exact, tolerance, cancelled=()):
    """Each result is within a tolerance of its own size; those that the norms cancel, of the largest gradient's."""
    found = {name: (error, size) for name, error, size in errors(got, exact)}
    largest = max(size for name, (_, size) in found.items() if name == "x" or name.endswith(("weight", "bias")))
    for name, (error, size) in found.items():
        allowed = tolerance * (largest if name in cancelled else size)
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


def check_gradients(backend, block, x, **options):
    """``gradcheck`` of a block, of x off its kinks and every parameter that trains."""
    names, parameters = zip(*((name, parameter) for name, parameter in block.named_parameters()
                              if parameter.requires_grad), strict=True)

    def call(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), x)

    with lk.use_backend(backend):
        assert gradcheck(call, ((x + 0.05 * x.sign()).requires_grad_(), *parameters), **options)


def assert_no_worse_than_composed(backend, block, x, grad, autocast=False):
    """A step has at most twice the errors that the definition has in the same dtype."""
    exact = truth(block, x, grad)
    got, composed = (step(name, block, x, grad, autocast) for name in (backend, "reference"))
    allowed = {name: 2 * error for name, error, _ in errors(composed, exact)}
    for name, error, _ in errors(got, exact):
        assert got[name].dtype == composed[name].dtype
        assert error <= allowed[name], f"{name}: {error:.3g} > {allowed[name]:.3g}"


def assert_only_needed(backend, block, x, grad, part, tolerance):
    """Gradients reach a part alone, "x", one parameter or all "parameters", and are right."""
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(part in (name, "parameters"))
    x.requires_grad_(part == "x")
    with lk.use_backend(backend):
        block(x).backward(grad)
    got = {"x": x.grad, **{name: parameter.grad for name, parameter in block.named_parameters()}}
    exact = truth(block.requires_grad_(), x, grad)
    for name, gradient in got.items():
        assert (gradient is not None) == (part == name or (part == "parameters" and name != "x")), name
        if gradient is not None:
            assert (gradient - exact[name]).abs().max() <= tolerance * max(1, exact[name].abs().max()), name


def kept_tensors(backend, block, x):
    """What a step keeps for its backward."""
    tensors = []
    with lk.use_backend(backend), saved_tensors_hooks(lambda tensor: tensors.append(tensor) or tensor,
                                                      lambda tensor: tensor):
        block(x).sum().backward()
    return tensors


SLICES = {
    "images": lambda x: x[1:],
    "channels": lambda x: x[:, 2:],
    "rows and columns": lambda x: x[:, :, 1:-1, 2:],
    "every other row": lambda x: x[:, :, ::2],
    "one image, expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "transposed": lambda x: x.transpose(2, 3),
    "every other column": lambda x: x[..., ::2],
}


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


GRADIENTS = {
    "contiguous": lambda n, c, h, w: normal(n, c, h, w),
    "channels-last": lambda n, c, h, w: normal(n, c, h, w).to(memory_format=torch.channels_last),
    "a slice of channels": lambda n, c, h, w: normal(n, 2 * c + 1, h, w)[:, 1:-c],
    "every other row and column": lambda n, c, h, w: normal(n, c, 2 * h, 2 * w)[:, :, ::2, 1::2],
    "transposed": lambda n, c, h, w: normal(n, c, w, h).transpose(2, 3),
    "one number, expanded": lambda n, c, h, w: normal().expand(n, c, h, w),
    "one number a channel, expanded": lambda n, c, h, w: normal(c, 1, 1).expand(n, c, h, w),
    "one number a site, expanded": lambda n, c, h, w: normal(n, 1, h, w).expand(n, c, h, w),
    "one row, expanded": lambda n, c, h, w: normal(n, c, 1, w).expand(n, c, h, w),
}
