"""Tensors of any values and strides, made from plain numbers alone; scripts that repeat a failure quote this file."""

import torch


def values(shape, kind="normal", scale=1.0, mean=0.0, specials=(), seed=0):
    """A float64 tensor of random values; ``specials`` are (position in the flattened tensor, value)."""
    if kind == "one value":
        return values([1] * len(shape), "normal", scale, mean, (), seed).expand(shape)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "grid":
        drawn = (2 * drawn).round() / 2
    elif kind == "positive":
        drawn = drawn.abs()
    elif kind == "negative":
        drawn = -drawn.abs()
    elif kind == "constant channels":
        drawn[:, ::2] = drawn[:1, ::2].flatten(2)[..., :1].clone().reshape(1, -1, *[1] * (len(shape) - 2))
    result = drawn * scale + mean
    for position, value in specials if result.numel() else ():
        result.view(-1)[position % result.numel()] = value
    return result


def strided(tensor, strides, offset=0):
    """The tensor with other strides, amid NaN; of elements that share memory the last one's value counts."""
    places = torch.full((), offset)
    for d, (size, stride) in enumerate(zip(tensor.shape, strides, strict=True)):
        places = places + (torch.arange(size) * stride).reshape(-1, *[1] * (tensor.dim() - 1 - d))
    span = int(places.max()) + 1 if tensor.numel() else 0
    if span < 2**24:
        storage = torch.full((span + 3,), torch.nan, dtype=tensor.dtype)
    else:  # only the pages that are written to exist
        torch.utils.deterministic.fill_uninitialized_memory = False
        storage = torch.empty(span, dtype=tensor.dtype)
        torch.utils.deterministic.fill_uninitialized_memory = True
    storage[places.flatten()] = tensor.flatten()
    return storage.as_strided(tensor.shape, strides, offset)
