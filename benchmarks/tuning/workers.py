"""Processes that compile: a job that kills its process costs no other job."""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple


class Failure(NamedTuple):
    """Why a job has no result."""

    reason: str


class Workers:
    """``count`` processes, each of which does one job at a time; to be used in a ``with``."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._idle: queue.SimpleQueue[ProcessPoolExecutor] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(_new_process())

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for _ in range(self.count):
            self._idle.get().shutdown(wait=False, cancel_futures=True)

    def map(self, function: Callable[..., Any], jobs: Iterable[tuple], deadline: float = float("inf")) -> list[Any]:
        """``function(*job)`` of each job, in order, or a :class:`Failure`; after ``deadline``, in
        :func:`time.monotonic`'s seconds, no job is begun or waited for."""
        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(lambda job: self._result(function, job, deadline), jobs))

    def _result(self, function: Callable[..., Any], job: tuple, deadline: float) -> Any:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return Failure("no time was left")
        process = self._idle.get()
        try:
            return process.submit(_attempt, function, job).result(None if remaining == float("inf") else remaining)
        except NotInTime:
            process.shutdown(wait=False, cancel_futures=True)
            process = _new_process()
            return Failure("it was not done in time")
        except BrokenProcessPool:
            process = _new_process()
            return Failure("its process died")
        finally:
            self._idle.put(process)


def _attempt(function: Callable[..., Any], job: tuple) -> Any:
    # Many compilers' errors do not survive the way from one process to another.
    try:
        return function(*job)
    except Exception as error:
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """The error in a line."""
    return Failure(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def _new_process() -> ProcessPoolExecutor:
    # A process that has used a GPU cannot be forked.
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
