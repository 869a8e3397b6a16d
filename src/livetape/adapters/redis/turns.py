"""Work that is done one after the other per key, and at the same time for different keys."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from livetape.adapters.redis.stop import stop

Work: TypeAlias = Callable[[], Awaitable[Any]]


class Turns:
    """At most `parallel` pieces of work at a time; `refused` makes what is raised for those that `close` ends."""

    def __init__(self, parallel: int, refused: Callable[[], Exception]) -> None:
        self._free = asyncio.Semaphore(parallel)
        self._refused = refused
        self._waiting: dict[str, deque[tuple[Work, asyncio.Future[Any]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def add(self, key: str, work: Work) -> asyncio.Future[Any]:
        """After everything that was added with this key. The future gives what the work returns or raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        if self._closed:
            done.set_exception(self._refused())
            return done
        line = self._waiting.get(key)
        if line is not None:
            line.append((work, done))
            return done
        self._waiting[key] = deque([(work, done)])
        task = loop.create_task(self._serve(key), name="livetape-redis-turn")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return done

    async def close(self) -> None:
        """What is not finished gets the refusal. Idempotent."""
        self._closed = True
        await stop(*self._tasks)
        for line in self._waiting.values():
            for _, done in line:
                if not done.done():
                    done.set_exception(self._refused())
        self._waiting.clear()

    async def _serve(self, key: str) -> None:
        line = self._waiting[key]
        while line and not self._closed:
            work, done = line[0]  # stays there while it runs, for `close`
            if not done.done():
                async with self._free:
                    try:
                        result = await work()
                    except Exception as error:
                        if not done.done():
                            done.set_exception(error)
                    else:
                        if not done.done():
                            done.set_result(result)
            line.popleft()
        if not line:
            del self._waiting[key]
