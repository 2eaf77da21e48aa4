"""LENI: rebuild what ReLU discards, by a depthwise deconvolution of the negative part."""
