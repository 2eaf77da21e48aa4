"""Whole networks: torchvision's, with the activation after the first convolution replaced."""
