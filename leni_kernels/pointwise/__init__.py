"""AdaReLU, FullyParametricReLU and CReLU: elementwise activations."""
