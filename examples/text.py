"""Trains a small network over characters in which ConvReLU stands where ReLUs and convolutions stood.

python examples/text.py --steps 150
"""

import argparse
import random

import torch
from torch import nn

import leni_kernels as lk

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
WORDS = {0: ["dull", "tedious", "awful", "lifeless", "wasted"], 1: ["moving", "joyful", "brilliant", "tender", "alive"]}
FILLERS = ["the", "film", "is", "and", "with", "a", "story", "of", "two", "friends", "in", "paris"]
LENGTH = 64


def review(label: int) -> str:
    """A few words of which one tells the label."""
    words = [*random.choices(FILLERS, k=8), random.choice(WORDS[label])]
    return " ".join(random.sample(words, len(words)))[:LENGTH].ljust(LENGTH)


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as [N, alphabet, length], and their labels."""
    labels = [random.randrange(2) for _ in range(count)]
    codes = torch.tensor([[ALPHABET.index(letter) for letter in review(label)] for label in labels])
    return nn.functional.one_hot(codes, len(ALPHABET)).transpose(1, 2).float(), torch.tensor(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    random.seed(0)
    torch.manual_seed(0)

    model = nn.Sequential(
        nn.Conv1d(len(ALPHABET), 64, 7, padding=3), nn.MaxPool1d(2),
        lk.ConvReLU1d(64, 64, 7, padding=3), nn.MaxPool1d(2),
        lk.ConvReLU1d(64, 64, 3, padding=1), nn.ReLU(),  # sparse features for the classifier
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(lk.parameter_groups(model, weight_decay=1e-4), lr=0.05, momentum=0.9)
    for _ in range(steps):
        texts, labels = batch(64)
        loss = nn.functional.cross_entropy(model(texts), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    texts, labels = batch(256)
    print(f"loss {loss.item():.3f}, accuracy {(model(texts).argmax(1) == labels).float().mean().item():.1%}; "
          f"thresholds up to {model[2].threshold.abs().max().item():.1e}")


if __name__ == "__main__":
    main()
