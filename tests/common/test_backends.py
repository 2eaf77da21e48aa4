"""Which backend runs: by choice, by name, by environment; and explain, which tells and changes nothing."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import leni_kernels as lk
from leni_kernels import BackendUnavailableError, functional
from leni_kernels.common import backends, extension
from leni_kernels.common.backends import Backend, Operation
from leni_kernels.common.gpu import support

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(support.why_missing is not None, reason="needs Triton")
AUTOMATIC = "reference" if extension.why_missing else "cpp"


def folded(channels=4, dtype=torch.float32):
    return (torch.randn(channels, 3, 3, dtype=dtype), torch.randn(channels, 2 * channels, dtype=dtype),
            torch.randn(channels, dtype=dtype))


def chosen(x=None):
    decision, = lk.explain(functional.leni_folded, torch.randn(1, 4, 5, 5) if x is None else x, *folded())
    return decision.backend


# ---- operations --------------------------------------------------------------------------------------------


def counting(*why_nots):
    """An operation on backends cpp, triton, reference, ...; each call returns the name that ran."""
    names = ("cpp", "triton", "reference")
    return Operation("counting", *(Backend(name, lambda call, why=why: why, lambda call, name=name: name)
                                   for name, why in zip(names, (*why_nots, None), strict=True)))


def test_the_first_that_can_is_chosen():
    assert counting(None, None)(()) == "cpp"
    assert counting("broken", None)(()) == "triton"
    assert counting("broken", "broken")(()) == "reference"


def test_one_that_takes_longer_than_the_reference_runs_by_name_only():
    operation = Operation(
        "counting", Backend("cpp", lambda call: None, lambda call: "cpp", why_slow=lambda call: call),
        Backend("triton", lambda call: None, lambda call: "triton"),
        Backend("reference", lambda call: None, lambda call: "reference"))
    assert operation(None) == "cpp"
    assert operation("it is early") == "reference"
    with lk.use_backend("cpp"):
        assert operation("it is early") == "cpp"


def test_by_name_it_serves_or_raises_with_its_reason():
    operation = counting("the sun shines", None)
    with lk.use_backend("triton"):
        assert operation(()) == "triton"
    with lk.use_backend("reference"):
        assert operation(()) == "reference"
    with lk.use_backend("cpp"), pytest.raises(BackendUnavailableError,
                                              match="'cpp' cannot run counting: the sun shines"):
        operation(())


def test_a_backend_that_an_operation_does_not_have_is_refused_by_name():
    operation = Operation("counting", Backend("reference", lambda call: None, lambda call: "reference"))
    assert operation(()) == "reference"
    with lk.use_backend("triton"), pytest.raises(
            BackendUnavailableError, match="'triton' cannot run counting: counting has no kernel of this kind"):
        operation(())


def test_backends_restore_what_was_before():
    operation = counting(None, None)
    with lk.use_backend("reference"):
        with lk.use_backend("triton"):
            assert operation(()) == "triton"
            with lk.use_backend(None):
                assert operation(()) == "cpp"
            assert operation(()) == "triton"
        assert operation(()) == "reference"
        with pytest.raises(KeyError), lk.use_backend("triton"):
            raise KeyError
        assert operation(()) == "reference"
    assert operation(()) == "cpp"


@pytest.mark.parametrize("name", ["CPP", "gpu", "cuda", ""])
def test_unknown_names(name):
    message = f"unknown backend '{name}'; the backends are cpp, triton, reference"
    with pytest.raises(ValueError, match=message), lk.use_backend(name):
        pass
    assert chosen() == AUTOMATIC


def test_use_backend_decorates():
    @lk.use_backend("reference")
    def inside():
        return chosen()

    assert inside() == inside() == "reference"
    assert chosen() == AUTOMATIC


# ---- real reasons ------------------------------------------------------------------------------------------


def reason_for(backend, *inputs):
    with lk.use_backend(backend), pytest.raises(BackendUnavailableError) as caught:
        functional.leni_folded(*inputs)
    return str(caught.value)


def test_reasons_of_real_kernels():
    if extension.why_missing is None:
        narrow = torch.randn(1, 4, 5, 5).to(torch.float8_e5m2)
        assert "take float32, bfloat16, float16 and float64, not torch.float8" in reason_for("cpp", narrow, *folded())
        large = (torch.randn(4, 9, 9), *folded()[1:])
        assert "deconvolution is 9x9" in reason_for("cpp", torch.randn(1, 4, 5, 5), *large)
        away = [tensor.to("meta") for tensor in (torch.randn(1, 4, 5, 5), *folded())]
        assert "x is on meta" in reason_for("cpp", *away)
    else:
        assert extension.why_missing in reason_for("cpp", torch.randn(1, 4, 5, 5), *folded())


def test_automatic_falls_back_where_by_name_raises():
    strided = torch.randn(1, 4, 5, 10)[..., ::2]
    assert chosen(strided) == "reference"
    assert functional.leni_folded(strided, *folded()).shape == strided.shape


# ---- explain -----------------------------------------------------------------------------------------------


def test_explain_gives_a_reason_for_every_other_backend():
    explanation = lk.explain(functional.leni_folded, torch.randn(1, 4, 5, 5), *folded())
    decision, = explanation
    assert {decision.backend, *decision.why_not} == set(backends.NAMES)
    assert all(decision.why_not.values())
    text = str(explanation)
    assert text.splitlines()[0] == f"leni_folded: runs on '{AUTOMATIC}'"
    for name, reason in decision.why_not.items():
        assert f"not '{name}': {reason}" in text


def _how_on_hopper(module, x):
    """What explain says of a call on Triton, of an sm_90 that need not be there."""
    with support.launches_noted("sm_90", lambda *launch: None), lk.use_backend("triton"), torch.no_grad():
        return lk.explain(module, x)[0].how


@needs_triton
@pytest.mark.parametrize("allowed", [True, False])
def test_explain_names_the_precision_of_float32_products(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    words = "products are in TF32" if allowed else "products are in float32, without TF32"
    x = torch.randn(2, 4, 5, 5)
    for module in (lk.LENI2d(4), lk.fold(lk.LENI2d(4).eval()), lk.Reborn2d(4), lk.ConvReLU2d(4, 6, 3)):
        assert _how_on_hopper(module, x)[0].startswith(words)
    assert _how_on_hopper(lk.ConvReLU2d(4, 6, 3).bfloat16(), x.bfloat16()) == ()
    assert words in str(backends.Explanation([backends.Decision("leni", "triton", {}, (words,))]))


@needs_triton
def test_explain_tells_of_copies_in_nchw():
    module, x = lk.ConvReLU2d(32, 6, 3).bfloat16(), torch.randn(2, 32, 5, 5).bfloat16()
    assert "copied to channels innermost" in " ".join(_how_on_hopper(module, x))
    assert _how_on_hopper(module, x.to(memory_format=torch.channels_last)) == ()
    assert _how_on_hopper(lk.ConvReLU2d(32, 6, 1).bfloat16(), x) == ()
    folded = lk.fold(lk.Reborn2d(32).eval()).bfloat16()
    x = torch.randn(2, 32, 9, 9).bfloat16()
    assert "copied to channels innermost" in " ".join(_how_on_hopper(folded, x))


def test_explain_says_who_asked():
    with lk.use_backend("reference"):
        decision, = lk.explain(functional.leni_folded, torch.randn(1, 4, 5, 5), *folded())
    if extension.why_missing is None:
        assert decision.why_not["cpp"] == "'reference' was asked for by name"
    refusal = pytest.raises(BackendUnavailableError, match="'triton' cannot run leni_folded")
    with lk.use_backend("triton"), refusal:
        lk.explain(functional.leni_folded, torch.randn(1, 4, 5, 5), *folded())


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), lk.LENI2d(4), nn.Dropout(), lk.Reborn2d(4),
                         lk.AdaReLU(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("training", [False, True])
def test_explain_of_a_network_lists_its_operations_in_order(training):
    explanation = lk.explain(network().train(training), torch.randn(2, 3, 8, 8))
    assert [decision.operation for decision in explanation] == ["leni", "reborn", "ada_relu"]
    assert explanation[0].backend == AUTOMATIC
    assert "uses batch statistics" not in explanation[0].why_not["reference"]


@pytest.mark.skipif(AUTOMATIC == "reference", reason="no kernel that could have run")
def test_explain_tells_why_a_block_is_not_fused():
    model = network().train()
    model[2].bn_negative.eval()
    decision, *_ = lk.explain(model, torch.randn(2, 3, 8, 8))
    assert decision.backend == "reference"
    assert decision.why_not["cpp"] == "one batch norm uses batch statistics and the other running ones"


def test_explain_of_other_things():
    assert str(lk.explain(nn.ReLU(), torch.randn(2, 3))) == "no leni_kernels operation is called"
    block = lk.LENI2d(4).eval()
    assert lk.explain(lambda x: block(block(x)), torch.randn(2, 4, 5, 5))[1].operation == "leni"
    assert lk.explain(lk.fold(block), torch.randn(2, 4, 5, 5))[0].operation == "leni_folded"
    norms = lk.Norm(torch.zeros(4), torch.ones(4)), lk.Norm(torch.zeros(8), torch.ones(8))
    decision, = lk.explain(functional.leni, torch.randn(2, 4, 5, 5), torch.randn(4, 1, 3, 3), *norms,
                           compress_weight=torch.randn(4, 8, 1, 1))
    assert decision.backend == AUTOMATIC


def test_explain_passes_errors_on():
    with pytest.raises(ValueError, match="x must be"):
        lk.explain(lk.LENI2d(4), torch.randn(4, 5, 5))
    assert backends._decisions is None


@pytest.mark.parametrize("momentum", [0.1, None])
def test_explain_changes_nothing(momentum):
    model = network().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    before, x = copy.deepcopy(model.state_dict()), torch.randn(2, 3, 8, 8, requires_grad=True)
    x_before, random_state = x.detach().clone(), torch.get_rng_state()
    lk.explain(model, x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, x_before)
    assert x.grad is None
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert type(tensor) is torch.Tensor


def test_explain_needs_no_memory():
    block = lk.LENI2d(4, device="meta").eval()
    x = torch.empty(10_000, 4, 10_000, 10_000, device="meta")
    decision, = lk.explain(block, x)
    assert decision.backend == "reference"
    assert lk.explain(lk.LENI2d(4).eval(), torch.empty(1).expand(10_000, 4, 10_000, 10_000))


# ---- the compiler sees the choice --------------------------------------------------------------------------


def test_a_compiled_function_follows_the_backend():
    torch._dynamo.reset()
    seen = []

    def record(graph, inputs):
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph

    compiled = torch.compile(functional.leni_folded, fullgraph=True, backend=record)
    x, parameters = torch.randn(1, 4, 5, 5), folded()
    expected = compiled(x, *parameters)
    with lk.use_backend("reference"):
        assert torch.allclose(compiled(x, *parameters), expected, atol=1e-4)
    with lk.use_backend("triton"), pytest.raises(Exception, match="'triton' cannot run leni_folded"):
        compiled(x, *parameters)
    compiled(x, *parameters)
    kernels = [any("leni_folded_cpp" in target for target in graph) for graph in seen]
    assert kernels == [AUTOMATIC == "cpp", False]


# ---- other processes ---------------------------------------------------------------------------------------


def python(code, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True,
                          text=True, check=False)


WHICH = ("import torch, leni_kernels as lk; block, x = lk.LENI2d(4).eval(), torch.randn(1, 4, 5, 5); "
         "print(lk.explain(block, x)); assert block(x).isfinite().all()")


def test_the_environment_variable_names_the_backend():
    result = python(WHICH, LENI_KERNELS_BACKEND="reference")
    assert result.returncode == 0, result.stderr
    assert "leni: runs on 'reference'" in result.stdout
    unknown = python("import leni_kernels", LENI_KERNELS_BACKEND="gpu")
    assert unknown.returncode != 0
    assert "ValueError: unknown backend 'gpu'" in unknown.stderr


def test_it_works_without_triton_and_without_the_extension():
    block = ("import os, sys, torch; sys.modules['triton'] = None; "
             "torch.ops.load_library = os.listdir; ")  # which fails on a file
    result = python(block + WHICH, LENI_KERNELS_BACKEND="")
    assert result.returncode == 0, result.stderr
    assert "leni: runs on 'reference'" in result.stdout
    assert "not 'triton': Triton is not installed" in result.stdout
    assert "not 'cpp': the C++ extension is not available in this installation" in result.stdout


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_the_kernels_run_on_the_threads_that_pytorch_is_told_to_use():
    """Whatever OMP_NUM_THREADS says: the tests of several threads stand on that."""
    code = ("import os, torch, leni_kernels as lk; torch.set_num_threads(3); x = torch.randn(8, 16, 32, 32); "
            "before = len(os.listdir('/proc/self/task')); lk.AdaReLU(16)(x); "
            "print(len(os.listdir('/proc/self/task')) - before)")
    result = python(code, OMP_NUM_THREADS="1", LENI_KERNELS_BACKEND="cpp")
    assert result.stdout == "2\n", result.stderr


def test_a_triton_that_is_too_old_is_a_reason():
    old = "import triton; triton.__version__ = '3.5.1'; del triton.constexpr_function; "
    result = python(old + WHICH, LENI_KERNELS_BACKEND="", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    assert "not 'triton': Triton 3.5.1 is too old; the kernels need 3.6 or newer" in result.stdout


@pytest.mark.parametrize(("version", "old"), [
    ("3.5.1", True), ("2.3.0", True), ("3.6.0", False), ("3.6.0+git9844da95", False), ("3.10.1", False), ("4.0", False),
    ("of my own", False)])
def test_versions_of_triton(version, old):
    assert bool(support._why_too_old(version)) == old


# ---- a GPU that comes to be seen after the import ------------------------------------------------------------
# Tensors on a GPU that is not there, as a compiler traces them, stand for those of a GPU.

LATE = """
import sys, torch, leni_kernels as lk
from torch._subclasses import FakeTensorMode
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
assert not hasattr(torch.ops.leni_kernels, "leni_folded_triton")
mode = FakeTensorMode()
with mode, torch.device("cuda"):
    blocks = lk.LENI2d(8), lk.Reborn2d(8), lk.ConvReLU2d(8, 8, 3, padding=1), lk.AdaReLU(8), lk.CReLU()
    network, x = torch.nn.Sequential(*blocks), torch.empty(2, 8, 6, 6)
"""
OPERATORS = ("leni_training", "reborn_training", "conv_relu", "ada_relu", "crelu")

AFTERWARDS = {
    "explain": "print(lk.explain(network, x))",
    "compile": """
def show(graph, inputs):
    print(*(str(node.target) for node in graph.graph.nodes))
    return graph
torch.compile(network, fullgraph=True, backend=show)(x)
""",
    "export": "print(torch.export.export(network, (x,), strict=True))",
    "export, not strict": "print(torch.export.export(network, (x,), strict=False))",
}


def without_gpu(code):
    result = python(code, LENI_KERNELS_BACKEND="", TRITON_INTERPRET="", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_triton
@pytest.mark.parametrize("how", AFTERWARDS)
def test_the_first_tensor_on_a_gpu_finds_its_operators(how):
    code = LATE + "with mode:" + AFTERWARDS[how].replace("\n", "\n    ").join(["\n    ", "\n"])
    out = without_gpu(code + "print('there:', hasattr(torch.ops.leni_kernels, 'leni_folded_triton'))")
    assert "there: True" in out
    if how == "explain":
        assert out.count("runs on 'triton'") == 5
    else:
        assert all(f"{operator}_triton" in out for operator in OPERATORS), out


THREADS = LATE + """
from concurrent.futures import ThreadPoolExecutor
def choose(_):
    with FakeTensorMode():
        return lk.explain(lk.LENI2d(8, device="cuda"), torch.empty(2, 8, 6, 6, device="cuda"))[0].backend
from leni_kernels.common.gpu import support
device = torch.device("cuda")
with ThreadPoolExecutor(8) as pool:
    reasons = list(pool.map(lambda _: support._why_not_on_gpu(device), range(8)))
assert reasons == [None] * 8 and not support._waiting
print(choose(0))
"""

FORK = LATE + """
import os, threading, time
from leni_kernels.common.gpu import support
begun, define = threading.Event(), support._waiting[0]
def slow():
    begun.set()
    time.sleep(0.3)
    define()
support._waiting[0] = slow
thread = threading.Thread(target=support.define_operators)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    support.define_operators()
    torch.ops.leni_kernels.leni_folded_triton, torch.ops.leni_kernels.crelu_triton
    os._exit(7)
thread.join()
support.define_operators()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_triton
def test_operators_are_registered_once_for_all_threads():
    assert without_gpu(THREADS) == "triton\n"


@needs_triton
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_forked_meanwhile_has_all_operators():
    assert without_gpu(FORK) == "7\n"


@needs_triton
def test_an_import_where_a_gpu_is_seen_registers_at_once():
    """So that an exported program, which names operators, can be loaded first."""
    without_gpu("import torch; torch.cuda.device_count = lambda: 1; import leni_kernels; "
                "torch.ops.leni_kernels.leni_training_triton, torch.ops.leni_kernels.crelu_backward_triton")
