"""What is measured of ConvReLU."""
