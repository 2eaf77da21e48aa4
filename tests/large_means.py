"""Half precision against the block of layers, where a channel's mean is large against its deviations from it."""

import copy

import torch

import leni_kernels as lk

CHANNELS = 16
MEANS = (-100, -10, 0, 10, 100)
CONSTANTS = ("negative", "positive")
"""Channels of one value each, that all but differ from it: their norms divide by the root of eps."""


def feature_map(mean, shape, dtype):
    """Channels of standard deviation 1 about a mean, or of about one value each."""
    if mean in MEANS:
        return (torch.randn(shape) + mean).to(dtype)
    sign = 1 if mean == "positive" else -1
    return (sign * (torch.rand(1, shape[1], 1, 1) + 0.5)).expand(shape).to(dtype).contiguous()


def step(backend, block, x, grad):
    """y and the gradients of one step of a copy of the block."""
    block, x = copy.deepcopy(block), x.detach().requires_grad_()
    with lk.use_backend(backend):
        y = block(x)
    names = ("deconv.weight", "compress.weight")
    inputs = (x, *(block.get_parameter(name) for name in names))
    return dict(zip(("y", "x", *names), (y.detach(), *torch.autograd.grad(y, inputs, grad)), strict=True))


def folded(backend, block, x):
    with torch.no_grad(), lk.use_backend(backend):
        return {"y": lk.fold(block)(x)}


def with_statistics_of(block, x):
    """The block in eval mode, its running statistics those of x."""
    block = copy.deepcopy(block).double().train()
    block.bn_negative.momentum = block.bn_fusion.momentum = 1.0
    with torch.no_grad(), lk.use_backend("reference"):
        block(x.double())
    return block.eval()


def errors(results, truth):
    return {name: float((results[name].double() - wanted).norm()) for name, wanted in truth.items()}


def check(backend, dtype, shape=(4, CHANNELS, 10, 12), device="cpu", forms=("training", "eval", "folded"), times=1.5,
          **options):
    """Raise unless a backend's errors are at most so many times those of the layers, of LENI2d with options."""
    for mean in (*MEANS, *CONSTANTS):
        torch.manual_seed(0)
        x, grad = feature_map(mean, shape, dtype).to(device), torch.randn(shape).to(device, dtype)
        training = lk.LENI2d(shape[1], **options).to(device)
        with torch.no_grad():
            for parameter in training.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        training = training.to(dtype).double()  # the same in both
        for form in forms:
            block = training if form == "training" else with_statistics_of(training, x)
            narrow = copy.deepcopy(block).to(dtype)  # but for its norms, which are kept in float32
            narrow.bn_negative, narrow.bn_fusion = (
                copy.deepcopy(norm).float() for norm in (block.bn_negative, block.bn_fusion))
            if form == "folded":
                truth, ours = step("reference", block, x.double(), grad.double()), folded(backend, narrow, x)
                truth = {"y": truth["y"]}
            else:
                truth, ours = (step(name, which, x.to(kind), grad.to(kind)) for name, which, kind in (
                    ("reference", block, torch.float64), (backend, narrow, dtype)))
            composed = errors(step("reference", narrow, x, grad), truth)
            for name, error in errors(ours, truth).items():
                allowed = times * composed[name] + 1e-5 * float(truth[name].norm())
                beyond = composed[name] != composed[name]  # float16's range
                assert beyond or error <= allowed, f"{form}, mean {mean}, {name}: {error:.2e} > {allowed:.2e}"
