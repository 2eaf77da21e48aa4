"""Trains a network of torchvision on clips, with ReLU and with FullyParametricReLU, to tell where a square moves.

python examples/video.py --steps 60 [--seed 1]
"""

import argparse

import torch
import torchvision
from torch import Tensor, nn

import leni_kernels as lk

MOVES = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])  # pixels down and to the right, from frame to frame
FRAMES, SIZE = 6, 16


def clip(move: Tensor, generator: torch.Generator) -> Tensor:
    """A square of any colour, from anywhere, that leaves on one side and comes back on the other: [3, frames, y, x]."""
    side = int(torch.randint(3, 7, (), generator=generator))
    image = torch.zeros(3, SIZE, SIZE)
    image[:, :side, :side] = 0.5 + torch.rand(3, 1, 1, generator=generator)
    start = torch.randint(SIZE, (2,), generator=generator)
    return torch.stack([image.roll((start + time * move).tolist(), (1, 2)) for time in range(FRAMES)], 1)


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips under noise, and which of the moves each shows: no frame alone tells."""
    labels = torch.randint(len(MOVES), (count,), generator=generator)
    clips = torch.stack([clip(move, generator) for move in MOVES[labels]])
    return clips + 0.2 * torch.randn(clips.shape, generator=generator), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--phase", type=int, default=10, help="steps for which weights train, and then slopes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)

    relu = torchvision.models.video.r3d_18()
    relu.layer3 = relu.layer4 = nn.Identity()  # such small clips need half of the network
    relu.fc = nn.Linear(128, len(MOVES))
    slopes, report = lk.replace_relu(relu, "fully_parametric_relu", example_input=batch(2, generator)[0])
    print(f"{report.replaced} of {len(report.rows)} ReLUs replaced")
    networks = relu, slopes
    optimizers = [torch.optim.AdamW(lk.parameter_groups(model, weight_decay=0.01), lr=1e-3) for model in networks]
    decays = [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.steps) for optimizer in optimizers]

    losses = []
    with lk.AlternatingSchedule(slopes) as schedule:
        for step in range(1, options.steps + 1):
            clips, labels = batch(16, generator)
            losses.append([])
            for model, optimizer, decay in zip(networks, optimizers, decays, strict=True):
                loss = nn.functional.cross_entropy(model(clips), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
                losses[-1].append(loss.item())
            if step % options.phase == 0 or step == options.steps:
                of_relu, of_slopes = torch.tensor(losses).mean(0)
                print(f"step {step}: loss {of_relu:.3f} with ReLU, {of_slopes:.3f} with FullyParametricReLU, of which "
                      f"the {schedule.trains} trained", flush=True)
                losses.clear()
                schedule.step()

    clips, labels = batch(100, generator)
    for name, model in zip(("ReLU", "FullyParametricReLU"), networks, strict=True):
        with torch.no_grad():
            accuracy = (model.eval()(clips).argmax(1) == labels).float().mean().item()
        print(f"{name}: accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
