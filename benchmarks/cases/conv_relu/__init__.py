"""What is measured of ConvReLU."""

ORDER = 1
