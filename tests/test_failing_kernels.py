"""A kernel that does not compile: the call falls back with one warning, by name it raises, and nothing else is caught.

On a GPU, else in Triton's interpreter; ``on_triton.py`` says how. The failures are made.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial

import on_triton
import pytest
import torch
from on_triton import DEVICE, runs_kernels

import leni_kernels as lk
from leni_kernels import BackendUnavailableError
from leni_kernels.common import backends, extension
from leni_kernels.conv_relu.gpu.forward import conv_relu_forward_kernel
from leni_kernels.conv_relu.gpu.input_gradient import conv_relu_input_gradient_kernel
from leni_kernels.conv_relu.gpu.weight_gradient import conv_relu_weight_gradient_kernel
from leni_kernels.leni.gpu.forward import leni_folded_contiguous_kernel
from leni_kernels.leni.gpu.input_gradient import leni_input_gradient_kernel, leni_negative_gradient_kernel
from leni_kernels.leni.gpu.statistics import leni_statistics_kernel
from leni_kernels.leni.gpu.weight_gradient import leni_weight_gradient_kernel
from leni_kernels.pointwise.gpu.backward import crelu_backward_kernel, pointwise_backward_kernel
from leni_kernels.pointwise.gpu.forward import crelu_forward_kernel, pointwise_forward_kernel
from leni_kernels.reborn.gpu.forward import reborn_tail_kernel
from leni_kernels.reborn.gpu.input_gradient import reborn_branch_gradient_kernel
from leni_kernels.reborn.gpu.weight_gradient import reborn_weight_gradient_kernel

test_in_the_interpreter = on_triton.in_the_interpreter(__file__)


@pytest.fixture(autouse=True)
def _nothing_failed_yet(monkeypatch):
    monkeypatch.setattr(backends, "_failures", {})
    monkeypatch.setattr(backends, "_warned", {})
    monkeypatch.setattr(extension, "why_missing", "the interpreter's tensors are on the CPU, which is not about C++")


@pytest.fixture
def fail(monkeypatch):
    """Let a kernel's launches raise an error; returns the list of what was launched in vain."""

    def let_fail(kernel, error=None):
        tried = []

        def run(*arguments, **options):
            tried.append(kernel.__name__)
            raise error or out_of_shared_memory()

        monkeypatch.setattr(kernel, "run", run)
        return tried

    return let_fail


def out_of_shared_memory():
    from triton.runtime.errors import OutOfResources

    return OutOfResources(200_000, 100_000, "shared memory")


def does_not_compile():
    from triton.compiler.errors import CompilationError

    return CompilationError("x = 1", None, "fp4 is not for this GPU\nand more lines")


WARNING = "leni_kernels: {} runs slower than it could, without backend 'triton': its kernel {} did not compile on"


def warned_once(operation, kernel):
    return pytest.warns(UserWarning, match=WARNING.format(operation, kernel))


def ours(caught):
    """The messages among warnings that are this package's: old interpreters warn of NumPy."""
    return [str(warning.message) for warning in caught if "leni_kernels: " in str(warning.message)]


def inputs(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, device=DEVICE).requires_grad_()


def folded_leni(channels=3):
    block = lk.fold(lk.LENI2d(channels, device=DEVICE).eval())
    return block.requires_grad_()


def random(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


CASES = {
    "leni": (lambda: lk.LENI2d(3, device=DEVICE), leni_statistics_kernel),
    "leni_after_statistics": (lambda: lk.LENI2d(3, device=DEVICE), leni_folded_contiguous_kernel),
    "leni_eval": (lambda: lk.LENI2d(3, device=DEVICE).eval(), leni_folded_contiguous_kernel),
    "leni_folded": (folded_leni, leni_folded_contiguous_kernel),
    "reborn": (lambda: lk.Reborn2d(3, device=DEVICE), reborn_tail_kernel),
    "conv_relu2d": (lambda: lk.ConvReLU2d(3, 4, 3, padding=1, device=DEVICE), conv_relu_forward_kernel),
    "ada_relu": (lambda: lk.AdaReLU(3, device=DEVICE), pointwise_forward_kernel),
    "crelu": (lk.CReLU, crelu_forward_kernel),
}
forwards = pytest.mark.parametrize("name", CASES)


def step(module, x, grad=None):
    """y, the gradients of x and all parameters, and the buffers afterwards."""
    y = module(x)
    wanted = [x, *module.parameters()]
    gradients = torch.autograd.grad(y, wanted, torch.ones_like(y) if grad is None else grad)
    return y.detach(), *gradients, *module.buffers()


# ---- forward -----------------------------------------------------------------------------------------------


@runs_kernels
@forwards
def test_a_forward_falls_back_with_one_warning(name, fail):
    make, kernel = CASES[name]
    module, x = random(make()), inputs(2, 3, 4, 5)
    with lk.use_backend("reference"):
        wanted = step(copy.deepcopy(module), x)
    tried = fail(kernel)
    before = copy.deepcopy(module)
    operation = name.removesuffix("_after_statistics").removesuffix("_eval")
    with warned_once(operation, kernel.__name__) as caught:
        got = step(module, x)
    message, = ours(caught)
    assert "out of resource: shared memory, Required: 200000" in message
    assert "Please report this" in message
    torch.testing.assert_close(got, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        before(x)
        before(x[1:, :, :3])  # another batch and another size are no other kind of call
    assert tried == [kernel.__name__]


@runs_kernels
@forwards
def test_explain_tells_what_failed(name, fail):
    make, kernel = CASES[name]
    module, x = make(), inputs(2, 3, 4, 5)
    assert lk.explain(module, x)[0].backend == "triton"
    fail(kernel, does_not_compile())
    with pytest.warns(UserWarning, match=kernel.__name__):
        module(x)
    decision, = lk.explain(module, x)
    assert decision.backend == "reference"
    reason = decision.why_not["triton"]
    assert reason.startswith(f"its kernel {kernel.__name__} did not compile on ")
    assert reason.endswith(": CompilationError: fp4 is not for this GPU")


@runs_kernels
@forwards
def test_a_forward_asked_for_by_name_raises(name, fail):
    make, kernel = CASES[name]
    module, x = make(), inputs(2, 3, 4, 5)
    error = out_of_shared_memory()
    tried = fail(kernel, error)
    refusal = pytest.raises(BackendUnavailableError, match=f"'triton' cannot run .*: its kernel {kernel.__name__}")
    with lk.use_backend("triton"):
        with refusal as caught:
            module(x)
        assert caught.value.__cause__.__cause__ is error
        with refusal:
            module(x)
        with refusal:
            lk.explain(module, x)
    assert tried == [kernel.__name__]


@runs_kernels
def test_other_kinds_of_calls_are_tried(fail):
    fail(pointwise_forward_kernel)
    slim, wide = lk.AdaReLU(3, device=DEVICE), lk.AdaReLU(5, device=DEVICE)
    with warned_once("ada_relu", "pointwise_forward_kernel") as caught:
        slim(inputs(2, 3, 4))
    assert lk.explain(slim, inputs(7, 3, 2))[0].backend == "reference"
    assert lk.explain(wide, inputs(2, 5, 4))[0].backend == "triton"
    assert lk.explain(slim.double(), inputs(2, 3, 4, dtype=torch.float64))[0].backend == "triton"
    assert lk.explain(lk.FullyParametricReLU(3, device=DEVICE), inputs(2, 3, 4))[0].backend == "triton"
    assert len(ours(caught)) == 1


@runs_kernels
def test_one_warning_for_each_operation_and_kind_of_failure(fail):
    def messages(channels, error, module=lk.AdaReLU):
        fail(pointwise_forward_kernel, error)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module(channels, device=DEVICE)(inputs(2, channels, 4))
        return len(ours(caught))

    assert messages(3, out_of_shared_memory()) == 1
    assert messages(4, out_of_shared_memory()) == 0
    assert messages(5, does_not_compile()) == 1
    assert messages(5, does_not_compile(), lk.FullyParametricReLU) == 1


# ---- backward ----------------------------------------------------------------------------------------------

PASSES = {
    "leni, weight": (CASES["leni"][0], leni_weight_gradient_kernel, "leni_training_backward"),
    "leni, z": (CASES["leni"][0], leni_negative_gradient_kernel, "leni_training_backward"),
    "leni, input": (CASES["leni"][0], leni_input_gradient_kernel, "leni_training_backward"),
    "leni_eval, weight": (CASES["leni_eval"][0], leni_weight_gradient_kernel, "leni_weight_gradient"),
    "leni_folded, input": (folded_leni, leni_input_gradient_kernel, "leni_input_gradient"),
    "reborn, weight": (CASES["reborn"][0], reborn_weight_gradient_kernel, "reborn_training_backward"),
    "reborn, both branches": (CASES["reborn"][0], reborn_branch_gradient_kernel,
                              "reborn_training_backward"),
    "conv_relu, input": (CASES["conv_relu2d"][0], conv_relu_input_gradient_kernel, "conv_relu_backward"),
    "conv_relu, weight and threshold": (CASES["conv_relu2d"][0], conv_relu_weight_gradient_kernel,
                                        "conv_relu_backward"),
    "conv_relu, groups": (partial(lk.ConvReLU2d, 6, 3, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=3,
                                  device=DEVICE), conv_relu_weight_gradient_kernel, "conv_relu_backward"),
    "ada_relu": (CASES["ada_relu"][0], pointwise_backward_kernel, "ada_relu_backward"),
    "fully_parametric_relu": (lambda: lk.FullyParametricReLU(3, device=DEVICE), pointwise_backward_kernel,
                              "fully_parametric_relu_backward"),
    "crelu": (lk.CReLU, crelu_backward_kernel, "crelu_backward"),
}
passes = pytest.mark.parametrize("name", PASSES)


def module_and_input(name, dtype=torch.float32, layout=torch.contiguous_format):
    channels = 6 if "groups" in name else 3
    x = inputs(2, channels, 4, 5, dtype=dtype).detach().to(memory_format=layout)
    return random(PASSES[name][0]()).to(dtype), x.requires_grad_()


@runs_kernels
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@passes
def test_a_backward_falls_back_to_the_right_gradients(name, layout, fail):
    """In float64, in which a forward by kernels and a backward by definition are one definition's to rounding."""
    _, kernel, operation = PASSES[name]
    module, x = module_and_input(name, torch.float64, layout)
    with lk.use_backend("reference"):
        grad = torch.randn_like(module(x))
        wanted = step(reset(module), x, grad)
    tried = fail(kernel)
    reset(module)
    with warned_once(operation, kernel.__name__) as caught:
        got = step(module, x, grad)
    messages = ours(caught)
    assert len(messages) == len(set(messages)) <= 2  # one for each pass that has the kernel
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    failures = len(tried)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.testing.assert_close(step(reset(module), x, grad), wanted, rtol=1e-10, atol=1e-10)
    assert len(tried) == failures > 0


def reset(module):
    for child in module.modules():
        if isinstance(child, torch.nn.BatchNorm2d):
            child.reset_running_stats()
    return module


@runs_kernels
@passes
def test_a_backward_asked_for_by_name_raises(name, fail):
    _, kernel, operation = PASSES[name]
    module, x = module_and_input(name)
    error = out_of_shared_memory()
    fail(kernel, error)
    with lk.use_backend("triton"):
        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match=rf"'triton' cannot run {operation}: its kernel"):
                step(module, x)


@runs_kernels
@pytest.mark.parametrize("name", ["conv_relu, input", "ada_relu", "leni_folded, input"])
def test_a_backward_that_fell_back_is_differentiated_again(name, fail):
    module, x = module_and_input(name, torch.float64)

    def penalty():
        gradient, = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)

    with lk.use_backend("reference"):
        wanted = penalty()
    fail(PASSES[name][1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = penalty()
    torch.testing.assert_close(got, wanted)


# ---- under the compiler ------------------------------------------------------------------------------------


@runs_kernels
@pytest.mark.parametrize("name", ["conv_relu, input", "leni_folded, input", "fully_parametric_relu"])
def test_what_failed_before_is_no_obstacle_to_the_compiler(name, fail):
    """It traces sizes that are symbols, and the operator of a forward whose kernel never failed."""
    module, x = module_and_input(name, torch.float64)
    fail(PASSES[name][1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = step(module, x)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled, x), wanted)


@runs_kernels
def test_a_compiled_function_takes_the_next_backend_after_a_failure(fail):
    module, x = lk.AdaReLU(3, device=DEVICE), inputs(2, 3, 4)
    tried = fail(pointwise_forward_kernel)
    with warned_once("ada_relu", "pointwise_forward_kernel"):
        wanted = module(x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), wanted)
    assert len(tried) == 1


# ---- what is not caught ------------------------------------------------------------------------------------


@runs_kernels
@pytest.mark.parametrize("error", [
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: out of memory"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    KeyboardInterrupt(), ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)"),
], ids=repr)
@pytest.mark.parametrize("kernel", [pointwise_forward_kernel, pointwise_backward_kernel], ids=["forward", "backward"])
def test_other_errors_are_not_caught(error, kernel, fail):
    fail(kernel, error)
    with pytest.raises(type(error)) as caught:
        step(lk.AdaReLU(3, device=DEVICE), inputs(2, 3, 4))
    assert caught.value is error
    assert not backends._failures
