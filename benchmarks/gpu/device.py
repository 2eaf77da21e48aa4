"""What only a GPU has (events, graphs, streams, counters of its memory), and what stands for it in a rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from harness import timing
from torch.utils._pytree import tree_leaves

Run = Callable[[], Any]


class Kernel(NamedTuple):
    """One launch of a kernel."""

    name: str
    microseconds: float
    """What the GPU spent in it, without the way there."""


def _as_kernel(event: Any) -> Kernel:
    return Kernel(event.name, event.time_range.elapsed_us())


class Gpu:
    """The GPU that is checked."""

    device = torch.device("cuda")
    rehearses = False

    def dtype(self, name: str) -> torch.dtype:
        """The dtype called "bfloat16", …; "tf32" is float32."""
        return torch.float32 if name == "tf32" else getattr(torch, name)

    def size(self, full: Any, rehearsed: Any) -> Any:
        """``full``, or in a rehearsal what is small enough for it."""
        return full

    def alive(self) -> bool:
        """Whether the process can go on: after some errors every CUDA call fails."""
        try:
            torch.cuda.synchronize()
            return bool(torch.ones(1, device=self.device).item() == 1)
        except RuntimeError:
            return False

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        torch.cuda.synchronize()

    def timer(self) -> Callable[[timing.Side], float]:
        """What times one call."""
        return timing.timer(self.device)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` under ``torch.compile``."""
        torch.compiler.reset()  # after eight shapes it silently runs eagerly
        return torch.compile(function, fullgraph=True, dynamic=False)

    def graph(self, run: Run) -> tuple[Run, Any]:
        """A replay of all that ``run`` launches, and what it returned when captured, which each replay writes anew."""
        self.beside(run, run)  # what is allocated once, or chosen by trial, is not captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
        return graph.replay, result

    def beside(self, *runs: Run) -> list[Any]:
        """What the ``runs`` return, each on a stream of its own, all begun before any is waited for."""
        current, streams = torch.cuda.current_stream(), [torch.cuda.Stream() for _ in runs]
        results = []
        for stream, run in zip(streams, runs, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                results.append(run())
        for stream in streams:
            current.wait_stream(stream)
        return results

    @contextmanager
    def without_synchronising(self) -> Iterator[None]:
        """Inside, an operation that makes the host wait for the GPU raises."""
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def allocated(self) -> int:
        """The bytes of GPU memory that tensors hold."""
        return torch.cuda.memory_allocated()

    def peak_of(self, run: Run) -> int:
        """The bytes that tensors hold at most while ``run`` runs, beyond those they hold before."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    def kernels(self, run: Run) -> list[Kernel]:
        """The kernels that ``run`` launches."""
        activity = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
        return [_as_kernel(event) for event in profile.events()
                if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
                and not event.name.startswith(("Memcpy", "Memset"))]


class StandIn(Gpu):
    """The CPU and Triton's interpreter in its place: everything runs, and nothing is fast."""

    device = torch.device("cpu")
    rehearses = True

    def dtype(self, name: str) -> torch.dtype:
        # The interpreter's bfloat16 is wrong, or missing.
        return super().dtype("float16" if name == "bfloat16" else name)

    def size(self, full: Any, rehearsed: Any) -> Any:
        return rehearsed

    def alive(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")

    def graph(self, run: Run) -> tuple[Run, Any]:
        result = run()

        def replay() -> None:
            found = run()
            with torch.inference_mode():  # results of inference mode change in it only
                for old, new in zip(tree_leaves(result), tree_leaves(found), strict=True):
                    old.copy_(new)

        return replay, result

    def beside(self, *runs: Run) -> list[Any]:
        return [run() for run in runs]

    @contextmanager
    def without_synchronising(self) -> Iterator[None]:
        yield

    def allocated(self) -> int:
        return 0

    def peak_of(self, run: Run) -> int:
        run()
        return 0

    def kernels(self, run: Run) -> list[Kernel]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        return [_as_kernel(event) for event in profile.events() if event.name.startswith("aten::")]


def here(rehearse: bool) -> Gpu:
    """Where the cases of this process run."""
    return StandIn() if rehearse else Gpu()
