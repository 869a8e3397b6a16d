"""The one connection of a bus that listens: supervised, and made again with everything it listened to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias

from livetape.adapters.redis.commands import RedisLinkError, RedisReplyError
from livetape.adapters.redis.connection import Connection
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.sources import own_pattern, server_name
from livetape.adapters.redis.stop import stop
from livetape.errors import BusError, BusUnavailableError, ChannelError, ClosedError, ConfigError
from livetape.events.backoff import Backoff
from livetape.events.channel import is_pattern, probe_channel
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

State: TypeAlias = Literal["connecting", "listening", "lost", "closed"]

PROBE_S: Final = 5.0
MISSED_PROBES: Final = 2
_BATCH: Final = 1000
"""So many channels are asked for again in one go."""
_CONFIRMATIONS: Final = frozenset({b"subscribe", b"psubscribe", b"unsubscribe", b"punsubscribe"})


class Listener(Protocol):
    """Told of everything that comes over the link, in the server's order."""

    def arrived(self, pushes: Sequence[list[Any]], one: Callable[[list[Any]], None]) -> None:
        """What came together. Each is either a copy that the listener knows what to do with, or given to `one`."""
        ...

    def message(self, source: bytes | None, channel: bytes, data: bytes) -> None:
        """A copy of a message: `source` is the pattern that it matched, None for the exact channel."""
        ...

    def changed(self, pattern: str, confirmed: bool) -> None:
        """The server's confirmation, at its place between the copies."""
        ...

    def listening(self, *, again: bool) -> None:
        """Everything that is wanted is listened to; `again` when it was so before."""
        ...

    def lost(self) -> None:
        """Nothing is listened to. May come several times."""
        ...


class Link:
    """Keeps listening to a set of channels and patterns, whatever becomes of the connection.

    Every `probe_s` seconds a probe is published on a channel of the link's own and must come back over it; after two
    that did not, the connection is made anew. `publish` sends the probe another way than over the link itself (in a
    cluster). Where the server refuses the channel, PING is the probe.
    """

    def __init__(
        self,
        dialer: Dialer,
        listener: Listener,
        identity: str,
        *,
        probe_s: float = PROBE_S,
        publish: Callable[[str, bytes], Awaitable[Any]] | None = None,
        on_beat: Callable[[], None] | None = None,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._dialer = dialer
        self._listener = listener
        self._probe_channel = probe_channel(identity)
        self._probe_name = self._probe_channel.encode()
        self._probe_s = probe_s
        self._publish = publish
        self._on_beat = on_beat
        self._backoff = backoff or Backoff(longest=2.0)
        self._metrics = metrics or NoMetrics()
        self._connection: Connection | None = None
        # What shall be listened to; the future is done while the server does so.
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self._echo: asyncio.Future[None] | None = None
        self._listened_before = False
        self.state: State = "connecting"
        self.problem = ""
        """Why there is no connection, in words; empty when there is one."""
        self.reconnects = 0

    def age(self) -> float:
        """Seconds since the server was last heard on this link; since the link was first wanted when it never was."""
        if self._task is None:
            return 0.0
        heard_at = self._heard_at if self._connection is None else self._connection.heard_at
        return max(0.0, asyncio.get_running_loop().time() - heard_at)

    # ---- what to listen to -----------------------------------------------------------------------------------------

    def want(self, pattern: str) -> None:
        """Listen to it from now on; nothing happens when it is wanted already.

        Raises:
            ClosedError: the link is closed.
        """
        if self.state == "closed":
            raise ClosedError("the bus is closed")
        if pattern in self._wanted:
            return
        loop = asyncio.get_running_loop()
        confirmed: asyncio.Future[None] = loop.create_future()
        self._wanted[pattern] = confirmed
        if self._task is None:
            self._heard_at = loop.time()
            self._task = loop.create_task(self._run(), name="livetape-redis-link")
        elif self._connection is not None:
            self._subscribe(self._connection, pattern, confirmed)

    async def confirmed(self, pattern: str) -> None:
        """Wait until the server listens to a wanted pattern.

        Raises:
            BusError: the server refuses it.
            ClosedError: the link was closed, or the pattern is not wanted any more.
        """
        while True:
            waiting = self._wanted.get(pattern)
            if waiting is None:
                raise ClosedError("the bus is closed" if self.state == "closed" else "it was removed meanwhile")
            if waiting.done():
                return waiting.result()
            await asyncio.wait({waiting})

    def unwant(self, pattern: str) -> asyncio.Future[Any] | None:
        """Stop listening to it. The future is done when the server has stopped; None when that is so already."""
        confirmed = self._wanted.pop(pattern, None)
        if confirmed is None:
            return None
        confirmed.cancel()
        connection = self._connection
        if connection is None or not connection.alive:
            return None
        answer = connection.call("PUNSUBSCRIBE" if is_pattern(pattern) else "UNSUBSCRIBE", server_name(pattern))
        answer.add_done_callback(_seen)
        return answer

    # ---- life ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Idempotent."""
        self.state = "closed"
        waiting = tuple(self._wanted.values())
        self._wanted.clear()
        for confirmed in waiting:
            confirmed.cancel()
        await stop(self._task)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_closed():
            listened_at: float | None = None
            try:
                connection = await self._dialer.dial(on_pushes=self._pushed)
                try:
                    connection.plain_pushes = connection.resp2
                    self._connection = connection
                    await self._subscribe_all(connection)
                    if self._is_closed():  # and the cancellation was swallowed on the way
                        return
                    listened_at = loop.time()
                    self._now_listening()
                    await self._watch(connection)
                finally:
                    self._connection = None
                    self._heard_at = connection.heard_at
                    await connection.close()
            except (RedisLinkError, RedisReplyError, ConfigError) as error:
                self._now_lost(str(error))
            except Exception as error:
                logger.exception("the link to Redis failed", extra={"action": "bus_link_failed"})
                self._metrics.count("internal_errors_total", part="bus")
                self._now_lost(type(error).__name__)
            if listened_at is not None and loop.time() - listened_at > self._probe_s:
                self._backoff.reset()
            if not self._is_closed():
                await asyncio.sleep(self._backoff.next())

    def _is_closed(self) -> bool:
        return self.state == "closed"

    def _now_listening(self) -> None:
        again, self._listened_before = self._listened_before, True
        self.state = "listening"
        self.problem = ""
        if again:
            self.reconnects += 1
            logger.info("listening to Redis again", extra={"action": "bus_link_back"})
        self._listener.listening(again=again)

    def _now_lost(self, problem: str) -> None:
        if self.state == "closed":
            return
        if problem != self.problem:
            logger.warning("the link to Redis: %s", problem, extra={"action": "bus_link_lost"})
        self.problem = problem
        if self.state == "listening":
            self.state = "lost"
        loop = asyncio.get_running_loop()
        for pattern, confirmed in self._wanted.items():
            if confirmed.done():
                self._wanted[pattern] = loop.create_future()
        self._listener.lost()

    # ---- subscribing -----------------------------------------------------------------------------------------------

    async def _subscribe_all(self, connection: Connection) -> None:
        patterns = tuple(self._wanted)
        for begin in range(0, len(patterns), _BATCH):
            answers = [
                self._subscribe(connection, pattern, self._wanted[pattern])
                for pattern in patterns[begin : begin + _BATCH]
                if pattern in self._wanted
            ]
            if answers:
                await asyncio.wait(answers)
            _check(connection)

    def _subscribe(self, connection: Connection, pattern: str, confirmed: asyncio.Future[None]) -> asyncio.Future[Any]:
        def answered(answer: asyncio.Future[Any]) -> None:
            error = None if answer.cancelled() else answer.exception()
            if confirmed.done() or isinstance(error, RedisLinkError):
                return  # nobody wants it any more, or it will be asked for again
            if error is None:
                confirmed.set_result(None)
                return
            logger.error("Redis refuses to listen to %s: %s", pattern, error, extra={"action": "bus_refused"})
            confirmed.set_exception(_refusal(error, pattern))
            confirmed.exception()  # seen: when a link came back nobody may be waiting for it

        answer = connection.call("PSUBSCRIBE" if is_pattern(pattern) else "SUBSCRIBE", server_name(pattern))
        answer.add_done_callback(answered)
        return answer

    def _pushed(self, pushes: Sequence[list[Any]]) -> None:
        """Everything the server sends by itself, in its order: so much of it as arrived together."""
        self._listener.arrived(pushes, self._push)

    def _push(self, push: list[Any]) -> None:
        kind = push[0]
        if kind == b"message":
            if push[1] == self._probe_name:
                if self._echo is not None and not self._echo.done():
                    self._echo.set_result(None)
            else:
                self._listener.message(None, push[1], push[2])
        elif kind == b"pmessage":
            if push[2] != self._probe_name:
                self._listener.message(push[1], push[2], push[3])
        elif self._connection is None:
            pass
        elif kind in _CONFIRMATIONS:
            patterns = kind in {b"psubscribe", b"punsubscribe"}
            pattern = own_pattern(push[1]) if patterns else push[1].decode("utf-8", "replace")
            self._listener.changed(pattern, kind in {b"subscribe", b"psubscribe"})
            self._connection.answer(None)
        elif kind == b"pong":  # RESP2
            self._connection.answer(None)

    # ---- watching --------------------------------------------------------------------------------------------------

    async def _watch(self, connection: Connection) -> None:
        """Returns never.

        Raises:
            RedisLinkError: the connection is over, or does not work.
        """
        loop = asyncio.get_running_loop()
        echo = await self._may_echo(connection)
        missed = 0
        while True:
            begun = loop.time()
            try:
                async with asyncio.timeout(self._probe_s):
                    echo = await self._probe(connection, echo=echo)
                missed = 0
            except TimeoutError:
                missed += 1
            _check(connection)
            if missed >= MISSED_PROBES:
                raise RedisLinkError(f"{missed} probes did not come back", sent=True)
            if self._on_beat is not None:
                self._on_beat()
            await asyncio.wait({connection.ended}, timeout=max(0.0, begun + self._probe_s - loop.time()))
            _check(connection)

    async def _may_echo(self, connection: Connection) -> bool:
        if connection.resp2:  # it may not publish while it listens
            return False
        try:
            await connection.call("SUBSCRIBE", self._probe_channel)
        except RedisReplyError:
            return False
        return True

    async def _probe(self, connection: Connection, *, echo: bool) -> bool:
        """One round trip. Returns whether the next one may go through the channel."""
        if echo:
            self._echo = asyncio.get_running_loop().create_future()
            try:
                if self._publish is None:
                    await connection.call("PUBLISH", self._probe_channel, "?")
                else:
                    await self._publish(self._probe_channel, b"?")
            except RedisReplyError:
                echo = False
            except RedisLinkError:
                if self._publish is None:
                    raise
                # It cannot be sent the other way at present; that tells nothing about this link.
            else:
                await asyncio.wait({self._echo, connection.ended}, return_when=asyncio.FIRST_COMPLETED)
                return True
        await connection.call("PING")
        return echo


def _check(connection: Connection) -> None:
    """Raises what ended it, if it ended."""
    if not connection.alive:
        raise RedisLinkError(connection.reason, sent=True)


def _seen(answer: asyncio.Future[Any]) -> None:
    """Nobody need wait for it."""
    if not answer.cancelled():
        answer.exception()


def _refusal(error: BaseException, pattern: str) -> BusError:
    if isinstance(error, RedisReplyError) and error.code == "NOPERM":
        return ChannelError("the user of the Redis URL may not listen to this channel", channel=pattern)
    return BusUnavailableError(f"the server refuses to listen: {error}", channel=pattern)
