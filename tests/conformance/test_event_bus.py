"""Every face of the typed event bus behaves the same, on every adapter; the suite notices each that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import TypeAdapter

from faces import AsyncFace, SyncFace
from livetape.adapters.memory.bus import MemoryBus
from livetape.events.typed import EventBus
from livetape.testing.broken_event_bus import BROKEN_EVENT_BUSES, SoftFace
from livetape.testing.conformance.event_bus import MAX_MESSAGE_BYTES, EventBusSuite, Face, SuiteEvent
from livetape.testing.conformance.runner import cases, run_suite


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


@asynccontextmanager
async def opened(make: Callable[[], SoftFace]) -> AsyncIterator[Face]:
    face = make()
    try:
        yield face
    finally:
        await face.events.close()


@pytest.mark.parametrize(
    ("make", "case"), BROKEN_EVENT_BUSES.items(), ids=lambda value: getattr(value, "__name__", "in")
)
async def test_a_broken_face_fails(make: Callable[[], SoftFace], case: str) -> None:
    failures = await run_suite(EventBusSuite, lambda: opened(make), only=[case], timeout_s=1, patience_s=0.1)
    assert [failure.case for failure in failures] == [case]


async def test_the_broken_faces_are_broken_in_nothing_else() -> None:
    """Their base keeps every promise, so that each of them fails for its own fault."""
    failures = await run_suite(EventBusSuite, lambda: opened(SoftFace), timeout_s=1, patience_s=0.5)
    assert failures == []


def test_every_case_is_failed_by_some_broken_face() -> None:
    """A case that no broken face fails may be checking nothing."""
    assert set(cases(EventBusSuite)) == set(BROKEN_EVENT_BUSES.values())
