"""Threads for blocks with blocking code. They never keep the process from ending, and a stuck one costs no place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class Abandoning(Protocol):
    """Threads that can do without a call that does not come back."""

    def abandon(self, future: Future[Any]) -> None: ...


class BlockThreads(Executor):
    """At most `size` calls at once, the others wait in order. A thread stays for further calls.

    Unlike those of a ThreadPoolExecutor, the threads are daemons: a block that never returns cannot hold up the end of
    the process. `abandon` gives its place to another.
    """

    def __init__(self, size: int, *, name: str = "livetape-block") -> None:
        self._size = size
        self._name = name
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._running: set[Future[Any]] = set()
        self._abandoned: set[Future[Any]] = set()
        self._closed = False
        self._made = 0

    @property
    def stuck(self) -> int:
        """How many calls were abandoned and have not come back."""
        return len(self._abandoned)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As Executor says."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("used after shutdown")
            self._calls.append((future, lambda: fn(*args, **kwargs)))
            self._serve()
        return future

    def abandon(self, future: Future[Any]) -> None:
        """Nobody waits for this call any more: if it runs, its thread is one too many from now on."""
        if future.cancel():
            return
        with self._changed:
            if future in self._running and future not in self._abandoned:
                self._abandoned.add(future)
                self._threads -= 1
                self._serve()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Waits for nothing: whoever has called knows of the calls that matter."""
        with self._changed:
            self._closed = True
            dropped = list(self._calls) if cancel_futures else []
            if cancel_futures:
                self._calls.clear()
            self._changed.notify_all()
        for future, _ in dropped:
            future.cancel()

    def _serve(self) -> None:
        """Wake or make a thread for what waits; with the lock."""
        if self._idle:
            self._changed.notify()
        # One that was woken is still counted as idle until it has its turn.
        if len(self._calls) > self._idle and self._threads < self._size:
            self._threads += 1
            self._made += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    if self._closed:
                        self._threads -= 1
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                future, call = self._calls.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._running.add(future)
            try:
                result = call()
            except BaseException as error:  # whatever it is, it is the caller's
                future.set_exception(error)
            else:
                future.set_result(result)
            with self._changed:
                self._running.discard(future)
                if future in self._abandoned:
                    self._abandoned.discard(future)
                    return
            del future, call
