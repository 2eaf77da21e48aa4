"""Derivatives of every kind, of every block: transforms of torch.func, forward mode, and gradients of gradients.

Truth is that of differences in float64, or of what backward gives.
"""

import copy

import pytest
import torch
from torch import func
from torch.autograd import forward_ad
from training_steps import loss, second_gradients

import leni_kernels as lk
from leni_kernels.common import extension

BLOCKS = {
    "LENI1d": lambda: lk.LENI1d(3),
    "LENI2d": lambda: lk.LENI2d(3),
    "LENI3d": lambda: lk.LENI3d(3),
    "LENI2d, separable": lambda: lk.LENI2d(3, separable=True),
    "folded LENI2d": lambda: lk.fold(lk.LENI2d(3).eval()),
    "Reborn1d": lambda: lk.Reborn1d(3),
    "Reborn2d": lambda: lk.Reborn2d(3),
    "Reborn2d of groups": lambda: lk.Reborn2d(3, groups=3),
    "folded Reborn2d": lambda: lk.fold(lk.Reborn2d(3).eval()),
    "ConvReLU1d": lambda: lk.ConvReLU1d(3, 4, 3, padding=1),
    "ConvReLU2d": lambda: lk.ConvReLU2d(3, 4, 3, stride=2, padding=1),
    "ConvReLU3d": lambda: lk.ConvReLU3d(3, 2, 2),
    "AdaReLU": lambda: lk.AdaReLU(3),
    "FullyParametricReLU": lambda: lk.FullyParametricReLU(3),
    "CReLU": lambda: lk.CReLU(),
}
NORMED = [name for name in BLOCKS if name.startswith(("LENI", "Reborn"))]


def make(name):
    """A block in float64 and eval mode, with no trivial parameter, and an input of it."""
    torch.manual_seed(0)
    block = BLOCKS[name]().double().eval()
    with torch.no_grad():
        for tensor in block.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
        for buffer in block.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    sizes = {"1": (7,), "3": (3, 4, 3)}.get(name[-2], (5, 4))
    return block, torch.randn(2, 3, *sizes, dtype=torch.float64)


def without_running_statistics(block):
    """Training on a batch, where torch.func asks for norms that change no buffers."""
    return func.replace_all_batch_norm_modules_(block.train())


def difference(f, x, direction, step=1e-6):
    with torch.no_grad():
        return (f(x + step * direction) - f(x - step * direction)) / (2 * step)


# ---- forward mode ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_jvp(name, grad_mode):
    block, x = make(name)
    direction = torch.randn_like(x)
    wanted = difference(block, x, direction)
    with torch.set_grad_enabled(grad_mode):
        _, tangent = func.jvp(block, (x,), (direction,))
        with forward_ad.dual_level():
            of_dual = forward_ad.unpack_dual(block(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(of_dual, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NORMED)
def test_jvp_of_a_batch_in_training(name):
    block, x = make(name)
    block, direction = without_running_statistics(block), torch.randn_like(x)
    _, tangent = func.jvp(block, (x,), (direction,))
    torch.testing.assert_close(tangent, difference(block, x, direction), rtol=1e-5, atol=1e-6)


def test_tangents_of_parameters():
    for name in BLOCKS:
        block, x = make(name)
        parameters = {key: tensor.detach() for key, tensor in block.named_parameters()}
        for key, tensor in parameters.items():
            def f(value, block=block, key=key, x=x):
                return func.functional_call(block, {key: value}, (x,))

            direction = torch.randn_like(tensor)
            wanted = difference(f, tensor, direction)
            with forward_ad.dual_level():
                tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(tensor, direction))).tangent
            torch.testing.assert_close(tangent, wanted, rtol=1e-6, atol=1e-7, msg=f"{name}.{key}")


def test_a_dual_level_alone_keeps_the_kernels():
    block, x = make("AdaReLU")
    with forward_ad.dual_level():
        chosen, = lk.explain(block, x)
        seen, = lk.explain(block, forward_ad.make_dual(x, x))
    assert chosen.backend == ("cpp" if extension.why_missing is None else "reference")
    assert seen.backend == "reference"


# ---- transforms of torch.func ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_of_every_transform(name):
    block, x = make(name)

    def f(x):
        return loss(block, x)

    leaf = x.clone().requires_grad_()
    wanted, = torch.autograd.grad(f(leaf), leaf)
    torch.testing.assert_close(func.grad(f)(x), wanted)
    torch.testing.assert_close(func.vjp(f, x)[1](torch.tensor(1.0, dtype=torch.float64))[0], wanted)
    torch.testing.assert_close(func.jacrev(f)(x), wanted)
    torch.testing.assert_close(func.jacfwd(f)(x), wanted)
    per_sample = func.vmap(func.grad(lambda sample: f(sample[None])))(x)
    torch.testing.assert_close(per_sample, wanted)  # of a sum over samples that do not see each other


@pytest.mark.parametrize("name", BLOCKS)
def test_hessian(name):
    block, x = make(name)
    x, direction = x[:1], torch.randn_like(x[:1])
    hessian = func.hessian(lambda x: loss(block, x))(x).reshape(x.numel(), x.numel())
    wanted = difference(func.grad(lambda x: loss(block, x)), x, direction)
    torch.testing.assert_close((hessian @ direction.flatten()).view_as(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NORMED)
def test_per_sample_gradients_of_parameters(name):
    block, x = make(name)
    parameters = {key: tensor.detach() for key, tensor in block.named_parameters()}

    def of_sample(parameters, sample):
        return func.functional_call(block, parameters, (sample[None],)).square().sum()

    each = func.vmap(func.grad(of_sample), in_dims=(None, 0))(parameters, x)
    for place, sample in enumerate(x):
        wanted = torch.autograd.grad(block(sample[None]).square().sum(), list(block.parameters()))
        for key, gradient in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(each[key][place], gradient, msg=key)


@pytest.mark.parametrize("name", NORMED)
def test_a_gradient_of_a_batch_in_training(name):
    block, x = make(name)
    block, leaf = without_running_statistics(block), x.clone().requires_grad_()
    wanted, = torch.autograd.grad(loss(block, leaf), leaf)
    torch.testing.assert_close(func.grad(lambda x: loss(block, x))(x), wanted)


@pytest.mark.parametrize("name", BLOCKS)
def test_explain_says_why_a_transform_runs_on_the_reference(name):
    block, x = make(name)
    decision, = lk.explain(func.grad(lambda x: loss(block, x)), x)
    assert decision.backend == "reference"
    assert "torch.func" in decision.why_not["cpp"] or "kernels exist for one and two" in decision.why_not["cpp"]


# ---- ONNX --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", BLOCKS)
def test_an_export_to_onnx_sees_pytorch_s_operators_alone(name, monkeypatch):
    """What the exporters make of them needs onnxruntime: ``tests/integrations/test_onnx.py``."""
    block, x = make(name)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert "leni_kernels::" not in str(torch.jit.trace(block, (x,)).inlined_graph)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):  # a mode stands for torch.export
        decision, = lk.explain(block, x)
    assert decision.backend == "reference"


# ---- what kernels refuse -----------------------------------------------------------------------------------

needs_extension = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))


@needs_extension
def test_a_kernel_asked_for_by_name_refuses_a_transform():
    block, x = make("AdaReLU")
    with lk.use_backend("cpp"), pytest.raises(lk.BackendUnavailableError, match=r"inside a transform of torch\.func"):
        func.jvp(block, (x,), (x,))
    with lk.use_backend("cpp"), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(lk.BackendUnavailableError, match="forward-mode"):
            block(dual)


@needs_extension
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("name", [name for name in BLOCKS if "3d" not in name])
def test_operators_of_an_exported_program_refuse_tangents(name, with_gradients):
    block, x = make(name)
    with torch.set_grad_enabled(with_gradients):
        program = torch.export.export(block, (x,)).module()
    for grad_mode in (True, False):
        with torch.set_grad_enabled(grad_mode):
            with pytest.raises(NotImplementedError, match=r"use_backend\('reference'\)"):
                func.jvp(program, (x,), (x,))
            with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"use_backend\('reference'\)"):
                program(forward_ad.make_dual(x, x))


@needs_extension
@pytest.mark.parametrize("name", ["Reborn2d", "folded Reborn2d"])
def test_operators_of_inference_refuse_a_backward(name):
    block, x = make(name)
    with torch.no_grad():
        program = torch.export.export(block, (x,)).module()
    y = program(x.requires_grad_())
    with pytest.raises(NotImplementedError, match="is for inference and has no gradients"):
        y.sum().backward()


# ---- gradients of gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_second_gradients(name, training):
    block, x = make(name)
    block.train(training)
    twin = copy.deepcopy(block)
    with lk.use_backend("reference"):
        wanted = second_gradients(twin, x)
    for got, want in zip(second_gradients(block, x), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@needs_extension
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NORMED)
def test_second_gradients_without_affine_norms_and_in_half_precision(name, training):
    block, x = make(name)
    for key, norm in list(block.named_children()):
        if "bn" in key:
            setattr(block, key, type(norm)(norm.num_features, affine=False, dtype=x.dtype))
    block.train(training)
    with lk.use_backend("reference"):
        wanted = second_gradients(copy.deepcopy(block), x)
    exact = second_gradients(copy.deepcopy(block), x)
    for got, want in zip(exact, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    for got, want in zip(second_gradients(block.bfloat16(), x.bfloat16()), wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert got.isfinite().all()
        assert (got.double() - want).norm() <= 0.2 * want.norm() + 0.1
