"""What is written in one turn of the loop leaves in one write, in order, and nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from livetape.gateway.transports.uvicorn import JoinedWrites


class Wire:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("close")

    def write_eof(self) -> None:
        self.calls.append("eof")

    def abort(self) -> None:
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.calls


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def joined(wire: Wire) -> JoinedWrites:
    return JoinedWrites(cast("asyncio.Transport", wire), asyncio.get_running_loop())


async def test_writes_of_one_turn_leave_together(wire: Wire, joined: JoinedWrites) -> None:
    for part in (b"a", b"b", b"c"):
        joined.write(part)
    assert wire.calls == []
    await asyncio.sleep(0)
    assert wire.calls == [b"abc"]
    joined.write(b"d")
    await asyncio.sleep(0)
    assert wire.calls == [b"abc", b"d"]


async def test_closing_sends_what_waits_first(wire: Wire, joined: JoinedWrites) -> None:
    joined.write(b"a")
    joined.close()
    await asyncio.sleep(0)
    assert wire.calls == [b"a", "close"]
    assert joined.is_closing(), "everything else is asked of the transport itself"


async def test_the_end_of_writing_comes_after_what_waits(wire: Wire, joined: JoinedWrites) -> None:
    joined.write(b"a")
    joined.write_eof()
    assert wire.calls == [b"a", "eof"]


async def test_aborting_drops_what_waits(wire: Wire, joined: JoinedWrites) -> None:
    joined.write(b"a")
    joined.abort()
    await asyncio.sleep(0)
    assert wire.calls == ["abort"]
