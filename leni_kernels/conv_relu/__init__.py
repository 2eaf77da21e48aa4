"""ConvReLU: a threshold per input channel and kernel offset, inside the convolution."""
