"""A model on an example: runs that leave nothing behind, and whether two of them agree."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_of(example: Any) -> Arguments:
    """What a model is called with: a tuple, or a list, of arguments, a dictionary of them, or a single one."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors that a layer computed, as of ``weight_norm``, become constants until it does so again."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in tensors_in(list(vars(module).values())):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(model, memo)


class ExampleError(Exception):
    """That a model does not run on its example."""


def run(model: nn.Module, arguments: Arguments, training: bool) -> Any:
    """What a model returns in training or in eval mode; arguments, modes and random states stay as they are."""
    args, kwargs = pytree.tree_map(_own, arguments)
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        with torch.set_grad_enabled(training), _random_states(model, arguments):
            return model(*args, **kwargs)
    except Exception as error:  # the model is the user's: anything may go wrong in it
        raise ExampleError(str(error)) from error
    finally:
        for module, was in modes.items():
            module.training = was


def _own(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


@contextmanager
def _random_states(model: nn.Module, arguments: Arguments) -> Iterator[None]:
    """The same random numbers each time, and afterwards those that would have come."""
    devices = {tensor.device for tensor in (*model.parameters(), *tensors_in(arguments)) if tensor.is_cuda}
    of_python, numpy = random.getstate(), sys.modules.get("numpy")
    of_numpy = numpy and numpy.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            random.seed(0)
            if numpy:
                numpy.random.seed(0)
            # Not torch.manual_seed, which would seed the GPUs that are not forked too.
            for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu.index] for gpu in devices)):
                generator.manual_seed(0)
            yield
        finally:
            random.setstate(of_python)
            if numpy:
                numpy.random.set_state(of_numpy)


def first_line(error: Exception) -> str:
    """The first line of a message, of a length to be read."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) < 200 else f"{lines[0][:200]}..."


# ---- what it returns ----------------------------------------------------------------------------------------


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in what a function is given or returns."""
    found, seen, waiting = [], set(), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif id(value) in seen:
            continue
        elif isinstance(value, (Mapping, tuple, list, set)):
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)
        elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and not callable(value):
            seen.add(id(value))
            waiting.extend(vars(value).values())
    return found


def near(actual: Any, expected: Any) -> bool:
    """Whether two outputs agree, as far as a GPU that chooses its algorithms anew lets them; a slip is far greater."""
    pairs = tensors_in(actual), tensors_in(expected)
    return len(pairs[0]) == len(pairs[1]) and all(map(_near, *pairs))


def _near(actual: Tensor, expected: Tensor) -> bool:
    if actual.shape != expected.shape or not expected.numel() or expected.is_sparse:
        return actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    return torch.allclose(actual, expected, rtol=0.0, atol=1e-2 * scale, equal_nan=True)
