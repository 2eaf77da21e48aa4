"""The blocks as modules: fused when they may be, never stale, and at home among PyTorch's own."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import leni_kernels as lk
from leni_kernels import BackendUnavailableError
from leni_kernels.common import extension, hooks
from leni_kernels.common.gpu import support
from leni_kernels.leni import reference

FUSED = "reference" if extension.why_missing else "cpp"
MAKERS = ("make_leni", "make_reborn")


@pytest.fixture(params=MAKERS)
def make_block(request):
    return request.getfixturevalue(request.param)


def composed(block, x):
    """The block written with its own layers and nothing else."""
    features = torch.cat([torch.relu(x), block.bn_negative(block.deconv(-torch.relu(-x)))], 1)
    return block.compress(block.bn_fusion(features) if isinstance(block, lk.LENI2d) else features)


def chosen(block, x):
    decision, = lk.explain(block, x)
    return decision.backend


def assert_near(actual, expected, tolerance=1e-5):
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# ---- which path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_block_is_fused(make_leni, training):
    block, x = make_leni(4).train(training), torch.randn(2, 4, 5, 6)
    assert chosen(block, x) == FUSED
    assert_near(block(x), composed(copy.deepcopy(block), x))


@pytest.mark.parametrize("training", [False, True])
def test_triton_serves_where_it_can_run(kernel_backend, monkeypatch, make_leni, training):
    monkeypatch.setattr(support, "why_not_here", lambda x: None)
    explained, = lk.explain(make_leni(4).train(training), torch.randn(2, 4, 5, 6))
    assert explained.why_not["triton"] == f"'{kernel_backend}' is preferred"


def replace_norms(block, **options):
    dtype = block.deconv.weight.dtype
    block.bn_negative = nn.BatchNorm2d(4, dtype=dtype, **options)
    if isinstance(block, lk.LENI2d):
        block.bn_fusion = nn.BatchNorm2d(8, eps=1e-2, dtype=dtype, **options)


def set_norms(block, **options):
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            vars(norm).update(options)


def without_compress_bias(block):
    block.compress = nn.Conv2d(8, 4, 1, bias=False, dtype=block.deconv.weight.dtype)


NORMS = {
    "as they come": lambda block: None,
    "momentum": lambda block: set_norms(block, momentum=0.7),
    "momentum 0": lambda block: set_norms(block, momentum=0.0),
    "average of all batches": lambda block: set_norms(block, momentum=None),
    "momenta that differ": lambda block: set_norms(block.bn_negative, momentum=None),
    "large eps": lambda block: set_norms(block, eps=0.5),
    "not affine": lambda block: replace_norms(block, affine=False),
    "no running statistics": lambda block: replace_norms(block, track_running_stats=False),
    "no running statistics, not affine": lambda block: replace_norms(block, affine=False,
                                                                     track_running_stats=False),
    "no bias behind them": without_compress_bias,
}


def one_step(call, block, x, grad):
    """What a training step leaves: y and every gradient."""
    x = x.clone().requires_grad_()
    block.zero_grad()
    y = call(x)
    y.backward(grad)
    return [y.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize("change", NORMS.values(), ids=NORMS)
def test_training_is_the_composed_layers(backend, make_leni, change):
    """y, every gradient and every running statistic, three steps long, and what eval mode makes of them."""
    block = make_leni(4, dtype=torch.float64)
    change(block)
    block.train()
    twin = copy.deepcopy(block)
    with lk.use_backend(backend):
        for _ in range(3):
            x, grad = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
            got, wanted = one_step(block, block, x, grad), one_step(lambda x: composed(twin, x), twin, x, grad)
            for ours, theirs in zip(got, wanted, strict=True):
                assert (ours - theirs).abs().max() <= 1e-12 * max(1, theirs.abs().max())
        for (name, ours), theirs in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13, msg=name)
        before = copy.deepcopy(block.state_dict())
        assert_near(block.eval()(x), composed(twin.eval(), x), 1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert block.bn_negative.num_batches_tracked in (None, 3)


@pytest.mark.parametrize("change", NORMS.values(), ids=NORMS)
def test_the_changed_norms_train_fused(make_leni, change):
    block = make_leni(4)
    change(block)
    assert chosen(block.train(), torch.randn(2, 4, 5, 6)) == FUSED


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"momentum": 0.7}])
def test_training_by_the_reference_is_the_composed_layers_to_the_bit(make_block, options):
    block = make_block(4, **options).train()
    twin = copy.deepcopy(block)
    for _ in range(3):
        x, grad = torch.randn(2, 3, 4, 5, 6)
        with lk.use_backend("reference"):
            got = one_step(block, block, x, grad)
        wanted = one_step(lambda x: composed(twin, x), twin, x, grad)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, wanted, strict=True))
    for (name, got), wanted in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(got, wanted), name
    assert block.bn_negative.num_batches_tracked == 3


@pytest.mark.parametrize("training", [False, True])
def test_one_value_per_channel(backend, make_leni, training):
    block, x = make_leni(4).train(training), torch.randn(1, 4, 1, 1)
    with lk.use_backend(backend):
        assert make_leni(4)(x).isfinite().all()
        if not training:
            replace_norms(block, track_running_stats=False)
            block.eval()
        before = copy.deepcopy(block.state_dict())
        with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training, got input "
                                             r"size .*\(?\[?1, 4, 1, 1"):
            block(x)
        assert block(torch.randn(2, 4, 1, 1)).isfinite().all()
        block.load_state_dict(before)


def test_an_empty_batch_in_training_is_the_composed_layers(make_leni):
    block, x = make_leni(4).train(), torch.randn(0, 4, 5, 6)
    twin = copy.deepcopy(block)
    decision, = lk.explain(block, x)
    assert decision.backend == "reference"
    if FUSED == "cpp":
        assert decision.why_not["cpp"] == "an empty batch has no statistics"
    assert block(x).shape == composed(twin, x).shape == x.shape
    for (name, got), wanted in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(got, wanted), name


@pytest.mark.parametrize("frozen", ["bn_negative", "bn_fusion"])
def test_one_frozen_norm_is_the_references(make_leni, kernel_backend, frozen):
    block, x = make_leni(4).train(), torch.randn(2, 4, 5, 6)
    getattr(block, frozen).eval()
    twin = copy.deepcopy(block)
    decision, = lk.explain(block, x)
    assert decision.backend == "reference"
    assert decision.why_not["cpp"] == "one batch norm uses batch statistics and the other running ones"
    assert torch.equal(block(x), composed(twin, x))
    for (name, got), wanted in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(got, wanted), name
    with lk.use_backend(kernel_backend), pytest.raises(BackendUnavailableError, match="one batch norm uses batch"):
        block(x)


def test_frozen_norms_inside_a_training_model_are_fused(backend, make_leni):
    block = make_leni(4, dtype=torch.float64).train()
    block.bn_negative.eval(), block.bn_fusion.eval()
    assert chosen(block, torch.randn(2, 4, 5, 6, dtype=torch.float64)) == FUSED
    before, twin = copy.deepcopy(block.state_dict()), copy.deepcopy(block)
    x, grad = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64)
    with lk.use_backend(backend):
        got = one_step(block, block, x, grad)
    for ours, theirs in zip(got, one_step(lambda x: composed(twin, x), twin, x, grad), strict=True):
        assert_near(ours, theirs, 1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_norms_without_running_statistics_use_the_batchs(make_block):
    block, x = make_block(4), torch.randn(2, 4, 5, 6)
    block.bn_negative = nn.BatchNorm2d(4, track_running_stats=False).eval()
    # LENI has another norm, with running statistics, and no kernel mixes the two.
    assert chosen(block, x) == ("reference" if isinstance(block, lk.LENI2d) else FUSED)
    assert_near(block(x), composed(block, x))


def test_norms_without_affine_parameters(make_leni, backend):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    block.bn_negative = nn.BatchNorm2d(4, affine=False).eval()
    with lk.use_backend(backend):
        assert_near(block(x), composed(block, x))


# ---- nothing stale -----------------------------------------------------------------------------------------


def test_nothing_is_stale(backend, make_leni):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    with lk.use_backend(backend), torch.no_grad():
        results = [block(x)]

        def changed():
            results.append(block(x))
            assert_near(results[-1], composed(block, x))
            assert not torch.equal(results[-1], results[-2])

        block.load_state_dict(make_leni(4).state_dict())
        changed()
        for tensor in (*block.parameters(), block.bn_negative.running_var, block.bn_fusion.running_mean):
            tensor.mul_(1.5).add_(0.1)
            changed()
        block.compress.weight.data = torch.randn_like(block.compress.weight)
        changed()
        block.deconv.weight = nn.Parameter(torch.randn_like(block.deconv.weight))
        changed()
        block.bn_fusion.eps = 0.5
        changed()


def test_nothing_is_stale_after_training(backend, make_leni):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    with lk.use_backend(backend):
        block(x)
        block.train()(x).square().mean().backward()
        optimizer.step()
        assert_near(block.eval()(x), composed(block, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_nothing_is_stale_after_a_change_of_dtype(backend, make_leni, dtype):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    block(x)
    block.to(dtype)
    with lk.use_backend(backend):
        y = block(x.to(dtype))
    expected = composed(copy.deepcopy(block).double(), x.to(dtype).double())
    assert y.dtype == dtype
    assert_near(y.double(), expected, {torch.float64: 1e-12, torch.bfloat16: 0.01, torch.float16: 0.001}[dtype])


# ---- children that are more than their tensors -------------------------------------------------------------

CHILDREN = ("deconv", "bn_negative", "bn_fusion", "compress")


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook",
                                      "register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("child", CHILDREN)
def test_hooks_on_children_run(make_leni, child, register, monkeypatch):
    monkeypatch.setattr(hooks, "_warned", {("LENI2d", child): True})
    block, x, seen = make_leni(4), torch.randn(2, 4, 5, 6, requires_grad=True), []
    handle = getattr(getattr(block, child), register)(lambda *_: seen.append(child))
    assert chosen(block, x) == "reference"
    seen.clear()
    block(x).sum().backward()
    assert seen == [child]
    handle.remove()
    assert chosen(block, x) == FUSED


def test_a_hook_may_change_the_result(make_leni, monkeypatch):
    monkeypatch.setattr(hooks, "_warned", {("LENI2d", "compress"): True})
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    block.compress.register_forward_hook(lambda module, inputs, output: output + 1)
    assert torch.equal(block(x), composed(block, x))


def test_hooks_on_children_forbid_a_kernel_by_name(kernel_backend, make_leni, monkeypatch):
    monkeypatch.setattr(hooks, "_warned", {("LENI2d", "deconv"): True})
    block = make_leni(4)
    block.deconv.register_forward_hook(lambda *_: None)
    refusal = pytest.raises(BackendUnavailableError, match="a hook on deconv must see its layer run")
    with lk.use_backend(kernel_backend), refusal:
        block(torch.randn(2, 4, 5, 6))


def test_hooks_on_the_block_run_and_it_stays_fused(make_leni):
    block, x, seen = make_leni(4), torch.randn(2, 4, 5, 6), []
    block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert chosen(block, x) == FUSED
    seen.clear()
    assert block(x) is seen[0]


class Shifted(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_replaced_children_are_called(make_block):
    block, x = make_block(4), torch.randn(2, 4, 5, 6)
    block.bn_negative = nn.Identity()
    assert chosen(block, x) == "reference"
    assert torch.equal(block(x), composed(block, x))
    block = make_block(4)
    block.compress = Shifted(8, 4, 1)
    assert chosen(block, x) == "reference"
    assert torch.equal(block(x), composed(block, x))


def test_a_patched_forward_is_called(make_leni):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    block.compress.forward = lambda x: nn.Conv2d.forward(block.compress, x) + 1
    assert torch.equal(block(x), composed(block, x))


def test_parametrizations_are_read(make_leni):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    nn.utils.parametrizations.weight_norm(block.deconv)
    nn.utils.parametrizations.orthogonal(block.compress)
    assert chosen(block, x) == FUSED
    assert_near(block(x), composed(block, x))
    block(x).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_pruning_is_seen(make_leni):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    prune.l1_unstructured(block.compress, "weight", amount=0.5)
    assert_near(block(x), composed(block, x))
    prune.remove(block.compress, "weight")
    assert chosen(block, x) == FUSED
    assert_near(block(x), composed(block, x))


def test_sync_batch_norm_conversion_keeps_the_block(backend, make_block):
    block, x = make_block(4), torch.randn(2, 4, 5, 6)
    expected = composed(block, x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(block)).eval()
    assert isinstance(converted[0].bn_negative, nn.SyncBatchNorm)
    with lk.use_backend(backend if isinstance(block, lk.LENI2d) else "reference"):
        assert_near(converted(x), expected)


# ---- a module like the others ------------------------------------------------------------------------------


def test_children_and_state_are_the_documented_ones():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["deconv.weight", *(f"bn_negative.{key}" for key in norm)]
    compress = ["compress.weight", "compress.bias"]
    assert list(lk.LENI2d(4).state_dict()) == [*expected, *(f"bn_fusion.{key}" for key in norm), *compress]
    assert list(lk.Reborn2d(4).state_dict()) == [*expected, *compress]
    leni, reborn = lk.LENI2d(6, 5), lk.Reborn2d(6, 5, groups=2)
    assert leni.deconv.weight.shape == (6, 1, 5, 5)
    assert reborn.deconv.weight.shape == (6, 3, 5, 5)
    assert leni.compress.weight.shape == reborn.compress.weight.shape == (6, 12, 1, 1)
    assert [type(child) for child in leni.children()] == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.BatchNorm2d,
                                                          nn.Conv2d]
    assert leni.deconv.bias is reborn.deconv.bias is None


def test_parameter_count_is_the_papers():
    added = sum(parameter.numel() for parameter in lk.LENI2d(64).parameters())
    assert added == 64 * 9 + 2 * 64 + 2 * 128 + 128 * 64 + 64


def test_options_reach_the_layers():
    for block in (lk.LENI2d(4, 7, eps=0.3, momentum=None, dtype=torch.float64, device="cpu"),
                  lk.Reborn2d(4, 7, eps=0.3, momentum=None, dtype=torch.float64, device="cpu")):
        norms = [child for child in block.children() if isinstance(child, nn.BatchNorm2d)]
        assert [(norm.eps, norm.momentum) for norm in norms] == [(0.3, None)] * len(norms)
        assert {parameter.dtype for parameter in block.parameters()} == {torch.float64}
        assert block(torch.randn(2, 4, 3, 3, dtype=torch.float64)).shape == (2, 4, 3, 3)


def test_meta_device_then_materialised():
    block = lk.LENI2d(4, device="meta").to_empty(device="cpu").eval()
    block.load_state_dict(lk.LENI2d(4).state_dict())
    x = torch.randn(2, 4, 5, 6)
    assert_near(block(x), composed(block, x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_are_equal_and_independent(make_block, copied):
    block, x = make_block(4), torch.randn(2, 4, 5, 6)
    twin = copied(block)
    assert torch.equal(twin(x), block(x))
    with torch.no_grad():
        twin.compress.bias.add_(1)
    assert not torch.equal(twin(x), block(x))


@pytest.mark.parametrize("plane", [(5, 6), (1, 7), (7, 1)])
@pytest.mark.parametrize("training", [False, True])
def test_memory_format_is_kept(make_block, training, plane):
    block = make_block(4).train(training)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, *plane).to(memory_format=memory_format)
        assert block(x).is_contiguous(memory_format=memory_format)


def test_representation():
    assert repr(lk.LENI2d(4)).startswith("LENI2d(\n  4\n  (deconv): ConvTranspose2d(4, 4, ")


# ---- autocast ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("narrow_x", [False, True])
def test_autocast(make_block, training, narrow_x, dtype):
    block = make_block(16).train(training)
    twin = copy.deepcopy(block)
    x = torch.randn(2, 16, 9, 11).to(dtype if narrow_x else torch.float32)
    with torch.autocast("cpu", dtype):
        y, expected = block(x), composed(twin, x)
    exact = composed(copy.deepcopy(twin).double(), x.double())
    assert y.dtype == expected.dtype == dtype
    assert (y - exact).abs().max() <= 2 * (expected - exact).abs().max()
    for name, tensor in block.state_dict().items():
        assert tensor.dtype == twin.state_dict()[name].dtype != dtype


def test_autocast_keeps_the_kernel_and_gives_float32_gradients(make_leni):
    block, x = make_leni(16), torch.randn(2, 16, 9, 11, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(block, x) == FUSED
        y = block(x)
    y.sum().backward()
    assert {tensor.grad.dtype for tensor in (x, *block.parameters())} == {torch.float32}
    exact = copy.deepcopy(block).double()
    exact.zero_grad()
    composed(exact, x.detach().double()).sum().backward()
    for (name, got), wanted in zip(block.named_parameters(), exact.parameters(), strict=True):
        assert (got.grad - wanted.grad).abs().max() <= 0.02 * wanted.grad.abs().max(), name


def test_autocast_leaves_float64_alone(backend, make_leni):
    block, x = make_leni(4, dtype=torch.float64), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16), lk.use_backend(backend):
        y = block(x)
    assert_near(y, composed(block, x), 1e-12)


# ---- the compiler ------------------------------------------------------------------------------------------


def test_compiled_without_graph_breaks(make_leni):
    torch._dynamo.reset()
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    twin = copy.deepcopy(block)
    assert_near(compiled(x), composed(block, x))
    with torch.no_grad():
        block.compress.weight.mul_(2)
        assert_near(compiled(x), composed(block, x))
    gradients = []
    for call, module in ((compiled, block), (block, block)):
        module.zero_grad()
        call(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in module.parameters()])
    for got, wanted in zip(*gradients, strict=True):
        assert_near(got, wanted)
    block.load_state_dict(twin.state_dict())
    block.train(), twin.train()
    assert_near(compiled(x), composed(twin, x))
    for (name, got), wanted in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(got, wanted), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_inductor(make_leni, memory_format):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make_leni(4)).eval().to(memory_format=memory_format)
    x = torch.randn(2, 3, 8, 9).to(memory_format=memory_format)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(x)
        assert_near(compiled, model(x))
    assert compiled.is_contiguous(memory_format=memory_format)


def test_exported(make_leni):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make_leni(4)).eval()
    x = torch.randn(2, 3, 8, 9)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    targets = {node.target for node in program.graph.nodes}
    if FUSED == "cpp":
        assert torch.ops.leni_kernels.leni_eval_cpp.default in targets
    for batch_size in (2, 5):
        x = torch.randn(batch_size, 3, 8, 9)
        assert_near(program.module()(x), model(x))


def test_vmap(make_leni):
    block, x = make_leni(4), torch.randn(3, 2, 4, 5, 6)
    with torch.no_grad():
        assert_near(torch.func.vmap(block)(x), torch.stack([block(sample) for sample in x]))


def test_layers_called_by_the_reference_are_the_children(make_leni):
    block, x = make_leni(4), torch.randn(2, 4, 5, 6)
    with lk.use_backend("reference"):
        assert torch.equal(block(x), reference.leni(x, *block.children()))
