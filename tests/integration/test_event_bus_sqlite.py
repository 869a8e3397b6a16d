"""A durable typed bus on a SQLite file: what `sqlite:///…` promises to somebody who opens it by its URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from livetape.errors import ConfigError
from livetape.events.buses import RedisEventBus
from livetape.events.channel import bus_tape
from livetape.events.event import Event
from livetape.events.open import Backend, open_backend
from livetape.events.typed import EventBus


class Note(Event):
    event_type: Literal["note"] = "note"
    number: int
    text: str = ""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tapes.db"


@pytest.fixture
async def backend(url: str) -> AsyncIterator[Backend]:
    async with open_backend(url) as backend:
        yield backend


def durable(**options: Any) -> EventBus[Note]:
    return EventBus(Note, name="notes", durable=True, **options)


async def numbers(listener: Any, count: int) -> list[int]:
    async with asyncio.timeout(10):
        return [(await anext(listener)).number for _ in range(count)]


async def test_history_then_live(url: str) -> None:
    async with durable(url=url) as bus:
        for number in (1, 2):
            published = await bus.publish(Note(number=number), "a")
            assert published.position is not None
            assert (published.position.offset, published.entry_id, published.on_bus) == (number, f"{number}-0", True)
        async with bus.listen("a", after="earliest") as listener:
            assert await numbers(listener, 2) == [1, 2]
            assert (await bus.publish(Note(number=3), "a")).receivers == 1
            assert await numbers(listener, 1) == [3]
            assert listener.gaps == 0


async def test_it_is_there_when_the_file_is_opened_again(url: str) -> None:
    async with durable(url=url) as bus:
        first = await bus.publish(Note(number=1), "a")
        await bus.publish(Note(number=2), "a")
    async with durable(url=url) as bus:
        third = await bus.publish(Note(number=3), "a")
        assert first.position is not None
        assert third.position is not None
        assert (third.position.epoch, third.position.offset) == (first.position.epoch, 3)
        async with bus.listen("a", after=first.position) as listener:
            assert await numbers(listener, 2) == [2, 3]


async def test_each_channel_has_its_own_numbers(url: str) -> None:
    async with durable(url=url) as bus:
        published = [await bus.publish(Note(number=1), key) for key in ("a", "b/c", "a")]
    assert [p.position.offset for p in published if p.position] == [1, 1, 2]


async def test_from_now_on_means_from_now_on(url: str) -> None:
    async with durable(url=url) as bus:
        await bus.publish(Note(number=1), "a")
        async with bus.listen("a") as listener:
            await bus.publish(Note(number=2), "a")
            assert await numbers(listener, 1) == [2]


async def test_many_at_once_keep_their_order(url: str) -> None:
    async with durable(url=url) as bus, bus.listen("a", after="earliest") as listener:
        async with bus.batch() as batch:
            assert all(batch.publish(Note(number=number), "a") for number in range(300))
        results = await asyncio.gather(*(bus.publish(Note(number=number), "a") for number in range(300, 400)))
        assert [r.position.offset for r in results if r.position] == list(range(301, 401))
        assert await numbers(listener, 400) == list(range(400))


async def test_a_repetition_writes_nothing(url: str) -> None:
    async with durable(url=url) as bus:
        first = await bus.publish(Note(number=1), "a", idempotency_key="k")
        again = await bus.publish(Note(number=1), "a", idempotency_key="k")
        assert again
        assert (again.position, again.receivers) == (first.position, None)


async def test_what_is_too_large_for_the_bus_comes_whole_from_the_tape(url: str) -> None:
    async with durable(url=url, max_message_bytes=1000) as bus, bus.listen("a", after="earliest") as listener:
        published = await bus.publish(Note(number=1, text="x" * 5000), "a")
        assert published.replaced
        async with asyncio.timeout(10):
            event = await anext(listener)
        assert isinstance(event, Note)
        assert len(event.text) == 5000


async def test_what_was_trimmed_is_announced(backend: Backend) -> None:
    gaps: list[str] = []
    async with durable(backend=backend, on_gap=gaps.append) as bus:
        for number in (1, 2, 3):
            published = await bus.publish(Note(number=number), "a")
        assert backend.log is not None
        assert published.position is not None
        await backend.log.trim(bus_tape("notes/a"), keep_after=2)
        position = type(published.position)(published.position.epoch, 1)
        async with bus.listen("a", after=position) as listener:
            assert await numbers(listener, 1) == [3]
            assert (listener.gaps, gaps) == (1, ["notes/a"])


async def test_two_writers_of_one_file_share_the_numbers(url: str) -> None:
    """As in two processes: each with a bus of its own, one tape."""
    async with durable(url=url) as one, durable(url=url) as other:
        results = await asyncio.gather(
            *(bus.publish(Note(number=number), "a") for number, bus in enumerate((one, other) * 20))
        )
        offsets = [result.position.offset for result in results if result.position]
        assert sorted(offsets) == list(range(1, 41))
        async with other.listen("a", after="earliest") as listener:
            assert sorted(await numbers(listener, 40)) == list(range(40))


async def test_full_durability(url: str) -> None:
    async with durable(url=f"{url}?durability=full") as bus:
        assert (await bus.publish(Note(number=1), "a")).on_log


async def test_nothing_durable_in_memory() -> None:
    with pytest.raises(ConfigError, match="keeps nothing"):
        async with durable(url="memory://"):
            pass


class SyncNotes(RedisEventBus[Note]):
    Model: ClassVar[Any] = Note
    event_bus_name = "notes"


def test_the_synchronous_face(url: str) -> None:
    with SyncNotes(url=url, durable=True) as bus:
        assert bus.publish_event(Note(number=1), "a").on_log
        events = bus.listen_events("a")
        bus.publish_event(Note(number=2), "a")
        assert next(events).number == 2
        events.close()
