"""Every face of the typed event bus behaves the same, on every adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import TypeAdapter

from faces import AsyncFace, SyncFace
from livetape.adapters.memory.bus import MemoryBus
from livetape.events.typed import EventBus
from livetape.testing.conformance.event_bus import MAX_MESSAGE_BYTES, EventBusSuite, Face, SuiteEvent


def typed(**source: Any) -> EventBus[Any]:
    return EventBus(TypeAdapter(SuiteEvent), name="suite", max_message_bytes=MAX_MESSAGE_BYTES, **source)


FACES = {"typed": typed, "async": AsyncFace, "sync": SyncFace}


@pytest.fixture(params=FACES)
def make(request: pytest.FixtureRequest) -> Any:
    return FACES[request.param]


class TestOnMemory(EventBusSuite):
    @pytest.fixture
    async def bus(self, make: Any) -> AsyncIterator[Face]:
        bus = make(bus=MemoryBus())
        yield bus
        await bus.close()


class TestOnRedis(EventBusSuite):
    @pytest.fixture
    async def bus(self, make: Any, redis_url: str) -> AsyncIterator[Face]:
        bus = make(url=redis_url)
        yield bus
        await bus.close()
