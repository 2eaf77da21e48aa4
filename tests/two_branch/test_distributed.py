"""Synchronised norms: two processes with parts of a batch compute what one process does with all of it."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import leni_kernels as lk
from leni_kernels.common import extension

pytestmark = [
    pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing)),
    pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()),
                       reason="needs torch.distributed with gloo"),
]

TIMEOUT = 120
CASES = {
    "even": ((3, 3), (5, 9), torch.contiguous_format),
    "uneven": ((5, 2), (5, 9), torch.contiguous_format),
    "uneven, channels-last": ((1, 6), (7, 4), torch.channels_last),
    "one value a channel on each": ((1, 1), (1, 1), torch.contiguous_format),
    "nothing on the second": ((4, 0), (3, 5), torch.contiguous_format),
    "separable, uneven": ((5, 2), (5, 9), torch.contiguous_format),
    "separable, channels-last, nothing on the second": ((4, 0), (7, 4), torch.channels_last),
    "Reborn, uneven": ((5, 2), (5, 9), torch.contiguous_format),
    "Reborn, channels-last, nothing on the second": ((4, 0), (7, 4), torch.channels_last),
    "Reborn, dense kernels": ((5, 2), (5, 9), torch.contiguous_format),
    "Reborn, dense kernels, channels-last, nothing on the second": ((4, 0), (7, 4), torch.channels_last),
}
STEPS = 2


def form_of(case):
    """The kernel size and dtype: those that Reborn's own deconvolution takes on a CPU, or any other."""
    return (3, torch.float32) if "dense kernels" in case else (5, torch.float64)


def block(case):
    torch.manual_seed(len(case))
    kernel_size, dtype = form_of(case)
    options = {"separable": True} if case.startswith("separable") else {}
    make = lk.Reborn2d if case.startswith("Reborn") else lk.LENI2d
    made = make(6, kernel_size, eps=1e-3, momentum=None, **options).to(dtype)
    for norm in made.children():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.5)
            nn.init.normal_(norm.bias, 0, 0.5)
    return made


def batch(case):
    """Of each step: x and the gradient of y, of all processes."""
    sizes, plane, layout = CASES[case]
    torch.manual_seed(1)
    return [[torch.randn(sum(sizes), 6, *plane, dtype=form_of(case)[1]).contiguous(memory_format=layout)
             for _ in range(2)] for _ in range(STEPS)]


def synchronised(leni, steps):
    """y and x's gradient of every step, the summed gradients of the parameters, and the buffers."""
    results = []
    for x, grad in steps:
        x = x.clone().requires_grad_()
        y = leni(x)
        y.backward(grad)
        results.append((y.detach(), x.grad))
    return results, [parameter.grad for parameter in leni.parameters()], list(leni.buffers())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), lk.LENI2d(4), nn.Conv2d(4, 6, 3), lk.LENI2d(6), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(6, 2)).double()


def train(model, batches, average=lambda gradient: None):
    """Parameters, buffers and gradients after three steps on the mean loss over the batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        for images, targets in batches:
            (nn.functional.cross_entropy(model(images), targets) / len(batches)).backward()
        for parameter in model.parameters():
            average(parameter.grad)
        optimizer.step()
    gradients = {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
    state = {**model.state_dict(), **gradients}
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def refusal(mechanism):
    """What is said to a second gradient, which would need both processes once more."""
    block, x = nn.SyncBatchNorm.convert_sync_batchnorm(mechanism(3)), torch.randn(2, 3, 4, 4, requires_grad=True)
    try:
        torch.autograd.grad(block(x).sum(), x, create_graph=True)
    except NotImplementedError as error:
        return str(error)
    return ""


def mean_of_both(gradient):
    distributed.all_reduce(gradient)
    gradient.div_(2)


def images_and_targets():
    torch.manual_seed(2)
    return torch.randn(8, 3, 9, 10, dtype=torch.float64), torch.arange(8) % 2


def work(rank, folder):
    """What one of the two processes does: every case, and leave what came of them in a file."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
                                   timeout=timedelta(seconds=TIMEOUT))
    results = {}
    for case, (sizes, _, _) in CASES.items():
        parts = [[tensor.split(sizes)[rank] for tensor in step] for step in batch(case)]
        leni = nn.SyncBatchNorm.convert_sync_batchnorm(block(case))
        decision, = lk.explain(leni, parts[0][0])
        results[case] = (decision.backend, *synchronised(leni, parts))
    half = [tensor.chunk(2)[rank] for tensor in images_and_targets()]
    # DistributedDataParallel takes SyncBatchNorm on GPUs only: here the one without the other, and reversed.
    results["parallel"] = train(nn.parallel.DistributedDataParallel(network()), [half])
    results["synchronised"] = train(nn.SyncBatchNorm.convert_sync_batchnorm(network()), [half], mean_of_both)
    results["refusals"] = [refusal(mechanism) for mechanism in (lk.LENI2d, lk.Reborn2d)]
    torch.save(results, folder / f"results{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1",
                   "LENI_KERNELS_BACKEND": ""}
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(2)]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"results{rank}", weights_only=True) for rank in range(2)]


def assert_near(got, wanted, what):
    assert got.shape == wanted.shape, what
    error = (got - wanted).abs().max() if got.numel() else 0
    tolerance = 2e-5 if got.dtype == torch.float32 else 1e-10
    assert error <= tolerance * max(1, wanted.abs().max() if wanted.numel() else 0), f"{what}: {error:.3g}"


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(both, case):
    sizes, *_ = CASES[case]
    leni = block(case)
    steps, gradients, buffers = synchronised(leni, batch(case))
    assert [results[case][0] for results in both] == ["cpp", "cpp"]
    for rank, results in enumerate(both):
        for got, wanted in zip(results[case][1], steps, strict=True):
            for what, ours, whole in zip(("y", "x"), got, wanted, strict=True):
                assert_near(ours, whole.split(sizes)[rank], what)
        for (name, _), ours, whole in zip(leni.named_buffers(), results[case][3], buffers, strict=True):
            assert_near(ours, whole, name)
    for (name, _), one, other, whole in zip(leni.named_parameters(), *(results[case][2] for results in both),
                                            gradients, strict=True):
        assert_near(one + other, whole, name)


def test_distributed_data_parallel(both):
    """Each process's norms see its half of the batch; the gradients are the mean of both halves'."""
    halves = list(zip(*(tensor.chunk(2) for tensor in images_and_targets()), strict=True))
    wanted = train(network(), halves)
    for results in both:
        assert results["parallel"].keys() == wanted.keys()
        for name, _ in network().named_parameters():
            assert_near(results["parallel"][name], wanted[name], name)
            assert_near(results["parallel"][f"{name}.grad"], wanted[f"{name}.grad"], name)


def test_a_network_with_synchronised_norms(both):
    wanted = train(network(), [images_and_targets()])
    for results in both:
        assert results["synchronised"].keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert_near(results["synchronised"][name], tensor, name)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))


def test_second_gradients_over_several_processes_are_refused(both):
    for results in both:
        for text in results["refusals"]:
            assert "double backward with statistics of several processes is not supported" in text
