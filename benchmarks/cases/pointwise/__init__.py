"""What is measured of the pointwise activations."""
