"""How much processor time one piece of work took, beside others in the same threads."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Executor, Future
from typing import Any, Generic, ParamSpec, TypeVar

from livetape.engine.block_threads import Abandoning

T = TypeVar("T")
P = ParamSpec("P")


class CpuTime:
    """Counts seconds of processor time: of an awaitable step by step, and of what it gives to a pool of threads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, work: Awaitable[T]) -> Awaitable[T]:
        """The same, counted."""
        return _Counted(work, self)

    def pool(self, threads: Executor) -> Executor:
        """The same threads, counted. Shutting it down does nothing."""
        return _CountedPool(threads, self)


class _Counted(Generic[T]):
    def __init__(self, work: Awaitable[T], into: CpuTime) -> None:
        self._work = work
        self._into = into

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        into = self._into
        go_on: Callable[[Any], Any] = steps.send
        value: Any = None
        while True:
            began = time.thread_time()
            try:
                waits_for = go_on(value)
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                into.seconds += time.thread_time() - began
            try:
                value = yield waits_for
                go_on = steps.send
            except BaseException as thrown:  # what is thrown in, cancellation above all, belongs to the work
                go_on, value = steps.throw, thrown


class _CountedPool(Executor):
    def __init__(self, threads: Executor, into: CpuTime) -> None:
        self._threads = threads
        self._into = into

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        into = self._into

        def counted() -> T:
            began = time.thread_time()
            try:
                return fn(*args, **kwargs)
            finally:
                into.seconds += time.thread_time() - began

        return self._threads.submit(counted)

    def abandon(self, future: Future[Any]) -> None:
        """As the threads do, if they can."""
        if isinstance(self._threads, Abandoning):
            self._threads.abandon(future)
