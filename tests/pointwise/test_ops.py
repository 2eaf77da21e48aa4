"""The registered operators keep PyTorch's contract: schema, fake, autograd, tracing, strides."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import leni_kernels as lk

SHAPES = [(2, 5), (2, 5, 6, 7), (0, 5, 6, 7), (1, 5, 6, 7), (2, 1, 6, 7), (2, 5, 1, 7), (2, 5, 6, 1), (2, 5, 1, 1),
          (1, 1, 1, 1), (2, 1, 1, 7), (2, 3, 2, 4, 3)]
VIEWS = [
    lambda x: x, lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1), lambda x: x[..., ::2],
    lambda x: x.transpose(0, -1).contiguous().transpose(0, -1), lambda x: x[:1].expand(x.shape),
]
COUNTS = {"ada_relu": 1, "fully_parametric_relu": 2, "crelu": 0}


def steps(tensor):
    """The strides that mean something: PyTorch's own fakes are off where a dimension has size 1."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def calls(name, backend, x, requires_grad=False):
    """The forward and the backward operator of a backend, with arguments."""
    parameters = [torch.randn(x.shape[1], device=x.device).requires_grad_(requires_grad) for _ in range(COUNTS[name])]
    ops = torch.ops.leni_kernels
    forward, backward = (getattr(ops, f"{name}{part}_{backend}").default for part in ("", "_backward"))
    grad = torch.randn_like(torch.cat([x, x], 1) if name == "crelu" else x)
    yield forward, (x.detach().requires_grad_(requires_grad), *parameters)
    detached = [parameter.detach() for parameter in parameters]
    for needs in [(True, True), (True, False), (False, True)] if parameters else [()]:
        yield backward, (grad, x.detach(), *detached, *needs)


@pytest.mark.parametrize("name", COUNTS)
def test_opcheck(kernel_backend, name):
    for shape, view, requires_grad in (((2, 5, 6, 7), VIEWS[0], True), ((2, 5, 3, 4), VIEWS[1], True),
                                       ((3, 4), VIEWS[0], False), ((2, 3, 4), VIEWS[2], False)):
        for operator, arguments in calls(name, kernel_backend, view(torch.randn(shape)), requires_grad):
            torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("name", COUNTS)
def test_fake_strides_are_the_real_ones(kernel_backend, name):
    for shape in SHAPES:
        for view in VIEWS if 0 not in shape else VIEWS[:2]:  # PyTorch's own fakes of empty slices are off
            x = view(torch.randn(shape))
            for operator, arguments in calls(name, kernel_backend, x):
                real = operator(*arguments)
                with FakeTensorMode() as mode:
                    fake = operator(*(mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                                      for value in arguments))
                for got, wanted in zip(*((fake,), (real,)) if isinstance(real, torch.Tensor) else (fake, real),
                                       strict=True):
                    assert (got.shape, steps(got), got.dtype) == (wanted.shape, steps(wanted), wanted.dtype)


@pytest.mark.parametrize("shape", SHAPES[1:-1], ids=str)
def test_crelu_keeps_the_memory_format(kernel_backend, shape):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = lk.functional.crelu(torch.randn(shape).to(memory_format=memory_format))
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", COUNTS)
def test_results_are_new_memory_and_arguments_stay(kernel_backend, name):
    for operator, arguments in calls(name, kernel_backend, torch.randn(2, 5, 3, 4)):
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        before = [tensor.clone() for tensor in tensors]
        results = operator(*arguments)
        for result in (results,) if isinstance(results, torch.Tensor) else results:
            assert result.numel() == 0 or result.data_ptr() not in {tensor.data_ptr() for tensor in tensors}
        assert all(torch.equal(tensor, saved) for tensor, saved in zip(tensors, before, strict=True))


def test_what_a_kernel_relies_on_is_checked(kernel_backend):
    if kernel_backend != "cpp":
        pytest.skip("the launches are behind the functions' checks")
    ops, x, threshold = torch.ops.leni_kernels, torch.randn(2, 3, 4), torch.randn(3)
    for call, message in (
            (lambda: ops.ada_relu_cpp(x[0, 0], threshold), "must be \\[N, C, \\*spatial\\]"),
            (lambda: ops.ada_relu_cpp(x.to(torch.float8_e5m2), threshold), "float32, float64, bfloat16 or float16"),
            (lambda: ops.ada_relu_cpp(x[:, :0], threshold), "C at least 1"),
            (lambda: ops.ada_relu_cpp(x, threshold[:2]), "parameters must fit x"),
            (lambda: ops.ada_relu_cpp(x, threshold[None]), "parameters must fit x"),
            (lambda: ops.ada_relu_cpp(x, threshold[:1, None, None]), "parameters must fit x"),
            (lambda: ops.ada_relu_cpp(x, x[0].mT), "parameters must fit x"),
            (lambda: ops.fully_parametric_relu_cpp(x, threshold, threshold[:1]), "parameters must fit x"),
            (lambda: ops.fully_parametric_relu_cpp(x, x[0], threshold), "parameters must fit x"),
            (lambda: ops.fully_parametric_relu_backward_cpp(x, x, threshold, threshold[:2], True, False),
             "parameters must fit x"),
            (lambda: ops.ada_relu_cpp(x, threshold.long()), "floating-point"),
            (lambda: ops.ada_relu_backward_cpp(x[:1], x, threshold, True, True), "grad must have y's shape"),
            (lambda: ops.crelu_backward_cpp(x, x), "grad must have y's shape"),
            (lambda: ops.crelu_backward_cpp(x.double(), x), "of x's dtype")):
        with pytest.raises(RuntimeError, match=message):
            call()
