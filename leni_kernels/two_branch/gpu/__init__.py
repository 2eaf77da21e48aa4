"""The Triton kernels and their launches; no autograd, no modules."""
