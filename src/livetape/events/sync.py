"""Asynchronous objects for programs without an event loop: one background thread runs the loop."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from livetape.errors import ClosedError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

JOIN_S: Final = 10.0


class Portal:
    """Runs coroutines in one event loop in a daemon thread, which starts when it is first needed.

    For any number of threads. A forked child gets a loop and a thread of its own; `generation` tells them apart: what
    was made in another generation belongs to a loop that does not run in this process.
    """

    def __init__(self, name: str = "livetape") -> None:
        self._name = name
        self._locks: dict[int, threading.Lock] = {}
        self._running: _Loop | None = None
        self._left: list[_Loop] = []
        self._closed = False

    @property
    def generation(self) -> int:
        """Another number in each process."""
        return os.getpid()

    @property
    def is_inherited(self) -> bool:
        """Whether something here belongs to the process that this one was forked from; then keep the object."""
        running = self._running
        return bool(self._left) or (running is not None and running.pid != os.getpid())

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the loop and wait for its result. An interruption (Ctrl-C) cancels it.

        Raises:
            ClosedError: after `close`.
            RuntimeError: called from within the loop itself, which would wait for ever.
        """
        try:
            future = self._loop().submit(work)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """The items, one call for each. When the generator is closed, `items` is too if it has `aclose`."""
        try:
            while True:
                try:
                    item = self.call(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            closing = getattr(items, "aclose", None)
            if closing is not None and not self._closed:
                self.call(closing())

    def close(self) -> None:
        """Cancel what runs, and end the loop and its thread. Idempotent."""
        self._closed = True
        running = self._running
        if running is not None and running.pid == os.getpid():
            running.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _loop(self) -> _Loop:
        if self._closed:
            raise ClosedError("the portal is closed")
        running = self._running
        if running is not None and running.pid == os.getpid():
            return running
        # A lock that another thread held at the fork would never be released here: each process has its own.
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            running = self._running
            if running is not None:
                if running.pid == os.getpid():
                    return running
                self._left.append(running)  # the parent's: neither to be used nor to be collected here
            self._running = _Loop(self._name)
            weakref.finalize(self, self._running.stop)
            return self._running


class _Loop:
    """An event loop and its thread."""

    def __init__(self, name: str) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a synchronous call from within the event loop that would carry it out")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Idempotent."""
        if self.pid != os.getpid() or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


class Closable(Protocol[T_co]):
    """An asynchronous iterator that can be closed from outside."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    async def __anext__(self) -> T_co: ...

    async def close(self) -> None: ...


class SyncIterator(Generator[T, None, None], Generic[T]):
    """An asynchronous iterator, seen from ordinary code. `close` may be called by another thread and ends it."""

    def __init__(self, portal: Portal, items: Closable[T]) -> None:
        self._portal = portal
        self._items = items

    def __next__(self) -> T:
        try:
            return self._portal.call(_next(aiter(self._items)))
        except (StopAsyncIteration, ClosedError):
            raise StopIteration from None

    def send(self, value: None) -> T:
        """`next`."""
        return next(self)

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> T:
        """Close it and raise this."""
        self.close()
        raise typ if isinstance(typ, BaseException) or not isinstance(val, BaseException) else val

    def close(self) -> None:
        """End the iteration. Idempotent."""
        try:
            self._portal.call(self._items.close())
        except ClosedError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
