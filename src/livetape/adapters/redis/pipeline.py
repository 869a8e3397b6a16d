"""Commands over one pipelined connection of our own, made when it is needed and again when it broke."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NamedTuple

from livetape.adapters.redis.commands import Commands, LoginRefusedError, RedisLinkError, Word
from livetape.adapters.redis.connection import MAX_QUEUED_BYTES, Connection, pack_command
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.stop import stop
from livetape.errors import ConfigError
from livetape.events.backoff import Backoff
from livetape.observability import get_logger

logger = get_logger(__name__)

PATIENCE_S: Final = 1.0
LOOKS: Final = 8
"""In its patience a command is looked at so often. A loop that is too busy to connect does not look more often."""


class _Parked(NamedTuple):
    packed: bytes
    answer: asyncio.Future[Any]
    until: int
    """Given up with this look."""


class PipelinedCommands:
    """The `Commands` of one server: all tasks of the loop share a connection, nobody waits for anybody.

    All commands are carried out in the order of `send`, whatever their `key`. While there is no connection, a command
    waits for one up to `patience_s` seconds; when the server has been away for longer, only as long as an attempt
    lasts. A command that was handed to the system before the connection broke is never sent a second time.
    """

    def __init__(
        self,
        dialer: Dialer,
        *,
        patience_s: float = PATIENCE_S,
        backoff: Backoff | None = None,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._dialer = dialer
        self._patience_s = patience_s
        self._backoff = backoff or Backoff(longest=0.5)
        self._max_queued_bytes = max_queued_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Connection | None = None
        self._parked: deque[_Parked] = deque()
        self._parked_bytes = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._looks = 0
        self._connecting: asyncio.Task[None] | None = None
        self._dialing = False
        self._away_since: float | None = None
        self._problem = RedisLinkError(f"there is no connection to {dialer.endpoint} yet", sent=False)
        self._closed = False
        self._just_lost = False

    def send(self, words: Sequence[Word], key: str = "") -> Awaitable[Any]:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        packed = pack_command(words if type(words) is tuple else tuple(words))
        connection = self._connection
        if connection is not None:
            connection.submit(packed, answer)
        else:
            self._park(loop, packed, answer)
        return answer

    async def masters(self) -> Sequence[Commands]:
        return (self,)

    async def close(self) -> None:
        self._closed = True
        self._problem = RedisLinkError("the connection is closed", sent=False)
        await stop(self._connecting)
        self._refuse_parked()
        if self._connection is not None:
            await self._connection.close()

    # ---- without a connection --------------------------------------------------------------------------------------

    def _park(self, loop: asyncio.AbstractEventLoop, packed: bytes, answer: asyncio.Future[Any]) -> None:
        now = loop.time()
        resting = self._connecting is not None and not self._dialing
        long_away = self._away_since is not None and now - self._away_since > self._patience_s
        if self._just_lost and not self._closed:
            answer.set_exception(RedisLinkError("the connection broke just now", sent=False))
            return
        if self._closed or (resting and long_away):
            answer.set_exception(_again(self._problem))
            return
        if self._parked_bytes > self._max_queued_bytes:
            answer.set_exception(RedisLinkError("too much waits for a connection", sent=False))
            return
        # The next look may come at once, if there is one on its way.
        until = self._looks + LOOKS + (self._sweep_timer is not None)
        self._parked.append(_Parked(packed, answer, until))
        self._parked_bytes += len(packed)
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(self._patience_s / LOOKS, self._sweep, loop)
        if self._connecting is None:
            self._connecting = loop.create_task(self._connect(loop), name="livetape-redis-connect")
            self._connecting.add_done_callback(self._connected)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Who has waited long enough is told so."""
        self._sweep_timer = None
        self._looks += 1
        while self._parked and self._parked[0].until <= self._looks:
            self._refuse(self._parked.popleft())
        if self._parked:
            self._sweep_timer = loop.call_later(self._patience_s / LOOKS, self._sweep, loop)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until it is there, or nobody has waited for it during a whole attempt."""
        while self._parked and not self._is_closed():
            try:
                self._dialing = True
                connection = await self._dialer.dial(on_end=self._lost)
            except (RedisLinkError, ConfigError) as error:
                self._problem = error if isinstance(error, RedisLinkError) else RedisLinkError(str(error), sent=False)
                if self._away_since is None:
                    self._away_since = loop.time()
                    logger.warning("Redis: %s", error, extra={"action": "redis_unreachable"})
                hopeless = isinstance(error, LoginRefusedError | ConfigError)
                if hopeless or loop.time() - self._away_since > self._patience_s:
                    self._refuse_parked()
            else:
                if self._is_closed():  # and the cancellation was swallowed on the way
                    await connection.close()
                    return
                if self._use(connection):
                    return
            finally:
                self._dialing = False
            if self._is_closed():
                return
            await asyncio.sleep(self._backoff.next())

    def _is_closed(self) -> bool:
        return self._closed

    def _use(self, connection: Connection) -> bool:
        if not connection.alive:
            return False
        self._backoff.reset()
        self._away_since = None
        self._connection = connection
        parked = tuple(self._parked)
        self._parked.clear()
        self._parked_bytes = 0
        for waiting in parked:
            if not waiting.answer.done():
                connection.submit(waiting.packed, waiting.answer)
        return True

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            logger.error("connecting to Redis failed", exc_info=error)
            self._problem = RedisLinkError(f"connecting failed: {type(error).__name__}", sent=False)
            self._refuse_parked()

    def _lost(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            if connection.unanswered and self._loop is not None and not self._just_lost:
                # Those who wait for an answer learn of it in the loop's next round. What comes until then must not
                # leave before they have sent theirs again.
                self._just_lost = True
                self._loop.call_soon(self._lost_is_known)

    def _lost_is_known(self) -> None:
        self._just_lost = False

    def _refuse_parked(self) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        while self._parked:
            self._refuse(self._parked.popleft())

    def _refuse(self, waiting: _Parked) -> None:
        self._parked_bytes -= len(waiting.packed)
        if not waiting.answer.done():
            waiting.answer.set_exception(_again(self._problem))


def _again(problem: RedisLinkError) -> RedisLinkError:
    """One exception object must not be raised in several tasks: their tracebacks would pile up in it."""
    if isinstance(problem, LoginRefusedError):
        return LoginRefusedError(str(problem))
    return RedisLinkError(str(problem), sent=False)
