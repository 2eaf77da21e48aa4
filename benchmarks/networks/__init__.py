"""Whole networks: the papers', with any activation, and torchvision's, with their first activations replaced."""
