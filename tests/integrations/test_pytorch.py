"""PyTorch's own tools around networks: they give what they give without, and the kernels stay in use."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import leni_kernels as lk

needs_gloo = pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()),
                                reason="needs torch.distributed with gloo")


@pytest.fixture
def process_group():
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_compiled_autograd():
    """Of one network with every mechanism, since a graph of backward takes seconds to trace."""
    network = nn.Sequential(lk.LENI2d(2), lk.Reborn2d(2), lk.ConvReLU2d(2, 2, 3), lk.AdaReLU(2),
                            lk.FullyParametricReLU(2), lk.CReLU())
    x = torch.randn(2, 2, 5, 6)

    def step():
        network(x).square().sum().backward()

    step()
    wanted = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="eager")()
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], wanted)


@needs_gloo
def test_distributed_data_parallel(process_group, make_network, gradients_of):
    parallel = nn.parallel.DistributedDataParallel(make_network())
    torch.testing.assert_close(gradients_of(parallel), gradients_of(make_network()))


@needs_gloo
def test_fully_sharded(process_group, make_network, gradients_of):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded, mesh = make_network(), init_device_mesh("cpu", (1,))
    for module in (sharded[1], sharded):
        fully_shard(module, mesh=mesh)
    found = [gradient.full_tensor() for gradient in gradients_of(sharded)]
    torch.testing.assert_close(found, gradients_of(make_network()))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(make_network, gradients_of, batch, use_reentrant):
    network = make_network()
    batch[0].requires_grad_()  # without which a reentrant one has no gradients
    found = gradients_of(network, lambda x: checkpoint(network, x, use_reentrant=use_reentrant))
    torch.testing.assert_close(found, gradients_of(make_network()))


def test_grad_scaler(make_network, batch):
    images, targets = batch
    scaled, plain = make_network(), make_network()
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(scaled.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [F.cross_entropy(network(images), targets) for network in (scaled, plain)]
    scaler.scale(losses[0]).backward()
    scaler.unscale_(optimizer)
    losses[1].backward()
    for got, wanted in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)
    before = [parameter.detach().clone() for parameter in scaled.parameters()]
    scaler.step(optimizer)
    for parameter, old in zip(scaled.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old - 0.1 * parameter.grad)


def test_average_of_weights(make_network, batch):
    images, _ = batch
    network = make_network()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    average.update_parameters(network)
    for got, old, new in zip(average.parameters(), before, network.parameters(), strict=True):
        torch.testing.assert_close(got, (old + new) / 2)
    layers = copy.deepcopy(average)
    update_bn([images, images + 1], average)
    with lk.use_backend("reference"):
        update_bn([images, images + 1], layers)
        wanted = layers.eval()(images)
    torch.testing.assert_close(dict(average.named_buffers()), dict(layers.named_buffers()))
    torch.testing.assert_close(average.eval()(images), wanted)
