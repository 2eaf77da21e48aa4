"""Triton's interpreter, at twice its speed."""

from __future__ import annotations

from typing import Any


def patch_once() -> None:
    """Let a Triton function that another one calls find ``triton.language`` as it is.

    The interpreter patches all of it at each such call, which is more than half of its time. But the launch has done
    so, and what Triton's own functions need besides stays patched from the first call of one of them.
    """
    from triton.runtime.interpreter import InterpretedFunction

    patch_and_call, patched = InterpretedFunction.__call__, set()

    def call(self: InterpretedFunction, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ in patched:
            return self.rewrite()(*arguments, **named)
        patched.add(self.fn.__module__)
        return patch_and_call(self, *arguments, **named)

    InterpretedFunction.__call__ = call
