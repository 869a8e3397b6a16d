"""Buses that break one promise each. The suite must fail every one of them; so must yours, if you write one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from livetape.adapters.memory.bus import MemoryBus
from livetape.events.bus import Bus, BusMessage, ExpressSink, Sink, Subscription
from livetape.events.channel import is_pattern, matches


class SoftSubscription(Subscription):
    """A small, plain subscription whose steps can be overridden."""

    def __init__(self, bus: SoftBus, sink: Sink | None = None) -> None:
        self.bus = bus
        self.sink = sink
        self.patterns: list[str] = []
        self.queue: asyncio.Queue[BusMessage | None] = asyncio.Queue()
        self.batch: list[BusMessage] = []
        self.closed = False

    def put(self, message: BusMessage) -> None:
        """Let it wait: for the reader, or for the next turn of the loop."""
        if self.sink is None:
            self.queue.put_nowait(message)
            return
        if not self.batch:
            asyncio.get_running_loop().call_soon(self.hand_over, self.sink)
        self.batch.append(message)

    def hand_over(self, sink: Sink) -> None:
        batch, self.batch = self.batch, []
        if not self.closed:
            sink(batch)

    async def add(self, *patterns: str) -> None:
        self.patterns += [pattern for pattern in patterns if pattern not in self.patterns]

    async def remove(self, *patterns: str) -> None:
        self.patterns = [pattern for pattern in self.patterns if pattern not in patterns]

    async def __aiter__(self) -> AsyncIterator[BusMessage]:
        while not self.closed and (message := await self.queue.get()) is not None:
            yield message

    async def close(self) -> None:
        self.closed = True
        self.patterns = []
        self.queue.put_nowait(None)


class SoftBus(MemoryBus):
    """Unbounded and simple; the broken ones change one method."""

    subscription_class: type[SoftSubscription] = SoftSubscription

    def __init__(self) -> None:
        super().__init__()
        self.all: list[SoftSubscription] = []

    def matches(self, pattern: str, channel: str) -> bool:
        return matches(pattern, channel)

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        for message in messages:
            subscription.put(message)

    async def publish(self, channel: str, data: bytes) -> int:
        await super().publish(channel, data)
        found = [s for s in self.all if any(self.matches(pattern, channel) for pattern in s.patterns)]
        for subscription in found:
            self.deliver(subscription, [BusMessage(channel, data)])
        return len(found)

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        await (await super().subscribe()).close()  # refuses when the bus is closed
        subscription = self.subscription_class(self, sink)
        await subscription.add(*patterns)
        self.all.append(subscription)
        return subscription

    async def close(self) -> None:
        await super().close()
        for subscription in self.all:
            await subscription.close()


class LosesOne(SoftBus):
    """The tenth message of each subscription is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        self.count += 1
        if self.count != 10:
            super().deliver(subscription, messages)


class DoublesOne(LosesOne):
    """The tenth message comes twice."""

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        again = list(messages)
        super().deliver(subscription, again)
        if self.count in {10, 11}:
            SoftBus.deliver(self, subscription, again)


class SwapsTwo(SoftBus):
    """Every eleventh message overtakes the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.held: list[BusMessage] = []

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        self.count += 1
        if self.count == 10:
            self.held = list(messages)
        else:
            super().deliver(subscription, [*messages, *self.held])
            self.held = []


class CrossesLevels(SoftBus):
    """A `*` also matches `/`, as in Redis' own patterns."""

    def matches(self, pattern: str, channel: str) -> bool:
        return fnmatchcase(channel, pattern) if is_pattern(pattern) else pattern == channel


class WholeLevelsOnly(SoftBus):
    """A `*` is a wildcard only when it is a level of its own."""

    def matches(self, pattern: str, channel: str) -> bool:
        if any("*" in level and level != "*" for level in pattern.split("/")):
            return pattern == channel
        return matches(pattern, channel)


class LoneStarIsOneLevel(SoftBus):
    """The key `*` does not match keys of several levels."""

    def matches(self, pattern: str, channel: str) -> bool:
        return matches(pattern, channel) and pattern.count("/") == channel.count("/")


class OncePerPattern(SoftBus):
    """A message comes as often as there are patterns that match it."""

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        for message in messages:
            for _ in (pattern for pattern in subscription.patterns if matches(pattern, message.channel)):
                super().deliver(subscription, [message])


class Remembers(SoftBus):
    """Who listens later gets the last message of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, BusMessage] = {}

    async def publish(self, channel: str, data: bytes) -> int:
        self.kept[channel] = BusMessage(channel, data)
        return await super().publish(channel, data)

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        subscription = await super().subscribe(*patterns, sink=sink)
        assert isinstance(subscription, SoftSubscription)
        self.deliver(subscription, [m for c, m in self.kept.items() if any(matches(p, c) for p in patterns)])
        return subscription


class _LateSubscription(SoftSubscription):
    async def add(self, *patterns: str) -> None:
        asyncio.get_running_loop().call_soon(self.patterns.extend, patterns)


class ListensLate(SoftBus):
    """`add` returns before the bus delivers."""

    subscription_class = _LateSubscription


class _StickySubscription(SoftSubscription):
    async def remove(self, *patterns: str) -> None:
        pass


class ForgetsRemove(SoftBus):
    """A removed channel goes on."""

    subscription_class = _StickySubscription


class PublishesToPatterns(SoftBus):
    """A `*` in a published channel is taken as a name."""

    async def publish(self, channel: str, data: bytes) -> int:
        if is_pattern(channel):
            return 0
        return await super().publish(channel, data)


class CountsNobody(SoftBus):
    """`publish` always returns 0."""

    async def publish(self, channel: str, data: bytes) -> int:
        await super().publish(channel, data)
        return 0


class SendsBackwards(SoftBus):
    """Of many at once the last goes first."""

    async def publish_many(self, messages: Sequence[tuple[str, bytes]]) -> Sequence[int | BaseException]:
        return (await super().publish_many(messages[::-1]))[::-1]


class StopsAtTheFirst(SoftBus):
    """One refusal is that of all who come after it."""

    async def publish_many(self, messages: Sequence[tuple[str, bytes]]) -> Sequence[int | BaseException]:
        return [await self.publish(channel, data) for channel, data in messages]


class LosesSilently(MemoryBus):
    """Bounded, but without a marker where messages were lost."""

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        return _WithoutMarkers(await super().subscribe(*patterns, sink=sink))


class _WithoutMarkers(Subscription):
    def __init__(self, inner: Subscription) -> None:
        self.inner = inner

    async def add(self, *patterns: str) -> None:
        await self.inner.add(*patterns)

    async def remove(self, *patterns: str) -> None:
        await self.inner.remove(*patterns)

    async def __aiter__(self) -> AsyncIterator[BusMessage]:
        async for message in self.inner:
            if not message.gap:
                yield message

    async def close(self) -> None:
        await self.inner.close()


class Unbounded(SoftBus):
    """Memory grows with a reader that does not read."""


class _EndlessSubscription(SoftSubscription):
    async def close(self) -> None:
        self.patterns = []


class NeverEnds(SoftBus):
    """`close` leaves the iteration waiting."""

    subscription_class = _EndlessSubscription


class GoesOnAfterClose(SoftBus):
    """A closed bus still publishes."""

    async def publish(self, channel: str, data: bytes) -> int:
        if self._closed:
            return 0
        return await super().publish(channel, data)


class _LateSink(SoftSubscription):
    async def add(self, *patterns: str) -> None:
        if self.sink is None:
            await super().add(*patterns)
        else:
            asyncio.get_running_loop().call_soon(self.patterns.extend, patterns)


class ListensLateForSinks(SoftBus):
    """With a sink, `subscribe` returns before the bus delivers."""

    subscription_class = _LateSink


class _TurnedRound(SoftSubscription):
    def hand_over(self, sink: Sink) -> None:
        self.batch.reverse()
        super().hand_over(sink)


class HandsOverBackwards(SoftBus):
    """The newest of a batch comes first."""

    subscription_class = _TurnedRound


class _WithoutTheLast(SoftSubscription):
    def hand_over(self, sink: Sink) -> None:
        if len(self.batch) > 1:
            self.batch.pop()
        super().hand_over(sink)


class LosesTheLastOfABatch(SoftBus):
    """Of several that come together the last is lost."""

    subscription_class = _WithoutTheLast


class SinkOncePerPattern(OncePerPattern):
    """A sink gets a message as often as there are patterns that match it."""

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        if subscription.sink is None:
            SoftBus.deliver(self, subscription, messages)
        else:
            super().deliver(subscription, messages)


class _EachAlone(SoftSubscription):
    def hand_over(self, sink: Sink) -> None:
        batch, self.batch = self.batch, []
        for message in batch:
            if not self.closed:
                sink([message])


class HandsOverEachAlone(SoftBus):
    """A call for each message."""

    subscription_class = _EachAlone


class CountsNoSink(SoftBus):
    """`publish` does not count who listens with a sink."""

    async def publish(self, channel: str, data: bytes) -> int:
        count = await super().publish(channel, data)
        sinks = [s for s in self.all if s.sink is not None and any(matches(pattern, channel) for pattern in s.patterns)]
        return count - len(sinks)


class _StickySink(SoftSubscription):
    async def remove(self, *patterns: str) -> None:
        if self.sink is None:
            await super().remove(*patterns)


class ForgetsRemoveForSinks(SoftBus):
    """A sink goes on to get what was removed."""

    subscription_class = _StickySink


class _ToBoth(SoftSubscription):
    def put(self, message: BusMessage) -> None:
        super().put(message)
        if self.sink is not None:
            self.queue.put_nowait(message)


class YieldsBesideTheSink(SoftBus):
    """The subscription yields what the sink was given."""

    subscription_class = _ToBoth


class _LastWords(SoftSubscription):
    async def close(self) -> None:
        if self.sink is not None and not self.closed:
            last = [BusMessage("suite/a", b"last words")]
            asyncio.get_running_loop().call_soon(self.sink, last)
        await super().close()


class CallsAfterClose(SoftBus):
    """A sink is called once more when its subscription is closed already."""

    subscription_class = _LastWords

    async def close(self) -> None:
        for subscription in self.all:
            subscription.sink = None
        await super().close()


class CallsAfterTheEnd(SoftBus):
    """A sink is called once more when the bus is closed already."""

    async def close(self) -> None:
        for subscription in self.all:
            if subscription.sink is not None and not subscription.closed:
                last = [BusMessage("suite/a", b"last words")]
                asyncio.get_running_loop().call_soon(subscription.sink, last)
        await super().close()


class LanesAndSink(SoftBus):
    """What a lane took is handed to the sink, too."""

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        for message in messages:
            self.offer(subscription, message)
            super().deliver(subscription, [message])

    def offer(self, subscription: SoftSubscription, message: BusMessage) -> bool:
        """To the lane, if there is one."""
        lanes = subscription.sink.lanes if isinstance(subscription.sink, ExpressSink) else {}
        lane = lanes.get(message.channel.encode())
        return lane is not None and lane(message.data)


class LanesAlone(LanesAndSink):
    """What one listener's lane took, nobody else gets."""

    async def publish(self, channel: str, data: bytes) -> int:
        message = BusMessage(channel, data)
        if any(self.offer(subscription, message) for subscription in self.all):
            return 1
        return await super().publish(channel, data)

    def deliver(self, subscription: SoftSubscription, messages: Iterable[BusMessage]) -> None:
        SoftBus.deliver(self, subscription, messages)


BROKEN_BUSES: Final[Mapping[Callable[[], Bus], str]] = {
    LosesOne: "test_no_message_is_lost_or_doubled_without_a_marker",
    DoublesOne: "test_no_message_is_lost_or_doubled_without_a_marker",
    SwapsTwo: "test_messages_of_one_channel_arrive_in_the_order_of_publication",
    CrossesLevels: "test_a_star_at_the_end_does_not_cross_a_slash",
    WholeLevelsOnly: "test_a_star_matches_part_of_a_level",
    LoneStarIsOneLevel: "test_a_star_as_the_whole_key_matches_every_key_of_the_bus",
    OncePerPattern: "test_a_message_comes_once_even_when_several_patterns_match",
    Remembers: "test_a_message_published_before_listening_is_not_kept",
    ListensLate: "test_a_message_published_after_add_returned_is_yielded",
    ForgetsRemove: "test_a_removed_channel_is_silent",
    PublishesToPatterns: "test_a_star_in_a_published_channel_is_refused",
    CountsNobody: "test_publish_returns_how_many_listened",
    SendsBackwards: "test_many_at_once_arrive_in_order",
    StopsAtTheFirst: "test_of_many_each_has_its_own_outcome",
    LosesSilently: "test_a_reader_that_falls_behind_loses_the_oldest_and_gets_a_marker",
    Unbounded: "test_a_reader_that_falls_behind_loses_the_oldest_and_gets_a_marker",
    NeverEnds: "test_closing_a_subscription_ends_its_iteration",
    GoesOnAfterClose: "test_a_closed_bus_refuses",
    ListensLateForSinks: "test_a_sink_gets_what_is_published_after_subscribe_and_add_returned",
    HandsOverBackwards: "test_a_sink_gets_the_messages_of_a_channel_in_order",
    LosesTheLastOfABatch: "test_for_a_sink_nothing_is_lost_or_doubled",
    SinkOncePerPattern: "test_a_sink_gets_a_message_once_even_when_several_patterns_match",
    HandsOverEachAlone: "test_a_sink_gets_what_comes_together_in_one_call",
    LanesAndSink: "test_what_a_lane_takes_comes_no_other_way_and_is_counted",
    LanesAlone: "test_lanes_take_nothing_away_from_others",
    CountsNoSink: "test_a_sink_counts_as_one_who_listens",
    ForgetsRemoveForSinks: "test_a_sink_hears_nothing_of_a_removed_channel",
    YieldsBesideTheSink: "test_a_subscription_with_a_sink_yields_nothing_and_ends_when_closed",
    CallsAfterClose: "test_a_sink_is_not_called_after_its_subscription_is_closed",
    CallsAfterTheEnd: "test_a_sink_is_not_called_after_the_bus_is_closed",
}
"""Every one fails `BusSuite`, at least in the case that is named here."""
