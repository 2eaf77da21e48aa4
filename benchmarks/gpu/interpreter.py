"""Triton's interpreter, without what it does for nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any


def patch_once() -> None:
    """Patch the interpreter; its results stay as they are."""
    from triton.runtime import interpreter

    _patch_modules_once(interpreter.InterpretedFunction)
    # Without ``debug``, what tells of integers that overflow is computed, and then not looked at.
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)


def _patch_modules_once(function: Any) -> None:
    """Let a Triton function that another one calls find ``triton.language`` as it is.

    The interpreter patches all of it at each such call, which is more than half of its time. But the launch has done
    so, and what Triton's own functions need besides stays patched from the first call of one of them.
    """
    patch_and_call, patched = function.__call__, set()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ in patched:
            return self.rewrite()(*arguments, **named)
        patched.add(self.fn.__module__)
        return patch_and_call(self, *arguments, **named)

    function.__call__ = call


def _remembered(dtype_of: Any) -> Any:
    """``dtype_of``, which makes a table of all types at each call; but pointers, which have no hash, end it before."""
    of_scalar = cache(dtype_of)

    def call(kind: Any) -> Any:
        scalar = kind.scalar
        return dtype_of(scalar) if scalar.is_ptr() else of_scalar(scalar)

    return call
