"""Reborn: rebuild what ReLU discards, by a dense deconvolution of the negative part."""
