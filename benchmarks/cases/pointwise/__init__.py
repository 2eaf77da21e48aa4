"""What is measured of the pointwise activations."""

ORDER = 3
