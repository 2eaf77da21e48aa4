"""Writes what main.cpp runs: a network compiled ahead of time, the same network traced, images, and the output wanted.

python examples/cpp/export.py --output folder
"""

import argparse
import warnings
from pathlib import Path

import torch
from torch import nn

import leni_kernels as lk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("."), help="the folder")
    folder = parser.parse_args().output
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)

    # A trained network would be loaded here. Blocks that are not folded run too; these two show it.
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), lk.fold(lk.LENI2d(16).eval()), lk.Reborn2d(16),
                            lk.ConvReLU2d(16, 8, 3, padding=1), lk.AdaReLU(8)).eval()
    with torch.no_grad():
        print(lk.explain(network, images))
        batch = torch.export.Dim("batch")
        program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "network.pt2"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of checks of shapes, which a trace leaves out
            torch.jit.trace(network, images).save(folder / "network.pt")
        more = torch.randn(5, 3, 32, 32)  # than at export
        torch.save(more, folder / "images.pt")
        torch.save(network(more), folder / "wanted.pt")
    print(lk.library_path())


if __name__ == "__main__":
    main()
