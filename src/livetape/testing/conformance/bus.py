"""What every Bus must do. Each case is a sentence of the docstrings in `livetape.events.bus`.

Subclass it in a test module and give the fixture:

    class TestMyBus(BusSuite):
        @pytest.fixture
        async def bus(self):
            async with closing(MyBus()) as bus:
                yield bus
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from livetape.errors import ChannelError, ClosedError
from livetape.events.bus import Bus, BusMessage, ExpressSink, Subscription


class Collected:
    """A sink that keeps what it is given, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[BusMessage]] = []
        self._called = asyncio.Event()

    def __call__(self, messages: Sequence[BusMessage]) -> None:
        self.calls.append(list(messages))
        self._called.set()

    @property
    def messages(self) -> list[BusMessage]:
        """All of them, in the order in which they came."""
        return [message for call in self.calls for message in call]

    @property
    def data(self) -> list[bytes]:
        """What was in them."""
        return [message.data for message in self.messages]

    async def reaches(self, count: int) -> None:
        """Wait until there are so many messages."""
        while len(self.messages) < count:
            self._called.clear()
            await self._called.wait()


class CollectedFast(Collected, ExpressSink):
    """The same with a lane for `suite/a`, which takes what is an even number."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = {b"suite/a": self._take}
        self.by_lane: list[bytes] = []
        self.told = 0

    def __call__(self, messages: Sequence[BusMessage], taken: int = 0, /) -> None:
        super().__call__(messages)
        self.told += taken

    def _take(self, data: bytes) -> bool:
        if not data.isdigit() or int(data) % 2:
            return False
        self.by_lane.append(data)
        return True


class BusSuite:
    """Cases for the Bus port. Channels are `suite/…`, so that an adapter on a shared server can prefix them."""

    patience_s = 5.0
    """How long a case waits for a message that must come."""

    flood = 30_000
    """So many messages to a subscription that nobody reads must overflow its buffer."""

    # ---- delivery --------------------------------------------------------------------------------------------------

    async def test_a_message_reaches_who_listens_to_its_channel(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as subscription:
            await bus.publish("suite/a", b"\x00 any bytes \xff")
            assert await self._take(subscription, 1) == [BusMessage("suite/a", b"\x00 any bytes \xff")]

    async def test_messages_of_one_channel_arrive_in_the_order_of_publication(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as subscription:
            for number in range(200):
                await bus.publish("suite/a", b"%d" % number)
            assert [m.data for m in await self._take(subscription, 200)] == [b"%d" % n for n in range(200)]

    async def test_no_message_is_lost_or_doubled_without_a_marker(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a", "suite/b") as subscription:
            for number in range(100):
                await bus.publish("suite/a", b"a%d" % number)
                await bus.publish("suite/b", b"b%d" % number)
            got = [m.data for m in await self._take(subscription, 200)]
            assert sorted(got) == sorted([b"a%d" % n for n in range(100)] + [b"b%d" % n for n in range(100)])
            await self._expect_silence(bus, subscription, "suite/a")

    async def test_every_subscription_gets_every_message(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as one, await bus.subscribe("suite/a") as other:
            await bus.publish("suite/a", b"x")
            assert [m.data for m in await self._take(one, 1)] == [b"x"]
            assert [m.data for m in await self._take(other, 1)] == [b"x"]

    async def test_a_message_published_before_listening_is_not_kept(self, bus: Bus) -> None:
        await bus.publish("suite/a", b"old")
        async with await bus.subscribe("suite/a") as subscription:
            await bus.publish("suite/a", b"new")
            assert [m.data for m in await self._take(subscription, 1)] == [b"new"]

    async def test_publish_returns_how_many_listened(self, bus: Bus) -> None:
        assert await bus.publish("suite/a", b"x") == 0
        async with await bus.subscribe("suite/a"):
            assert await bus.publish("suite/a", b"x") == 1
            async with await bus.subscribe("suite/a"):
                assert await bus.publish("suite/a", b"x") == 2

    # ---- many at once ----------------------------------------------------------------------------------------------

    async def test_many_at_once_arrive_in_order(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as subscription:
            assert list(await bus.publish_many([("suite/a", b"%d" % number) for number in range(150)])) == [1] * 150
            assert [m.data for m in await self._take(subscription, 150)] == [b"%d" % n for n in range(150)]

    async def test_of_many_each_has_its_own_outcome(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a", "suite/b"), await bus.subscribe("suite/b") as subscription:
            channels = ("suite/a", "suite/*", "suite/b", "suite/c", "suite/b")
            outcomes = await bus.publish_many([(channel, b"x") for channel in channels])
            assert [type(o) if isinstance(o, Exception) else o for o in outcomes] == [1, ChannelError, 2, 0, 2]
            assert len(await self._take(subscription, 2)) == 2
        assert list(await bus.publish_many([])) == []
        await bus.close()
        assert [type(o) for o in await bus.publish_many([("suite/a", b"x"), ("suite/b", b"x")])] == [ClosedError] * 2

    # ---- wildcards -------------------------------------------------------------------------------------------------

    async def test_a_star_matches_one_level(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a/*/c") as subscription:
            await bus.publish("suite/a/b/c", b"match")
            await bus.publish("suite/a/b/d", b"other level")
            await bus.publish("suite/a/b/b/c", b"one level more")
            await bus.publish("suite/a//c", b"empty level")
            await bus.publish("suite/a/x/c", b"end")
            assert await self._until(subscription, b"end") == [b"match", b"empty level"]

    async def test_a_star_at_the_end_does_not_cross_a_slash(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a/*") as subscription:
            await bus.publish("suite/a/b/c", b"deeper")
            await bus.publish("suite/a", b"higher")
            await bus.publish("suite/a/b", b"end")
            assert await self._until(subscription, b"end") == []

    async def test_a_star_matches_part_of_a_level(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/user_*/x") as subscription:
            await bus.publish("suite/user_1/x", b"match")
            await bus.publish("suite/guest_1/x", b"other")
            await bus.publish("suite/user_1/2/x", b"two levels")
            await bus.publish("suite/user_/x", b"end")
            assert await self._until(subscription, b"end") == [b"match"]

    async def test_a_star_as_the_whole_key_matches_every_key_of_the_bus(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/*") as subscription:
            await bus.publish("suite/a/b/c", b"deep")
            await bus.publish("suite2/a", b"another bus")
            await bus.publish("suite/a", b"end")
            assert await self._until(subscription, b"end") == [b"deep"]

    async def test_other_glob_characters_are_literal(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/[a-c]?/*") as subscription:
            await bus.publish("suite/bx/1", b"glob")
            await bus.publish("suite/[a-c]?/1", b"end")
            assert await self._until(subscription, b"end") == []

    async def test_a_channel_without_a_star_is_matched_exactly(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a.c") as subscription:
            await bus.publish("suite/abc", b"other")
            await bus.publish("suite/a.c/d", b"deeper")
            await bus.publish("suite/a.c", b"end")
            assert await self._until(subscription, b"end") == []

    async def test_a_message_comes_once_even_when_several_patterns_match(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/*", "suite/a/*", "suite/a/b", "suite/*/b") as subscription:
            await bus.publish("suite/a/b", b"once")
            await bus.publish("suite/a/b", b"end")
            assert await self._until(subscription, b"end") == [b"once"]
            await self._expect_silence(bus, subscription, "suite/a/b")

    async def test_a_star_in_a_published_channel_is_refused(self, bus: Bus) -> None:
        try:
            await bus.publish("suite/*", b"x")
        except ChannelError:
            return
        raise AssertionError("publishing to a pattern was not refused")

    # ---- a changing set --------------------------------------------------------------------------------------------

    async def test_a_message_published_after_add_returned_is_yielded(self, bus: Bus) -> None:
        async with await bus.subscribe() as subscription:
            for number in range(20):
                await subscription.add(f"suite/{number}")
                await bus.publish(f"suite/{number}", b"%d" % number)
            # Between channels there is no order.
            assert sorted(int(m.data) for m in await self._take(subscription, 20)) == list(range(20))

    async def test_add_works_while_another_task_waits_for_messages(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as subscription:
            waiting = asyncio.ensure_future(self._take(subscription, 1))
            await asyncio.sleep(0)
            await subscription.add("suite/b")
            await bus.publish("suite/b", b"b")
            assert [m.data for m in await waiting] == [b"b"]

    async def test_add_is_idempotent(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as subscription:
            await subscription.add("suite/a")
            await subscription.add("suite/a")
            await bus.publish("suite/a", b"once")
            await bus.publish("suite/a", b"end")
            assert await self._until(subscription, b"end") == [b"once"]
            await subscription.remove("suite/a")
            assert await bus.publish("suite/a", b"nobody") == 0

    async def test_a_removed_channel_is_silent(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a", "suite/b", "suite/*/c") as subscription:
            await subscription.remove("suite/a", "suite/*/c")
            await bus.publish("suite/a", b"removed")
            await bus.publish("suite/x/c", b"removed")
            await bus.publish("suite/b", b"end")
            assert await self._until(subscription, b"end") == []

    async def test_removing_what_is_unknown_is_ignored(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as subscription:
            await subscription.remove("suite/unknown", "suite/*/unknown")
            await bus.publish("suite/a", b"end")
            assert await self._until(subscription, b"end") == []

    async def test_subscriptions_are_independent(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as one, await bus.subscribe("suite/a") as other:
            await one.remove("suite/a")
            await bus.publish("suite/a", b"x")
            assert [m.data for m in await self._take(other, 1)] == [b"x"]
            await one.close()
            await bus.publish("suite/a", b"y")
            assert [m.data for m in await self._take(other, 1)] == [b"y"]

    # ---- sinks -----------------------------------------------------------------------------------------------------

    async def test_a_sink_gets_what_is_published_after_subscribe_and_add_returned(self, bus: Bus) -> None:
        got = Collected()
        async with await bus.subscribe("suite/a", sink=got) as subscription:
            await bus.publish("suite/a", b"\x00 any bytes \xff")
            await self._until_collected(got, 1)
            await subscription.add("suite/b")
            await bus.publish("suite/b", b"added")
            await self._until_collected(got, 2)
        assert got.messages == [BusMessage("suite/a", b"\x00 any bytes \xff"), BusMessage("suite/b", b"added")]

    async def test_a_sink_gets_the_messages_of_a_channel_in_order(self, bus: Bus) -> None:
        got = Collected()
        async with await bus.subscribe("suite/a", sink=got):
            await bus.publish_many([("suite/a", b"%d" % number) for number in range(150)])
            await self._until_collected(got, 150)
        assert got.data == [b"%d" % number for number in range(150)]

    async def test_for_a_sink_nothing_is_lost_or_doubled(self, bus: Bus) -> None:
        got = Collected()
        async with await bus.subscribe("suite/*", sink=got):
            for round_ in range(10):
                await bus.publish_many([(f"suite/{number}", b"%d-%d" % (round_, number)) for number in range(20)])
            await bus.publish("suite/end", b"end")
            await self._until_collected(got, 201)
            assert sorted(got.data) == sorted([b"end", *(b"%d-%d" % (r, n) for r in range(10) for n in range(20))])

    async def test_a_sink_gets_a_message_once_even_when_several_patterns_match(self, bus: Bus) -> None:
        got = Collected()
        async with await bus.subscribe("suite/*", "suite/a/*", "suite/a/b", "suite/*/b", sink=got):
            await bus.publish("suite/a/b", b"once")
            await bus.publish("suite/a/b", b"end")
            await self._until_collected(got, 2)
            assert got.data == [b"once", b"end"]

    async def test_a_sink_gets_what_comes_together_in_one_call(self, bus: Bus) -> None:
        got = Collected()
        async with await bus.subscribe("suite/*", sink=got):
            for _ in range(10):  # what comes together is up to the network, but it is not always each alone
                await bus.publish_many([(f"suite/{number}", b"x") for number in range(30)])
            await self._until_collected(got, 300)
        assert all(got.calls), "there is no call without a message"
        assert len(got.calls) < 300

    async def test_what_a_lane_takes_comes_no_other_way_and_is_counted(self, bus: Bus) -> None:
        got = CollectedFast()
        async with await bus.subscribe("suite/a", "suite/b", sink=got):
            numbers = [b"%d" % number for number in range(100)]
            await bus.publish_many([(channel, data) for data in numbers for channel in ("suite/a", "suite/b")])
            await bus.publish("suite/a", b"end")
            async with asyncio.timeout(self.patience_s):
                while b"end" not in got.data:
                    await got.reaches(len(got.messages) + 1)
        rest = [message.data for message in got.messages if message.channel == "suite/a"]
        assert sorted([*rest, *got.by_lane]) == sorted([*numbers, b"end"])
        assert [*got.by_lane] == sorted(got.by_lane, key=int), "in order"
        assert [data for data in rest if data.isdigit() and int(data) % 2] == numbers[1::2]
        assert got.told == len(got.by_lane)
        assert [message.data for message in got.messages if message.channel == "suite/b"] == numbers

    async def test_lanes_take_nothing_away_from_others(self, bus: Bus) -> None:
        fast, got = CollectedFast(), Collected()
        async with await bus.subscribe("suite/a", sink=fast), await bus.subscribe("suite/*", sink=got):
            await bus.publish_many([("suite/a", b"%d" % number) for number in range(50)])
            await self._until_collected(got, 50)
        assert got.data == [b"%d" % number for number in range(50)]
        assert sorted([*fast.data, *fast.by_lane], key=int) == got.data

    async def test_a_sink_counts_as_one_who_listens(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a", sink=Collected()):
            assert await bus.publish("suite/a", b"x") == 1
            async with await bus.subscribe("suite/a", sink=Collected()), await bus.subscribe("suite/a"):
                assert await bus.publish("suite/a", b"x") == 3

    async def test_a_sink_hears_nothing_of_a_removed_channel(self, bus: Bus) -> None:
        got = Collected()
        async with await bus.subscribe("suite/a", "suite/b", "suite/*/c", sink=got) as subscription:
            await subscription.remove("suite/a", "suite/*/c")
            for channel in ("suite/a", "suite/x/c", "suite/b"):
                await bus.publish(channel, channel.encode())
            await self._until_collected(got, 1)
            assert got.data == [b"suite/b"]

    async def test_a_subscription_with_a_sink_yields_nothing_and_ends_when_closed(self, bus: Bus) -> None:
        got = Collected()
        subscription = await bus.subscribe("suite/a", sink=got)
        reading = asyncio.ensure_future(self._drain(subscription))
        await bus.publish("suite/a", b"x")
        await self._until_collected(got, 1)
        assert not reading.done()
        await subscription.close()
        await subscription.close()
        assert await self._wait(reading) == []

    async def test_a_sink_is_not_called_after_its_subscription_is_closed(self, bus: Bus) -> None:
        got, other = Collected(), Collected()
        async with await bus.subscribe("suite/a", sink=other):
            subscription = await bus.subscribe("suite/a", sink=got)
            await bus.publish("suite/a", b"x")
            await subscription.close()
            before = len(got.messages)
            await bus.publish("suite/a", b"end")
            await self._until_collected(other, 2)
            await asyncio.sleep(0)
            assert len(got.messages) == before

    async def test_a_sink_is_not_called_after_the_bus_is_closed(self, bus: Bus) -> None:
        got = Collected()
        subscription = await bus.subscribe("suite/a", sink=got)
        reading = asyncio.ensure_future(self._drain(subscription))
        await bus.publish("suite/a", b"x")
        await bus.close()
        before = len(got.messages)
        assert await self._wait(reading) == []
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(got.messages) == before

    # ---- limits and ends -------------------------------------------------------------------------------------------

    async def test_a_reader_that_falls_behind_loses_the_oldest_and_gets_a_marker(self, bus: Bus) -> None:
        async with await bus.subscribe("suite/a") as subscription:
            for number in range(self.flood):
                await bus.publish("suite/a", b"%d" % number)
            async with asyncio.timeout(self.patience_s):
                messages = aiter(subscription)
                first = await anext(messages)
                while not first.gap:  # an adapter may have handed some over before it lost the others
                    first = await anext(messages)
                assert first.data == b""
                after: list[int] = []
                while not after or after[-1] != self.flood - 1:
                    message = await anext(messages)
                    if message.gap:
                        after.clear()
                    else:
                        after.append(int(message.data))
            assert after == list(range(after[0], self.flood)), "after the marker nothing is missing"
            assert after[0] > 0

    async def test_closing_a_subscription_ends_its_iteration(self, bus: Bus) -> None:
        subscription = await bus.subscribe("suite/a")
        reading = asyncio.ensure_future(self._drain(subscription))
        await asyncio.sleep(0)
        await subscription.close()
        await subscription.close()
        assert await self._wait(reading) == []
        assert await bus.publish("suite/a", b"nobody") == 0

    async def test_closing_the_bus_ends_all_subscriptions(self, bus: Bus) -> None:
        subscriptions = [await bus.subscribe("suite/a"), await bus.subscribe("suite/*")]
        reading = [asyncio.ensure_future(self._drain(subscription)) for subscription in subscriptions]
        await asyncio.sleep(0)
        await bus.close()
        await bus.close()
        assert [await self._wait(task) for task in reading] == [[], []]

    async def test_a_closed_bus_refuses(self, bus: Bus) -> None:
        await bus.close()
        for refused in (lambda: bus.publish("suite/a", b"x"), lambda: bus.subscribe("suite/a")):
            try:
                await refused()
            except ClosedError:
                continue
            raise AssertionError("a closed bus went on")

    # ---- how cases wait --------------------------------------------------------------------------------------------

    async def _wait(self, task: asyncio.Future[list[bytes]]) -> list[bytes]:
        async with asyncio.timeout(self.patience_s):
            return await task

    async def _take(self, subscription: Subscription, count: int) -> Sequence[BusMessage]:
        async with asyncio.timeout(self.patience_s):
            messages = aiter(subscription)
            return [await anext(messages) for _ in range(count)]

    async def _until(self, subscription: Subscription, last: bytes) -> list[bytes]:
        """What comes before the message `last`."""
        found: list[bytes] = []
        async with asyncio.timeout(self.patience_s):
            async for message in subscription:
                if message.data == last:
                    break
                found.append(message.data)
        return found

    async def _until_collected(self, got: Collected, count: int) -> None:
        """Wait until the sink has so many messages."""
        async with asyncio.timeout(self.patience_s):
            await got.reaches(count)

    async def _drain(self, subscription: Subscription) -> list[bytes]:
        return [message.data async for message in subscription]

    async def _expect_silence(self, bus: Bus, subscription: Subscription, channel: str) -> None:
        """Nothing more waits there: the next message is the one that is published now."""
        await bus.publish(channel, b"-- silence --")
        assert await self._until(subscription, b"-- silence --") == []
