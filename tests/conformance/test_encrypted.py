"""A backend with encryption in between keeps the contracts of the one that it wraps, and shows it no payload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import DecryptionError
from livetape.events.bus import Bus, BusMessage, Subscription
from livetape.events.codec import Envelope, split
from livetape.events.encrypted import EncryptedBus, EncryptedGroups, EncryptedLog, EncryptedRecorder, encrypted
from livetape.events.follow import follow
from livetape.events.jobs import Jobs
from livetape.events.keyring import KEY_BYTES, KeyRing
from livetape.events.log import EventLog, NewEvent
from livetape.events.open import Backend, open_backend
from livetape.events.recorder import Live, LogRecorder
from livetape.events.tape_event import TapeEvent
from livetape.testing.conformance.bus import BusSuite
from livetape.testing.conformance.groups import ConsumerGroupsSuite, Sharing
from livetape.testing.conformance.log import DurableEventLogSuite, Reopen
from livetape.testing.conformance.recorder import RecorderSuite, Recording
from livetape.testing.fakes import FakeLog

RING = KeyRing({"k": b"k" * KEY_BYTES}, current="k")
OTHER = KeyRing({"k": b"o" * KEY_BYTES}, current="k")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Backend]:
    backend = encrypted(open_backend(f"sqlite:///{path}/tapes.db"), RING)
    try:
        yield backend
    finally:
        await backend.close()


class TestEncryptedLog(DurableEventLogSuite):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[EventLog]:
        async with opened(tmp_path) as backend:
            assert backend.log is not None
            yield backend.log

    @pytest.fixture
    async def reopen_log(self, tmp_path: Path) -> AsyncIterator[Reopen]:
        async with opened(tmp_path) as backend:

            async def reopen() -> EventLog:
                assert backend.log is not None
                return backend.log

            yield reopen


class TestEncryptedRecorder(RecorderSuite):
    @pytest.fixture
    async def recording(self, tmp_path: Path) -> AsyncIterator[Recording]:
        async with opened(tmp_path) as backend:
            yield Recording.of(backend)


class TestEncryptedGroups(ConsumerGroupsSuite):
    @pytest.fixture
    async def sharing(self, tmp_path: Path) -> AsyncIterator[Sharing]:
        async with opened(tmp_path) as backend:
            yield Sharing.of(backend)


class Parts:
    """Encryption over a log in memory and a bus, and what stands beneath it."""

    def __init__(self) -> None:
        self.log, self.bus = FakeLog(), MemoryBus()
        self.backend = encrypted(
            Backend(self.bus, self.log, LogRecorder(self.log, self.bus), on_close=[self.bus.close]), RING
        )
        assert self.backend.recorder is not None
        assert self.backend.log is not None
        self.recorder, self.encrypted_log = self.backend.recorder, self.backend.log


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    parts = Parts()
    yield parts
    await parts.backend.close()


async def heard(subscription: Subscription) -> Envelope:
    return split((await asyncio.wait_for(anext(aiter(subscription)), 5)).data)


SECRET = NewEvent("said", b'{"event_type":"said","text":"secret"}')


async def test_a_job_is_followed_from_its_past_into_the_present(parts: Parts) -> None:
    jobs = Jobs(parts.recorder)
    for text in ("one", "two"):
        await jobs.publish("u", "j", "task_progress", {"text": text})
    stream = follow(parts.encrypted_log, parts.backend.bus, "job_events:j", "job_event/j", after="earliest")
    items = [await anext(stream), await anext(stream)]
    await jobs.publish("u", "j", "task_completed", {"text": "three"})
    items.append(await asyncio.wait_for(anext(stream), 5))
    await stream.aclose()
    assert [item.offset for item in items if isinstance(item, TapeEvent)] == [1, 2, 3]
    assert [word in item.payload for item, word in zip(items, (b"one", b"two", b"three"), strict=True)] == [True] * 3
    assert not any(b"text" in entry.payload for entry in parts.log.reels["job_events:j"].entries)


async def test_nothing_readable_is_on_the_tape_or_the_bus(parts: Parts) -> None:
    async with await parts.bus.subscribe("job_event/a") as below:
        await parts.recorder.record("job_events:a", "job_event/a", SECRET)
        pushed = await heard(below)
    (entry,) = await parts.log.read("job_events:a")
    assert b"secret" not in entry.payload
    assert pushed.payload == entry.payload  # encrypted once
    assert (pushed.event_type, pushed.offset) == ("said", 1)


async def test_a_tape_that_is_not_its_channel_gets_a_text_of_its_own(parts: Parts) -> None:
    async with await parts.bus.subscribe("b/a") as below, await parts.backend.bus.subscribe("b/a") as above:
        await parts.recorder.record("t:a", "b/a", SECRET)
        await parts.recorder.record("t:a", "b/a", SECRET, live=Live(b'{"event_type":"short"}', "short", lossy=True))
        for event, lossy in ((SECRET, False), (NewEvent("short", b'{"event_type":"short"}'), True)):
            sealed, clear = await heard(below), await heard(above)
            assert (sealed.event_type, sealed.lossy) == (event.event_type, lossy)
            assert (clear.payload, clear.event_type) == (event.payload, event.event_type)
    assert [entry.payload for entry in await parts.encrypted_log.read("t:a")] == [SECRET.payload] * 2


async def test_what_grew_over_the_limit_is_pushed_as_its_stand_in() -> None:
    log, bus = FakeLog(), MemoryBus()
    recorder = EncryptedRecorder(LogRecorder(log, bus), RING, max_message_bytes=300)
    async with await EncryptedBus(bus, RING).subscribe("job_event/a") as above:
        await recorder.record("job_events:a", "job_event/a", NewEvent("said", b'{"text":"%s"}' % (b"x" * 200)))
        envelope = await heard(above)
    assert (envelope.event_type, envelope.offset) == ("error_comms_update", 1)
    assert len((await EncryptedLog(log, RING).read("job_events:a"))[0].payload) == 211
    await bus.close()


async def test_an_entry_that_cannot_be_decrypted_raises_and_names_its_place(parts: Parts) -> None:
    for _ in range(3):
        await parts.recorder.record("t:a", "b/a", SECRET)
    entries = parts.log.reels["t:a"].entries
    entries[1] = entries[1]._replace(event_type="other")
    with pytest.raises(DecryptionError) as raised:
        await parts.encrypted_log.read("t:a")
    assert (raised.value.context["tape"], raised.value.context["offset"]) == ("t:a", 2)
    assert len(await parts.encrypted_log.read("t:a", limit=1)) == 1
    assert len(await parts.encrypted_log.read("t:a", 2)) == 1
    with pytest.raises(DecryptionError):
        await EncryptedLog(parts.log, OTHER).read("t:a", limit=1)


async def test_an_entry_of_another_tape_is_refused(parts: Parts) -> None:
    await parts.encrypted_log.append("t:a", SECRET)
    (stolen,) = await parts.log.read("t:a")
    await parts.log.append("t:b", NewEvent(stolen.event_type, stolen.payload))
    with pytest.raises(DecryptionError):
        await parts.encrypted_log.read("t:b")


async def test_a_message_that_cannot_be_decrypted_raises_and_the_next_one_comes(parts: Parts) -> None:
    async with await parts.backend.bus.subscribe("b/*") as above:
        await parts.bus.publish("b/a", Envelope(SECRET.payload, "said").encode())
        await parts.bus.publish("b/a", b"rubbish")
        await parts.backend.bus.publish("b/a", Envelope(SECRET.payload, "said", traceparent="t").encode())
        for _ in range(2):
            with pytest.raises(DecryptionError) as raised:
                await heard(above)
            assert raised.value.context["channel"] == "b/a"
        assert await heard(above) == Envelope(SECRET.payload, "said", traceparent="t")
        await above.remove("b/*")
        await above.add("c/c")
        await parts.backend.bus.publish("c/c", Envelope(SECRET.payload, "said").encode())
        assert (await heard(above)).payload == SECRET.payload


@pytest.mark.slow
class TestEncryptedBus(BusSuite):
    @pytest.fixture
    async def bus(self) -> AsyncIterator[Bus]:
        bus = EncryptedBus(MemoryBus(), RING)
        yield bus
        await bus.close()


async def test_gap_markers_pass() -> None:
    bus = MemoryBus(max_messages=1)
    async with await EncryptedBus(bus, RING).subscribe("b/*") as above:
        for _ in range(2):
            await EncryptedBus(bus, RING).publish("b/a", Envelope(SECRET.payload, "said").encode())
        assert (await anext(aiter(above))).gap
        assert (await heard(above)).payload == SECRET.payload
    await bus.close()


async def test_a_migration_reads_both_kinds_and_writes_one(parts: Parts) -> None:
    await parts.log.append("t:a", SECRET)
    migrating = EncryptedLog(parts.log, RING, allow_plaintext=True)
    await migrating.append("t:a", SECRET)
    assert [entry.payload for entry in await migrating.read("t:a")] == [SECRET.payload] * 2
    assert [b"secret" in entry.payload for entry in await parts.log.read("t:a")] == [True, False]
    async with await EncryptedBus(parts.bus, RING, allow_plaintext=True).subscribe("b/a") as above:
        await parts.bus.publish("b/a", Envelope(SECRET.payload, "said").encode())
        assert (await heard(above)).payload == SECRET.payload
        await parts.bus.publish("b/a", b"bytes")
        assert await anext(aiter(above)) == BusMessage("b/a", b"bytes")


async def test_groups_leave_pending_what_cannot_be_decrypted(tmp_path: Path) -> None:
    backend = open_backend(f"sqlite:///{tmp_path}/tapes.db")
    assert backend.groups is not None
    assert backend.log is not None
    groups = EncryptedGroups(backend.groups, RING)
    await groups.create("t:a", "g")
    await backend.log.append("t:a", SECRET)
    with pytest.raises(DecryptionError):
        await groups.take("t:a", "g", "c")
    assert [pending.offset for pending in await groups.pending("t:a", "g")] == [1]
    await backend.close()


async def test_the_file_holds_no_payload(tmp_path: Path) -> None:
    async with opened(tmp_path) as backend:
        assert backend.recorder is not None
        await backend.recorder.record("t:a", "b/a", SECRET)
    for file in tmp_path.iterdir():
        with closing(file.open("rb")) as opened_file:
            assert b"secret" not in opened_file.read()


async def test_a_backend_without_a_log_has_none(parts: Parts) -> None:
    backend = encrypted(Backend(parts.bus), RING)
    assert (backend.log, backend.recorder, backend.groups) == (None, None, None)
