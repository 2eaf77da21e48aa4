"""Trains in several processes, with the norms of the LENI blocks synchronised over all of them.

torchrun --standalone --nproc-per-node 2 examples/distributed.py --steps 20
"""

import argparse

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import leni_kernels as lk


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), lk.LENI2d(16), nn.Conv2d(16, 32, 3, stride=2, padding=1),
                         lk.LENI2d(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))


def wrapped(model: nn.Module, gpu: torch.device | None) -> nn.Module:
    """The model for several processes, with norms that see the batches of all."""
    if gpu is not None:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model.to(gpu))
        return DistributedDataParallel(model, device_ids=[gpu])
    # On a CPU it refuses SyncBatchNorm, which cannot run there; the blocks can, and are converted when it has looked.
    parallel = DistributedDataParallel(model)
    for block in parallel.module.modules():
        if isinstance(block, lk.LENI2d):
            nn.SyncBatchNorm.convert_sync_batchnorm(block)
    return parallel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    gpu = torch.device("cuda") if torch.cuda.is_available() else None
    distributed.init_process_group("nccl" if gpu else "gloo")
    rank = distributed.get_rank()
    if gpu is not None:
        gpu = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(gpu)
    model = wrapped(network(), gpu)
    optimizer = torch.optim.SGD(lk.parameter_groups(model), lr=0.1, momentum=0.9)
    torch.manual_seed(1 + rank)  # each process has images of its own
    for _ in range(steps):
        labels = torch.randint(2, (16,), device=gpu)
        images = torch.randn(16, 3, 16, 16, device=gpu) + labels[:, None, None, None]
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean = model.module[1].bn_negative.running_mean[0].item()
    print(f"process {rank}: loss {loss.item():.3f}, running mean {mean:.6f}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
