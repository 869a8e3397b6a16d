"""A thread with an event loop and a connection of its own, for writes that must not wait behind others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from livetape.errors import ClosedError, CommitUnknownError

T = TypeVar("T")


class Lane:
    """Started by the first use. `run` may be called from any thread but its own."""

    def __init__(self, make_engine: Callable[[], AsyncEngine]) -> None:
        self._make_engine = make_engine
        self._gate = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._engine: AsyncEngine | None = None
        self._closed = False

    def run(self, work: Callable[[AsyncEngine], Coroutine[Any, Any, T]], within_s: float) -> T:
        """Blocks until it is done.

        Raises:
            CommitUnknownError: not done within this time.
        """
        loop, engine = self._started()
        future = asyncio.run_coroutine_threadsafe(_outcome(work(engine)), loop)
        try:
            outcome = future.result(within_s)
        except FutureTimeoutError:
            future.cancel()
            raise CommitUnknownError(f"the database did not answer within {within_s:g} s") from None
        if isinstance(outcome, _Failed):
            raise outcome.error
        return outcome

    def _started(self) -> tuple[asyncio.AbstractEventLoop, AsyncEngine]:
        with self._gate:
            if self._closed:
                raise ClosedError("the database is closed")
            if self._loop is None or self._engine is None:
                self._engine = self._make_engine()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="livetape-postgres-urgent", daemon=True
                )
                self._thread.start()
            return self._loop, self._engine

    def close(self) -> None:
        """Blocks. Idempotent."""
        with self._gate:
            self._closed = True
            loop, thread, engine = self._loop, self._thread, self._engine
            self._loop = self._thread = self._engine = None
        if loop is None or thread is None or engine is None:
            return
        asyncio.run_coroutine_threadsafe(_end(engine), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


async def _outcome(work: Coroutine[Any, Any, T]) -> T | _Failed:
    """How it went, as a value: of work that was given up because of its time, nobody would fetch an exception."""
    try:
        return await work
    except Exception as error:
        return _Failed(error)


async def _end(engine: AsyncEngine) -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await engine.dispose()
