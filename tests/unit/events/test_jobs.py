"""Jobs: durable first, then live, in one order for both; a job belongs to its first publisher."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_core import from_json

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import ChannelError, CodecError, NotFoundError
from livetape.events.channel import job_tape
from livetape.events.codec import split
from livetape.events.jobs import Jobs, UnownedJobs, writer_of
from livetape.events.log import Tape
from livetape.events.recorder import LogRecorder
from livetape.testing.fakes import FakeLog


async def test_events_are_logged_and_pushed_in_one_order() -> None:
    bus, log = MemoryBus(), FakeLog()
    jobs = Jobs(LogRecorder(log, bus))
    async with await bus.subscribe("job_event/j") as heard:
        recorded = await asyncio.gather(*(jobs.publish("u", "j", "task_progress", {"n": n}) for n in range(20)))
        assert sorted(each.position.offset for each in recorded) == list(range(1, 21))
        live = []
        async for message in heard:
            live.append(split(message.data))
            if len(live) == 20:
                break
    entries = await log.read("job_events:j")
    assert [(e.offset, e.payload) for e in live] == [(e.offset, e.payload) for e in entries]
    assert from_json(entries[0].payload)["job_id"] == "j"


async def test_the_first_publisher_owns_the_job() -> None:
    jobs = Jobs(LogRecorder(FakeLog(), MemoryBus()))
    await jobs.publish("u", "j", "task_started", {})
    with pytest.raises(NotFoundError):
        await jobs.publish("v", "j", "task_progress", {})
    await jobs.publish("admin", "j", "task_progress", {}, is_admin=True)


async def test_nobody_claims_nothing() -> None:
    log = FakeLog()
    jobs = Jobs(LogRecorder(log, MemoryBus()))
    await jobs.publish(None, "j", "task_started", {})
    tape = await log.describe("job_events:j")
    assert tape is not None
    assert (tape.owner, tape.offset) == (None, 1)


@pytest.mark.parametrize(
    ("owner", "events", "is_admin", "unowned", "writer"),
    [
        ("u", 3, False, "admin", "u"),
        ("v", 3, False, "any_user", "u"),  # and `publish` refuses
        (None, 0, False, "admin", "u"),
        (None, 3, True, "admin", None),
        (None, 3, False, "any_user", None),
    ],
)
def test_under_whose_name(owner: str | None, events: int, is_admin: bool, unowned: UnownedJobs, writer: Any) -> None:
    tape = Tape("job_events:j", owner, None, "job_event/j", "e", events, 1, final=False)
    assert writer_of(tape, "u", is_admin=is_admin, jobs_unowned=unowned) == writer
    assert writer_of(None, "u", is_admin=is_admin, jobs_unowned=unowned) == "u"


def test_a_job_without_an_owner_is_not_anybodys() -> None:
    tape = Tape("job_events:j", None, None, "job_event/j", "e", 3, 1, final=False)
    with pytest.raises(NotFoundError):
        writer_of(tape, "u", is_admin=False, jobs_unowned="admin")


async def test_a_repeated_key_is_neither_written_nor_pushed_again() -> None:
    bus, log = MemoryBus(), FakeLog()
    jobs = Jobs(LogRecorder(log, bus))
    async with await bus.subscribe("job_event/j") as heard:
        first = await jobs.publish("u", "j", "a", 1, idempotency_key="k")
        again = await jobs.publish("u", "j", "a", 1, idempotency_key="k")
        assert (again.position, again.repeated) == (first.position, True)
        await jobs.publish("u", "j", "task_completed", None)
        offsets = []
        async for message in heard:
            envelope = split(message.data)
            offsets.append(envelope.offset)
            if envelope.final:
                break
    assert offsets == [1, 2]


async def test_an_id_that_is_no_channel_is_refused() -> None:
    with pytest.raises(ChannelError):
        await Jobs(LogRecorder(FakeLog(), MemoryBus())).publish("u", "*", "a", 1)


@pytest.mark.parametrize("data", [{"n": float("nan")}, [float("inf")], {"o": object()}])
async def test_what_json_cannot_carry_is_refused_and_not_changed(data: Any) -> None:
    log = FakeLog()
    with pytest.raises(CodecError):
        await Jobs(LogRecorder(log, MemoryBus())).publish("u", "j", "step", data)
    assert await log.read(job_tape("j")) == []
