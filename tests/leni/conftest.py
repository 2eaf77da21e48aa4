"""The fixtures of the blocks."""

from blocks import backend, kernel_backend, make_folded, make_leni, make_reborn  # noqa: F401
