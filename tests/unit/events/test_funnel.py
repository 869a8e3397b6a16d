"""What comes together is handed to a sink in one call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.redis.router import Router
from livetape.events.bus import BusMessage
from livetape.events.encrypted import EncryptedBus
from livetape.events.funnel import Funnel
from livetape.events.keyring import KEY_BYTES, KeyRing
from livetape.testing.conformance.bus import Collected

GAP = BusMessage("", b"", gap=True)


def message(number: int) -> list[object]:
    return [b"message", b"bus/a", b"%d" % number]


async def test_on_redis_what_arrived_together_is_one_call() -> None:
    router, got, others = Router(), Collected(), []
    funnel = Funnel(got)
    router.open(funnel)
    router.attach("bus/a", funnel)
    router.changed("bus/a", True)
    router.listening(again=False)
    assert router.route(b"bus/a").source is None
    router.arrived([message(1), [b"pong", b""], message(2)], others.append)
    router.arrived([message(3)], others.append)
    router.arrived([[b"pong", b""]], others.append)
    assert [[m.data for m in call] for call in got.calls] == [[b"1", b"2"], [b"3"]]
    assert others == [[b"pong", b""]] * 2
    assert router.messages == 3


async def test_on_redis_the_marker_comes_when_the_link_is_back_and_before_all_that_follows() -> None:
    router, got = Router(), Collected()
    funnel = Funnel(got)
    router.open(funnel)
    router.attach("bus/a", funnel)

    def one(push: list[bytes]) -> None:
        router.message(None, push[1], push[2])

    router.changed("bus/a", True)
    router.listening(again=False)
    router.arrived([message(1)], one)
    router.lost()
    router.changed("bus/a", True)
    router.arrived([message(2)], one)
    assert got.messages == [BusMessage("bus/a", b"1")], "held until everything is listened to"
    router.listening(again=True)
    router.arrived([message(3)], one)
    assert [[m.data for m in call] for call in got.calls] == [[b"1"], [b"", b"2"], [b"3"]]
    assert got.calls[1][0] == GAP
    router.close(funnel)
    funnel.close()
    router.arrived([message(4)], one)
    router.listening(again=True)
    assert len(got.calls) == 3


async def test_what_is_published_within_one_turn_is_one_call_in_the_next() -> None:
    bus, got = MemoryBus(max_messages=2), Collected()
    async with await bus.subscribe("b/*", sink=got):
        for number in range(5):
            assert await bus.publish(f"b/{number}", b"x") == 1
        assert got.calls == [], "a sink does not run inside of the publisher"
        await asyncio.sleep(0)
        await bus.publish("b/5", b"x")
        await asyncio.sleep(0)
    assert [[m.channel for m in call] for call in got.calls] == [[f"b/{n}" for n in range(5)], ["b/5"]]
    await bus.close()


async def test_a_sink_that_raises_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def broken(messages: Sequence[BusMessage]) -> None:
        raise ValueError

    bus, got = MemoryBus(), Collected()
    async with await bus.subscribe("b/a", sink=broken), await bus.subscribe("b/a", sink=got):
        with caplog.at_level(logging.ERROR):
            await bus.publish("b/a", b"1")
            await asyncio.sleep(0)
        await bus.publish("b/a", b"2")
        await asyncio.sleep(0)
    assert got.data == [b"1", b"2"]
    assert "a sink of the bus raised" in caplog.text
    await bus.close()


async def test_a_sink_gets_a_marker_for_what_cannot_be_decrypted() -> None:
    inner, got = MemoryBus(), Collected()
    bus = EncryptedBus(inner, KeyRing({"k": b"k" * KEY_BYTES}, current="k"))
    async with await bus.subscribe("b/a", sink=got):
        await bus.publish("b/a", b'{"payload":{"event_type":"x"}}')
        await inner.publish("b/a", b'{"payload":{"event_type":"forged"}}')
        await bus.publish("b/a", b"bytes")
        await asyncio.sleep(0)
    assert got.messages == [
        BusMessage("b/a", b'{"payload":{"event_type":"x"}}'),
        BusMessage("b/a", b"", gap=True),
        BusMessage("b/a", b"bytes"),
    ]
    await bus.close()
