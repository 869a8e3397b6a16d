"""A tape to which somebody else writes too, over HTTP: what is too large there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from livetape.events.log import Position
from livetape.events.recovery import Item
from livetape.events.tape_event import MixedTapeEvent
from livetape.gateway.options import GatewayOptions
from livetape.gateway.transports.sse import LINES_TYPE, SSE_TYPE, FollowedStream, Lifetime
from livetape.testing.fakes import ManualClock

FIRST = 2**60
SEALED = b'{"event_type":"x","encrypted":{"data":"' + b"x" * 900 + b'"}}'


def job(text: str) -> bytes:
    return json.dumps({"event_type": "x", "data": {"text": text}}).encode()


async def told(media_type: str) -> str:
    async def items() -> AsyncGenerator[Item, None]:
        for number, payload in enumerate((job("small"), job("large" * 200), SEALED)):
            yield MixedTapeEvent("x", payload, FIRST + number, "e")

    clock = ManualClock()
    stream = FollowedStream(
        Position("e", 0),
        items,
        media_type=media_type,
        options=GatewayOptions(max_event_bytes=500),
        retry_ms=1,
        lifetime=Lifetime(None, 0, clock, clock.sleep),
        on_start=lambda stream: None,
        on_end=lambda stream: None,
    )
    sent = bytearray()

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.extend(message.get("body", b""))

    async with asyncio.timeout(5):
        await stream({"type": "http"}, receive, send)
    return sent.decode()


async def test_lines_are_cut_and_say_so() -> None:
    small, large, sealed = [json.loads(line) for line in (await told(LINES_TYPE)).splitlines()]
    assert (small.get("truncated"), small["mixed"]) == (None, True)
    assert (large["truncated"], large["mixed"], large["offset"]) == (True, True, str(FIRST + 1))
    assert "omitted" in large["data"]["data"]["text"]
    assert (sealed["event_type"], sealed["data"]["code"]) == ("error", "payload_too_large")


@pytest.mark.parametrize("offset", [FIRST + 1, FIRST + 2])
async def test_server_sent_events_have_no_place_for_it(offset: int) -> None:
    blocks = (await told(SSE_TYPE)).split("\n\n")
    (found,) = [block for block in blocks if f"id: e-{offset}\n" in block]
    assert "event: error\n" in found
    assert "payload_too_large" in found


@pytest.mark.parametrize("has_cut", [True, False])
async def test_who_takes_nothing_does_not_hold_a_stream_that_ends(*, has_cut: bool) -> None:
    async def items() -> AsyncGenerator[Item, None]:
        yield MixedTapeEvent("x", job("small"), FIRST, "e")
        await asyncio.Event().wait()

    clock, cut, stuck = ManualClock(), list[str](), asyncio.Event()
    over: list[object] = []
    stream = FollowedStream(
        Position("e", 0),
        items,
        media_type=LINES_TYPE,
        options=GatewayOptions(close_seconds=0.05),
        retry_ms=1,
        lifetime=Lifetime(None, 0, clock, clock.sleep),
        on_start=lambda stream: None,
        on_end=over.append,
    )

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body"):
            stuck.set()
            await asyncio.Event().wait()

    extensions = {"livetape.cut": lambda: cut.append("cut")} if has_cut else {}
    answering = asyncio.create_task(stream({"type": "http", "extensions": extensions}, receive, send))
    async with asyncio.timeout(5):
        await stuck.wait()
        stream.end()
        await answering
    assert over == [stream]
    assert cut == ["cut"] * has_cut
