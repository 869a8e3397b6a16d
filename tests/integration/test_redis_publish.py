"""What publishing on Redis answers: who is counted, and what becomes of many messages at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from livetape.adapters.redis.bus import RedisBus
from livetape.adapters.redis.commands import RedisLinkError, RedisReplyError, Word
from livetape.adapters.redis.connection import Connection
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.endpoint import Endpoint
from livetape.adapters.redis.locate import locator_of
from livetape.adapters.redis.pipeline import PipelinedCommands
from livetape.errors import BusUnavailableError, ChannelError
from livetape.events.bus import BusMessage, Subscription

PATIENCE_S = 20.0


class GatedDialer(Dialer):
    """Connects when it is let."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, locator_of(endpoint))
        self.gate = asyncio.Event()

    async def dial(self, **callbacks: Any) -> Connection:
        await self.gate.wait()
        return await super().dial(**callbacks)


class GatedCommands(PipelinedCommands):
    """What the server answers is known when it is let; some commands get an answer of the test's."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(Dialer(endpoint, locator_of(endpoint)))
        self.gate = asyncio.Event()
        self.gate.set()
        self.answered = asyncio.Event()
        self.errors: dict[str, Exception] = {}
        self.asked: list[asyncio.Future[Any]] = []

    def send(self, words: Sequence[Word], key: str = "") -> Awaitable[Any]:
        asked = asyncio.ensure_future(self._through(super().send(words, key), key))
        self.asked.append(asked)
        return asked

    async def _through(self, answer: Awaitable[Any], key: str) -> Any:
        if key in self.errors:
            raise self.errors[key]
        count = await answer
        self.answered.set()
        await self.gate.wait()
        return count


class Counts:
    """A Metrics that can be asked."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self.values[name] = self.values.get(name, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.values[name] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        self.values[name] = self.values.get(name, 0) + 1


class Rig:
    """A bus whose link and whose answers can be held up."""

    def __init__(self, url: str) -> None:
        endpoint = Endpoint.from_url(url)
        self.commands = GatedCommands(endpoint)
        self.dialer = GatedDialer(endpoint)
        self.metrics = Counts()
        self.bus = RedisBus(self.commands, self.dialer, add_s=PATIENCE_S, metrics=self.metrics)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Rig]:
    rig = Rig(url)
    try:
        yield rig
    finally:
        await rig.bus.close()
        await rig.commands.close()


async def following(subscription: Subscription) -> BusMessage:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(aiter(subscription))


async def test_who_is_not_confirmed_yet_is_not_counted(redis_url: str) -> None:
    async with opened(redis_url) as rig:
        adding = [asyncio.ensure_future(rig.bus.subscribe(pattern)) for pattern in ("p/a", "p/*", "p/a")]
        await asyncio.sleep(0)
        assert await rig.bus.publish("p/a", b"nobody") == 0
        assert await rig.bus.publish_many([("p/a", b"nobody"), ("p/b", b"nobody")]) == [0, 0]
        rig.dialer.gate.set()
        subscriptions = [await one for one in adding]
        assert await rig.bus.publish("p/a", b"all") == 3
        assert await rig.bus.publish_many([("p/b", b"one"), ("p/a", b"all")]) == [1, 3]
        assert [(await following(one)).data for one in subscriptions] == [b"all"] * 3


async def test_who_comes_after_the_message_is_not_counted(redis_url: str) -> None:
    """The server's confirmation comes over another connection than the count, and may overtake it."""
    async with opened(redis_url) as rig:
        rig.dialer.gate.set()
        first = await rig.bus.subscribe("p/x")
        rig.commands.gate.clear()
        publishing = [
            asyncio.ensure_future(rig.bus.publish("p/a", b"early")),
            asyncio.ensure_future(rig.bus.publish("p/x", b"early")),
        ]
        await rig.commands.answered.wait()
        late = [await rig.bus.subscribe(pattern) for pattern in ("p/a", "p/*", "p/x")]
        rig.commands.gate.set()
        assert [await one for one in publishing] == [0, 1]
        assert await rig.bus.publish("p/a", b"end") == 2
        assert [(await following(one)).data for one in (first, late[0], late[1])] == [b"early", b"end", b"end"]


async def test_who_has_gone_meanwhile_is_not_counted(redis_url: str) -> None:
    async with opened(redis_url) as rig:
        rig.dialer.gate.set()
        gone, stays = await rig.bus.subscribe("p/a"), await rig.bus.subscribe("p/*")
        rig.commands.gate.clear()
        publishing = asyncio.ensure_future(rig.bus.publish("p/a", b"x"))
        await rig.commands.answered.wait()
        await gone.close()
        rig.commands.gate.set()
        assert await publishing == 1
        assert (await following(stays)).data == b"x"


async def test_another_process_is_counted(redis_url: str) -> None:
    async with opened(redis_url) as rig, opened(redis_url) as other:
        rig.dialer.gate.set()
        other.dialer.gate.set()
        subscriptions = [await other.bus.subscribe("p/a", "p/*"), await rig.bus.subscribe("p/a")]
        assert await rig.bus.publish("p/a", b"x") == 3, "it has two copies sent to it"
        assert await rig.bus.publish_many([("p/a", b"y"), ("p/b", b"y")]) == [3, 1]
        assert [(await following(one)).data for one in subscriptions] == [b"x", b"x"]


async def test_whoever_waits_until_somebody_listens_is_heard(redis_url: str) -> None:
    async with opened(redis_url) as rig:
        rig.dialer.gate.set()
        for number in range(100):
            adding = asyncio.ensure_future(rig.bus.subscribe(f"p/{number}"))
            async with asyncio.timeout(PATIENCE_S):
                while not await rig.bus.publish(f"p/{number}", b"x"):
                    await asyncio.sleep(0)
            async with await adding as subscription:
                assert (await following(subscription)).data == b"x"


async def test_of_many_some_fail(redis_url: str) -> None:
    async with opened(redis_url) as rig:
        rig.commands.errors = {
            "p/gone": RedisLinkError("the link broke", sent=True),
            "p/no": RedisReplyError("NOPERM no"),
            "p/busy": RedisReplyError("LOADING"),
        }
        channels = ["p/a", "p/gone", "p/*", "p/no", "p/busy", "p/\ud800", "p/a"]
        outcomes = await rig.bus.publish_many([(channel, b"x") for channel in channels])
        assert [type(one) for one in outcomes] == [
            int,
            BusUnavailableError,
            ChannelError,
            ChannelError,
            BusUnavailableError,
            UnicodeEncodeError,
            int,
        ]


async def test_many_that_are_given_up_leave_nothing_behind(redis_url: str) -> None:
    async with opened(redis_url) as rig:
        rig.commands.gate.clear()
        publishing = asyncio.ensure_future(rig.bus.publish_many([("p/a", b"x")] * 10))
        await rig.commands.answered.wait()
        publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled()
        await asyncio.wait(rig.commands.asked)
        assert all(asked.cancelled() for asked in rig.commands.asked)


async def test_many_are_measured_too(redis_url: str) -> None:
    async with opened(redis_url) as rig:
        await rig.bus.publish_many([("p/a", b"four")] * 200)
        await rig.bus.publish_many([("p/a", b"four")] * 10)
        await rig.bus.close()
        assert rig.metrics.values["bus_published_total"] == 210
        assert rig.metrics.values["bus_published_bytes_total"] == 840
        assert rig.metrics.values["bus_publish_seconds"] == 1
