"""The Bus on Redis pub/sub: publishing through Commands, listening over one supervised link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from livetape.adapters.redis.client import ClusterCommands
from livetape.adapters.redis.commands import Commands, RedisLinkError, RedisReplyError
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.failures import passes
from livetape.adapters.redis.link import PROBE_S, Link, State
from livetape.adapters.redis.router import Route, Router
from livetape.clock import new_id
from livetape.errors import BusError, BusUnavailableError, ChannelError, ClosedError
from livetape.events.answer_limit import AnswerLimit
from livetape.events.bus import Bus, BusMessage, Sink, Subscription
from livetape.events.funnel import Funnel
from livetape.events.inbox import DEFAULT_MAX_BYTES, DEFAULT_MAX_MESSAGES, Inbox
from livetape.events.outlet import Outlet
from livetape.observability import Metrics, NoMetrics

ADD_S: Final = 5.0
_HAND_ON_S: Final = 1.0
_SAMPLE: Final = 63
"""Every 64th publication is timed; of those that leave together, the lot that it is in."""
_COUNTS: Final = (
    "bus_published_total",
    "bus_published_bytes_total",
    "bus_delivered_total",
    "bus_messages_total",
    "bus_reconnects_total",
)


class RedisBus(Bus):
    """Redis or Valkey, alone, under Sentinel or as a cluster. Opened by `livetape.events.open`.

    All subscriptions share one connection, which is watched and made again when it fails; every subscription then
    gets a gap marker with an empty channel. While it is away, `add` waits up to `add_s` seconds and then gives up.

    `publish` returns how many listened as far as the server knows: each subscription of this bus counts once, from when
    the server has confirmed it, another process once per channel or pattern of its own that matches. A cluster knows
    only who listens at the node that was asked, so there it may be fewer than it is.
    """

    def __init__(
        self,
        commands: Commands,
        dialer: Dialer,
        *,
        metrics: Metrics | None = None,
        max_messages: int = DEFAULT_MAX_MESSAGES,
        max_bytes: int = DEFAULT_MAX_BYTES,
        add_s: float = ADD_S,
        probe_s: float = PROBE_S,
    ) -> None:
        self._commands = commands
        self._metrics = metrics or NoMetrics()
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._add_s = add_s
        self._router = Router(metrics=self._metrics)
        self._link = Link(
            dialer,
            self._router,
            new_id(),
            probe_s=probe_s,
            publish=commands.publish_from_afar if isinstance(commands, ClusterCommands) else None,
            on_beat=self._hand_on,
            metrics=self._metrics,
        )
        if isinstance(commands, ClusterCommands):
            commands.listens_at = lambda: dialer.reached
        self._subscriptions: set[RedisSubscription] = set()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._published = 0
        self._published_bytes = 0
        self._delivered = 0
        self._handed_on = [0, 0, 0, 0, 0]

    @property
    def state(self) -> State:
        """Of the link that listens: `connecting` until it first listened, `lost` while it is away after that."""
        return self._link.state

    @property
    def problem(self) -> str:
        """Why the link does not listen, in words; empty when it does or was never needed."""
        return self._link.problem

    def link_age(self) -> float:
        """Seconds since the server was last heard on the link that listens; rises past `2 * probe_s` only when it is
        away."""
        return self._link.age()

    async def publish(self, channel: str, data: bytes) -> int:
        self._check(channel)
        self._count(1, len(data))
        before = self._router.listened(channel)
        try:
            if self._published & _SAMPLE:
                count = await self._commands.send(("PUBLISH", channel, data), channel)
            else:
                count = await self._timed(channel, data)
        except (RedisLinkError, RedisReplyError) as error:
            raise _unpublished(error, channel) from error
        return self._receivers(before, count)

    async def publish_many(self, messages: Sequence[tuple[str, bytes]]) -> Sequence[int | BaseException]:
        """As the port says: all are handed to the link before the first answer is awaited, without a task for each."""
        sent: list[tuple[Route | None, asyncio.Future[Any]] | Exception] = []
        loop = asyncio.get_running_loop()
        begun, sampled = loop.time(), self._published // (_SAMPLE + 1)
        for channel, data in messages:
            try:
                self._check(channel)
                asked = asyncio.ensure_future(self._commands.send(("PUBLISH", channel, data), channel))
            except Exception as error:
                sent.append(error)
                continue
            self._count(1, len(data))
            sent.append((self._router.listened(channel), asked))
        outcomes: list[int | BaseException] = []
        try:
            for (channel, _), one in zip(messages, sent, strict=True):
                if isinstance(one, Exception):
                    outcomes.append(one)
                    continue
                before, answer = one
                try:
                    count = await answer
                except (RedisLinkError, RedisReplyError) as error:
                    outcomes.append(_unpublished(error, channel))
                except Exception as error:
                    outcomes.append(error)
                else:
                    outcomes.append(self._receivers(before, count))
            if self._published // (_SAMPLE + 1) > sampled:
                self._metrics.observe("bus_publish_seconds", loop.time() - begun)
        except BaseException:
            for one in sent:
                if not isinstance(one, Exception):
                    one[1].cancel()  # nobody waits for it any more
            raise
        return outcomes

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        """As the port says. A sink is handed all that one read of the link's socket brought in one call."""
        if self._closed:
            raise ClosedError("the bus is closed")
        outlet = self._inbox() if sink is None else Funnel(sink)
        subscription = RedisSubscription(self._router, self._link, outlet, self._add_s, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        self._router.open(outlet)
        try:
            await subscription.add(*patterns)
        except BaseException:
            await subscription.close()
            raise
        return subscription

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._link.close()
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        self._hand_on()

    def _check(self, channel: str) -> None:
        if self._closed:
            raise ClosedError("the bus is closed")
        if "*" in channel:
            raise ChannelError("a `*` cannot stand in a published channel", channel=channel)

    def _count(self, messages: int, size: int) -> None:
        self._published += messages
        self._published_bytes += size
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(_HAND_ON_S, self._hand_on)

    def _receivers(self, before: Route | None, count: int) -> int:
        """How many got it; counted."""
        receivers = int(count) if before is None else self._of_route(before, count)
        self._delivered += receivers
        return receivers

    def _of_route(self, before: Route, count: int) -> int:
        """Others as the server counts them, and those of ours who listened before it was sent and do so still.

        The server counts one of ours for each copy that it sends us, whoever of us wants it.
        """
        others = max(0, count - before.copies)
        now = self._router.route(before.channel.encode())
        if not before.copies or not now.copies:
            return others
        if now is before:
            return others + len(before.outlets)
        return others + len(set(before.outlets).intersection(now.outlets))

    async def _timed(self, channel: str, data: bytes) -> Any:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        count = await self._commands.send(("PUBLISH", channel, data), channel)
        self._metrics.observe("bus_publish_seconds", loop.time() - begun)
        return count

    def _inbox(self) -> Inbox:
        return Inbox(self._max_messages, self._max_bytes, on_drop=self._dropped)

    def _dropped(self, count: int) -> None:
        self._metrics.count("bus_dropped_total", count, reason="slow_reader")

    def _hand_on(self) -> None:
        """What was counted since the last time, and the state of the link."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counted = [
            self._published,
            self._published_bytes,
            self._delivered,
            self._router.messages,
            self._link.reconnects,
        ]
        for name, now, before in zip(_COUNTS, counted, self._handed_on, strict=True):
            if now > before:
                self._metrics.count(name, now - before)
        self._handed_on = counted
        if self._link.state != "closed":
            self._metrics.gauge("bus_link_age_seconds", self._link.age())


class RedisSubscription(Subscription):
    """See `RedisBus`. Messages wait in a bounded inbox, or are handed to a sink."""

    def __init__(
        self, router: Router, link: Link, outlet: Outlet, add_s: float, forget: Callable[[RedisSubscription], None]
    ) -> None:
        self._router = router
        self._link = link
        self._outlet = outlet
        self._add_s = add_s
        self._forget = forget
        self._patterns: set[str] = set()

    async def add(self, *patterns: str) -> None:
        """See `Subscription.add`; all of them or none.

        Raises:
            BusUnavailableError: the server did not confirm in time.
            ChannelError: the server does not let this user listen there.
            ClosedError: the subscription is closed.
        """
        if self._outlet.closed:
            raise ClosedError("the subscription is closed")
        new = [pattern for pattern in dict.fromkeys(patterns) if pattern not in self._patterns]
        try:
            for pattern in new:
                self._patterns.add(pattern)
                self._router.attach(pattern, self._outlet)
                self._link.want(pattern)
            async with AnswerLimit(self._add_s):
                for pattern in patterns:
                    await self._link.confirmed(pattern)
        except BaseException as error:
            self._detach(new)
            if isinstance(error, TimeoutError):
                because = self._link.problem or "no confirmation"
                raise BusUnavailableError(f"cannot listen after {self._add_s:g} s: {because}") from error
            raise

    async def remove(self, *patterns: str) -> None:
        stopped = self._detach([pattern for pattern in dict.fromkeys(patterns) if pattern in self._patterns])
        if stopped:
            await asyncio.wait(stopped)

    def __aiter__(self) -> AsyncIterator[BusMessage]:
        return self._outlet

    async def close(self) -> None:
        if self._outlet.closed:
            return
        self._outlet.close()
        self._router.close(self._outlet)
        self._forget(self)
        await self.remove(*tuple(self._patterns))

    def _detach(self, patterns: list[str]) -> list[asyncio.Future[Any]]:
        stopped = []
        for pattern in patterns:
            self._patterns.discard(pattern)
            if self._router.detach(pattern, self._outlet):
                stopping = self._link.unwant(pattern)
                if stopping is not None:
                    stopped.append(stopping)
        return stopped


def _unpublished(error: RedisLinkError | RedisReplyError, channel: str) -> BusError:
    """The error of the port for an error of the driver."""
    if isinstance(error, RedisReplyError) and error.code == "NOPERM":
        return ChannelError("the user of the Redis URL may not publish here", channel=channel)
    if not passes(error):
        return BusError(f"not published: {error}")
    return BusUnavailableError(f"not published: {error}")
