"""Trains a detector of torchvision, with ReLU and with FullyParametricReLU, to find squares, discs and triangles.

python examples/detection.py --steps 200 [--seed 1]
"""

import argparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead

import leni_kernels as lk

SIZE, CLASSES = 64, 3
Boxes = dict[str, Tensor]


def scene(generator: torch.Generator) -> tuple[Tensor, Boxes]:
    """An image with up to three shapes of any colour, each in another quarter of it, and where they are."""
    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    image = uniform(3, 1, 1) / 2 + 0.15 * torch.randn(3, SIZE, SIZE, generator=generator)
    count = int(torch.randint(1, 4, (), generator=generator))
    labels = torch.randint(1, CLASSES + 1, (count,), generator=generator)
    quarters = torch.randperm(4, generator=generator)[:count, None]
    radii = SIZE * (0.1 + 0.14 * uniform(count, 1))
    centres = (torch.cat([quarters % 2, quarters // 2], 1) * SIZE / 2
               + radii + (SIZE / 2 - 2 * radii) * uniform(count, 2))
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    for label, centre, r in zip(labels.tolist(), centres, radii, strict=True):
        dx, dy = x - centre[0], y - centre[1]
        inside = {1: (dx.abs() < r) & (dy.abs() < r), 2: dx**2 + dy**2 < r**2, 3: (2 * dx.abs() < dy + r) & (dy < r)}
        image = torch.where(inside[label], 0.5 + 0.5 * uniform(3, 1, 1), image)
    return image, {"boxes": torch.cat([centres - radii, centres + radii], 1), "labels": labels}


def batch(count: int, generator: torch.Generator) -> tuple[list[Tensor], list[Boxes]]:
    images, boxes = zip(*(scene(generator) for _ in range(count)), strict=True)
    return list(images), list(boxes)


def detector() -> nn.Module:
    """FCOS on the first half of a ResNet-18: one feature map, of stride 8."""
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:6])
    backbone.out_channels = 128
    return FCOS(backbone, CLASSES + 1, min_size=SIZE, max_size=SIZE, head=FCOSHead(128, 1, CLASSES + 1, num_convs=1),
                anchor_generator=AnchorGenerator(((8,),), ((1.0,),)))


def average_precision(found: list[Boxes], truth: list[Boxes], label: int) -> float:
    """Of a class, at an IoU of 0.5: the best precision at which each true box is found, or 0, and the mean of them."""
    scores, hits, total = [], [], 0
    for guess, true in zip(found, truth, strict=True):
        mine, boxes = guess["labels"] == label, true["boxes"][true["labels"] == label]
        overlaps = torchvision.ops.box_iou(guess["boxes"][mine], boxes)  # the surest first
        overlap, nearest = nn.functional.pad(overlaps, (0, 1)).max(1)  # in an image without boxes none is near
        taken: set[int] = set()
        for near, box in zip((overlap >= 0.5).tolist(), nearest.tolist(), strict=True):
            hits.append(near and box not in taken)  # to find a box again is an error
            taken.update([box] * near)
        scores += guess["scores"][mine].tolist()
        total += len(boxes)
    hit = torch.tensor(hits)[torch.tensor(scores).argsort(descending=True)].float()
    precision = hit.cumsum(0) / torch.arange(1, len(hit) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)
    return (best * hit).sum().item() / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--phase", type=int, default=10, help="steps for which weights train, and then slopes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)

    relu = detector()
    # All but the last ReLU, which makes distances to the edges of a box: these must not be negative.
    slopes, report = lk.replace_relu(relu, "fully_parametric_relu", where=["backbone.*", "head.*.conv.*"],
                                     example_input=batch(2, generator))
    print(f"{report.replaced} of {len(report.rows)} ReLUs replaced")
    networks = relu, slopes
    optimizers = [torch.optim.AdamW(lk.parameter_groups(model, weight_decay=0.01), lr=2e-3) for model in networks]
    decays = [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.steps) for optimizer in optimizers]

    losses = []
    with lk.AlternatingSchedule(slopes) as schedule:
        for step in range(1, options.steps + 1):
            images, boxes = batch(8, generator)
            losses.append([])
            for model, optimizer, decay in zip(networks, optimizers, decays, strict=True):
                loss = sum(model(images, boxes).values())
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

    images, boxes = batch(100, generator)
    for name, model in zip(("ReLU", "FullyParametricReLU"), networks, strict=True):
        with torch.no_grad():
            found = model.eval()(images)
        precisions = [average_precision(found, boxes, label) for label in range(1, CLASSES + 1)]
        print(f"{name}: mean average precision at an IoU of 0.5: {sum(precisions) / CLASSES:.1%}")


if __name__ == "__main__":
    main()
