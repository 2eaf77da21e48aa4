"""Exports the inference form of a network, loads it again, and compares.

python examples/export.py --output network.pt2 [--portable]
"""

import argparse

import torch
import torchvision

import leni_kernels as lk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="network.pt2")
    parser.add_argument("--size", type=int, default=64, help="of the images")
    parser.add_argument("--portable", action="store_true",
                        help="export PyTorch's own operators, for runtimes without this package")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(2, 3, options.size, options.size)

    # A trained network would be loaded here: replace_relu as it was trained, then load_state_dict.
    model, _ = lk.replace_relu(torchvision.models.mobilenet_v2(), "leni", where="first", include=["relu6"],
                               example_input=images)
    fast = lk.fold(model.eval())
    backend = "reference" if options.portable else None
    batch = torch.export.Dim("batch")
    with torch.no_grad(), lk.use_backend(backend):
        print(lk.explain(fast, images))
        program = torch.export.export(fast, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, options.output)

    # The process that serves imports leni_kernels, so that the operators which the program names are there.
    served = torch.export.load(options.output).module()
    ours = sorted({str(node.target) for node in program.graph.nodes if "leni_kernels" in str(node.target)})
    print("operators of this package:", ", ".join(ours) or "none")
    for count in (1, 5):
        more = torch.randn(count, 3, options.size, options.size)
        with torch.no_grad():
            got, wanted = served(more), model(more)
        difference = ((got - wanted).abs().max() / wanted.abs().max()).item()
        print(f"{count} images: largest difference to the network, relative to its largest output: {difference:.1e}")
        assert difference < 1e-3


if __name__ == "__main__":
    main()
