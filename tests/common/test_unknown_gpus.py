"""GPUs that this package was not tried on, without one: properties are made up, and Triton's driver is a stand-in.

With the stand-in, Triton compiles for sm_90 as it would for a GPU; only loading and launching are left out.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from gpu import rooms
from torch._subclasses import FakeTensorMode

import leni_kernels as lk
from leni_kernels import BackendUnavailableError
from leni_kernels.common.backends import KernelFailure
from leni_kernels.common.gpu import support
from leni_kernels.common.gpu.architectures import why_unsupported
from leni_kernels.common.gpu.support import jit, tl
from leni_kernels.conv_relu.gpu import backward as conv_relu_backward
from leni_kernels.conv_relu.gpu import forward as conv_relu_forward
from leni_kernels.leni.gpu import backward as leni_backward
from leni_kernels.leni.gpu import forward as leni
from leni_kernels.leni.gpu import forward as leni_forward
from leni_kernels.leni.gpu import input_gradient as leni_input_gradient
from leni_kernels.leni.gpu import statistics as leni_statistics
from leni_kernels.leni.gpu import weight_gradient as leni_weight_gradient
from leni_kernels.pointwise.gpu import backward as pointwise_backward
from leni_kernels.pointwise.gpu import forward as pointwise_forward
from leni_kernels.reborn.gpu import backward as reborn_backward
from leni_kernels.reborn.gpu import forward as reborn_forward
from leni_kernels.reborn.gpu import input_gradient as reborn_input_gradient
from leni_kernels.reborn.gpu import statistics as reborn_statistics
from leni_kernels.reborn.gpu import weight_gradient as reborn_weight_gradient

if support.why_missing is not None:
    pytest.skip(support.why_missing, allow_module_level=True)

GPU = torch.cuda.is_available()
made_up = pytest.mark.skipif(GPU or support.interpreting, reason="needs the compiler, and no GPU")


# ---- what is not supported ---------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """Make up the GPUs of a machine, by their architectures."""

    def make_up(*architectures):
        monkeypatch.setattr(support, "_architecture_of", lambda device: architectures[device.index or 0])

    return make_up


def explained(make, *shape, device="cuda", dtype=torch.float32):
    with FakeTensorMode():
        decision, = lk.explain(make(device=device, dtype=dtype), torch.empty(shape, device=device, dtype=dtype))
    return decision


MECHANISMS = {
    "leni": lambda **options: lk.LENI2d(8, **options),
    "reborn": lambda **options: lk.Reborn2d(8, **options),
    "conv_relu2d": lambda **options: lk.ConvReLU2d(8, 8, 3, **options),
    "ada_relu": lambda **options: lk.AdaReLU(8, **options),
    "crelu": lambda **_: lk.CReLU(),
}
mechanisms = pytest.mark.parametrize("name", MECHANISMS)


OLD = "the GPU is sm_75, and Triton has matrix products for NVIDIA GPUs of sm_80 or newer"


@made_up
@mechanisms
def test_explain_tells_what_a_gpu_does_not_do(name, gpus):
    gpus("sm_75")
    decision = explained(MECHANISMS[name], 2, 8, 6, 6)
    assert decision.backend == "reference"
    assert decision.why_not["triton"] == OLD
    for architecture in ("sm_80", "sm_100", "gfx942", "gfx1100", ""):
        gpus(architecture)
        assert explained(MECHANISMS[name], 2, 8, 6, 6, dtype=torch.bfloat16).backend == "triton", architecture


@made_up
@mechanisms
def test_by_name_it_raises_what_explain_tells(name, gpus):
    gpus("sm_75")
    with lk.use_backend("triton"), pytest.raises(BackendUnavailableError, match=f"cannot run {name}: {OLD}"):
        explained(MECHANISMS[name], 2, 8, 6, 6)


@made_up
def test_the_gpu_that_x_is_on_decides(gpus):
    gpus("sm_75", "sm_90")
    for index, backend in enumerate(("reference", "triton")):
        assert explained(MECHANISMS["leni"], 2, 8, 6, 6, device=f"cuda:{index}").backend == backend


def test_gpus_that_are_too_old_and_others():
    for architecture in ("sm_37", "sm_52", "sm_61", "sm_70", "sm_75"):
        assert f"the GPU is {architecture}" in why_unsupported(architecture)
    for architecture in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx1100", ""):
        assert why_unsupported(architecture) is None


# ---- two GPUs ----------------------------------------------------------------------------------------------


class Launches:
    """Stands where kernels are launched, and keeps which GPU was the current one."""

    def __init__(self):
        self.current, self.seen, self.tiled_for = 0, [], []

    @contextmanager
    def device(self, of):
        before, self.current = self.current, of.index
        yield
        self.current = before

    def architecture_of(self, device):
        self.tiled_for.append(device.index)
        return "sm_90"

    def __getitem__(self, grid):
        return lambda *_, **__: self.seen.append(self.current)


def calls_of_everything():
    """Every launch, on the second GPU; with how many kernels it is."""

    def tensor(*shape):
        return torch.empty(shape, device="cuda:1")

    x, vector, taps, weight = tensor(2, 8, 6, 6), tensor(8), tensor(8, 3, 3), tensor(8, 16)
    features, dense = tensor(16), tensor(8, 8, 3, 3)
    options = [1, 1], [1, 1, 1, 1], [1, 1], 1
    yield 1, leni.leni_folded, (x, taps, weight, vector)
    yield 2, leni_statistics.leni_statistics, (x, taps)
    yield 2, leni_weight_gradient.leni_weight_gradient, (x, x, taps)
    yield 3, leni_input_gradient.leni_input_gradient, (x, x, taps, weight, features, features)
    yield 2, reborn_statistics.reborn_statistics, (x,)
    yield 1, reborn_forward.reborn_tail, (x, x, weight, vector)
    yield 2, reborn_weight_gradient.reborn_weight_gradient, (x, x, x, features)
    yield 1, reborn_input_gradient.reborn_negative_gradient, (x, x, weight, vector, vector)
    yield 1, reborn_input_gradient.reborn_input_gradient, (x, x, x, weight)
    yield 2, conv_relu_forward.conv_relu, (x, dense, taps, vector, *options)
    yield 3, conv_relu_forward.conv_relu, (tensor(2, 16, 6, 6), tensor(8, 16, 3, 3), tensor(16, 3, 3), vector, *options)
    yield 5, conv_relu_backward.conv_relu_backward, (x, x, dense, taps, *options, True, True, True, True)
    yield 2, conv_relu_forward.conv_relu_taps, (x, dense.flatten(2), taps.flatten(1), vector, [0] * 18, [0] * 9)
    deconv, compress, double = tensor(8, 1, 3, 3), tensor(8, 16, 1, 1), torch.float64
    statistics, of_z = (torch.empty(size, device="cuda:1", dtype=double) for size in (33, 17))
    norms, eps = (vector, vector, features, features), (1e-3, 1e-2)
    yield 3, leni_forward.leni_training, (x, deconv, *norms, compress, vector, None, *eps)
    yield 5, leni_backward.leni_training_backward, (x, x, deconv, *norms, compress, statistics, None, *eps, True)
    yield 2, leni_forward.leni_eval, (x, deconv, *[vector] * 4, *[features] * 4, compress, vector, *eps)
    yield 1, leni_forward.leni_running_statistics, (statistics, vector, vector, vector, vector, None, 0.1, features,
                                                    features, None, 0.1, 1e-3)
    block = (x, dense, vector, vector, compress)
    yield 3, reborn_forward.reborn_training, (*block, vector, None, None, None, 1e-3, 1)
    yield 4, reborn_backward.reborn_training_backward, (x, *block, x, of_z, None, 1e-3, 1, *[True] * 4)
    yield 1, reborn_forward.reborn_running_statistics, (of_z, vector, vector, None, 0.1)
    yield 1, pointwise_forward.ada_relu, (x, vector)
    yield 1, pointwise_backward.ada_relu_backward, (x, x, vector, True, True)
    yield 1, pointwise_forward.fully_parametric_relu, (x, vector, vector)
    yield 1, pointwise_backward.fully_parametric_relu_backward, (x, x, vector, vector, True, True)
    yield 1, pointwise_forward.crelu, (x,)
    yield 1, pointwise_backward.crelu_backward, (tensor(2, 16, 6, 6), x)


@made_up
def test_launches_are_on_the_gpu_of_the_tensor(monkeypatch):
    launches = Launches()
    monkeypatch.setattr(support, "_on_gpu", lambda x: x.device.type == "cuda")
    monkeypatch.setattr(support, "_architecture_of", launches.architecture_of)
    monkeypatch.setattr(support, "_multiprocessors_of", lambda gpu: 132)
    monkeypatch.setattr(torch.cuda, "device", launches.device)
    for room in (room for mechanism in rooms.mechanisms() for room in rooms.of(mechanism)):
        if hasattr(room, "launchable"):
            monkeypatch.setattr(room, "launchable", lambda kernel: launches)
    with FakeTensorMode():
        for kernels, launch, arguments in calls_of_everything():
            launches.seen.clear()
            launch(*arguments)
            assert launches.seen == [1] * kernels, launch.__name__
            assert launches.current == 0
    assert set(launches.tiled_for) == {1}


# ---- failures of Triton itself -----------------------------------------------------------------------------


@jit
def _insist(RIGHT: tl.constexpr):
    tl.static_assert(RIGHT, "this GPU cannot double")


@jit
def _doubling(x, SIZE: tl.constexpr, RIGHT: tl.constexpr):
    _insist(RIGHT)
    offsets = tl.arange(0, SIZE)
    tl.store(x + offsets, tl.load(x + offsets) * 2)


class Driver:
    """A driver of Triton's for an sm_90 that is not there; ``loading`` and ``launching`` are called at those times."""

    def __init__(self, shared_memory=232_448, making_launcher=lambda: None, loading=lambda: None,
                 launching=lambda: None):
        self.utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": shared_memory},
                                     load_binary=self.load_binary, unload_module=lambda module: None)
        self.making_launcher, self.loading, self.launching = making_launcher, loading, launching
        self.launched = 0

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def load_binary(self, name, binary, shared, device):
        self.loading()
        return None, 1, 32, 0, 1024  # no module: nothing to unload

    def launcher_cls(self, source, metadata):
        self.making_launcher()
        return self.launch

    def launch(self, *arguments):
        self.launching()
        self.launched += 1


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """Launch _doubling through a driver, with Triton's cache in a folder of its own."""
    from torch._library.triton import set_wrap_triton_enabled
    from triton.compiler import compiler
    from triton.runtime.driver import driver as drivers

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Imaginary")
    monkeypatch.setattr(support, "_architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(drivers, "_active", None)

    def launch(driver, right=True):
        compiler.max_shared_mem.cache_clear()
        drivers.set_active(driver)
        _doubling.device_caches.clear()
        with set_wrap_triton_enabled(False):  # as in an operator that is called and not traced
            support.launchable(_doubling)[(1,)](torch.zeros(1024), SIZE=1024, RIGHT=right)

    yield launch
    compiler.max_shared_mem.cache_clear()
    _doubling.device_caches.clear()


def raising(error):
    def raise_it():
        raise error

    return raise_it


ON_IT = r"kernel _doubling did not compile on NVIDIA Imaginary \(sm_90\): "


@made_up
def test_the_stand_in_compiles_and_launches(launch):
    driver = Driver()
    launch(driver)
    assert driver.launched == 1


@made_up
def test_a_kernel_that_the_compiler_refuses(launch):
    from triton.compiler import CompilationError

    reason = "CompileTimeAssertionFailure: this GPU cannot double"
    with pytest.raises(KernelFailure, match=ON_IT + reason) as caught:
        launch(Driver(), right=False)
    assert isinstance(caught.value.__cause__, CompilationError)


@made_up
def test_too_little_shared_memory(launch):
    """As on a GPU with less than a tiling takes: Triton says so when it loads the kernel."""
    with pytest.raises(KernelFailure, match=ON_IT + "OutOfResources: out of resource: shared memory"):
        launch(Driver(shared_memory=-1))


@made_up
def test_a_machine_without_a_c_compiler(launch, monkeypatch, tmp_path):
    """Triton builds its driver, or a launcher, in C before the first kernel runs."""
    from triton.runtime import build

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    getattr(getattr(build, "_find_compiler", None), "cache_clear", lambda: None)()  # which Triton 3.6 does not have
    builds = partial(build._build, "launcher", str(tmp_path / "main.c"), str(tmp_path), [], [], [], [])
    with pytest.raises(KernelFailure, match=ON_IT + "RuntimeError: Failed to find C compiler"):
        launch(Driver(making_launcher=builds))


@made_up
def test_a_c_compiler_that_fails(launch):
    error = subprocess.CalledProcessError(1, ["gcc", "main.c"])
    with pytest.raises(KernelFailure, match=ON_IT + "CalledProcessError: .*gcc"):
        launch(Driver(making_launcher=raising(error)))


@made_up
def test_no_driver(launch):
    """Triton looks for a GPU in its own way, and may find none where PyTorch has one."""
    with pytest.raises(KernelFailure, match=ON_IT + "(AssertionError: libcuda.so|RuntimeError: 0 active)"):
        launch(None)


@made_up
@pytest.mark.parametrize("cache", ["a file", "below a file"])
def test_a_cache_folder_that_cannot_be_written(launch, monkeypatch, tmp_path, cache):
    """A file in its place stands for a folder without permission, which root would have all the same."""
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" if cache == "a file" else tmp_path / "file" / "cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", folder)
    with pytest.raises(KernelFailure, match=f"Triton cannot write its cache folder {folder}; TRITON_CACHE_DIR names"):
        launch(Driver())


@made_up
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_without_permission(launch, monkeypatch, tmp_path):
    folder = tmp_path / "forbidden"
    folder.mkdir(mode=0o500)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    with pytest.raises(KernelFailure, match=f"Triton cannot write its cache folder {folder}; TRITON_CACHE_DIR names"):
        launch(Driver())


OF_THE_KERNEL = ["no kernel image is available for execution on the device", "device kernel image is invalid",
                 "a PTX JIT compilation failed", "the provided PTX was compiled with an unsupported toolchain."]
OF_THE_GPU = ["an illegal memory access was encountered", "out of memory", "unspecified launch failure"]


@made_up
@pytest.mark.parametrize("message", OF_THE_KERNEL)
def test_a_kernel_that_the_driver_refuses(launch, message):
    with pytest.raises(KernelFailure, match=message):
        launch(Driver(loading=raising(RuntimeError(f"Triton Error [CUDA]: {message}"))))


@made_up
@pytest.mark.parametrize("when", ["loading", "launching"])
@pytest.mark.parametrize("error", [*(RuntimeError(f"Triton Error [CUDA]: {message}") for message in OF_THE_GPU),
                                   torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), KeyboardInterrupt()],
                         ids=repr)
def test_what_went_wrong_on_the_gpu_is_no_such_failure(launch, error, when):
    """Loading a kernel also reports what an earlier one did wrong."""
    with pytest.raises(type(error)) as caught:
        launch(Driver(**{when: raising(error)}))
    assert caught.value is error


@made_up
def test_errors_of_a_launch_are_its_own(launch):
    error = ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")
    with pytest.raises(ValueError, match="cpu tensor"):
        launch(Driver(launching=raising(error)))
