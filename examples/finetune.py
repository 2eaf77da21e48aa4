"""Fine-tunes a network of torchvision with LENI in its first layers, and folds it for inference.

python examples/finetune.py --steps 30 [--weights resnet18.pth]
"""

import argparse

import torch
import torchvision
from torch import nn

import leni_kernels as lk

CLASSES, SIZE = 10, 32


def batch(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of ten classes, each a pattern of its own under noise: data that needs no download."""
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = nn.functional.interpolate(patterns[labels], SIZE, mode="bilinear")
    return images + 0.5 * torch.randn(images.shape, generator=generator), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--weights", help="a state_dict of torchvision's resnet18; without one it starts at random")
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)

    model = torchvision.models.resnet18()
    if options.weights:
        model.load_state_dict(torch.load(options.weights, weights_only=True))
    model.fc = nn.Linear(model.fc.in_features, CLASSES)
    model, report = lk.replace_relu(model, "leni", where="first:3", example_input=batch(2, generator)[0])
    print(report)

    optimizer = torch.optim.SGD(lk.parameter_groups(model, weight_decay=5e-4), lr=0.02, momentum=0.9)
    for step in range(options.steps):
        images, labels = batch(32, generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")

    fast = lk.fold(model.eval())
    images, labels = batch(256, generator)
    with torch.no_grad():
        accuracy = (fast(images).argmax(1) == labels).float().mean().item()
        difference = (fast(images) - model(images)).abs().max().item()
    print(f"folded: accuracy {accuracy:.1%}, largest difference to the trained network {difference:.1e}")


if __name__ == "__main__":
    main()
