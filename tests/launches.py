"""What a call would launch on a GPU, counted on any machine."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from leni_kernels.common.gpu import support

FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "view", "_unsafe_view",
        "alias", "expand", "as_strided", "unbind", "slice", "select", "split", "split_with_sizes", "permute",
        "transpose", "t", "unsqueeze", "squeeze", "_reshape_alias")
"""What PyTorch calls that launch nothing."""


class Launches(TorchDispatchMode):
    """Counts kernels of Triton, which do not run inside, and lists what PyTorch launches beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.of_torch: list[str] = []
        self._noting = support.launches_noted("sm_90", lambda kernel, *_: self.kernels.append(kernel.__name__))

    def __enter__(self) -> Launches:
        self._noting.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._noting.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.of_torch.append(name)
        return function(*args, **(kwargs or {}))
