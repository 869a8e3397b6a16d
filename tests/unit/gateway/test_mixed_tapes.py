"""Tapes to which a plain Redis client writes too: numbers rise but not by one, and nobody pushes what it writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from livetape.events.channel import job_channel, job_tape
from livetape.events.codec import Envelope
from livetape.events.log import NewEvent, Position
from livetape.testing.fakes import FakeLog
from unit.gateway.rig import Client, Rig, go_on, rigged

TAPE = job_tape("J")
FIRST_ID = 1_893_456_000_000 << 20


class MixedLog(FakeLog):
    """`xadd` writes as a plain client does; from then on the server gives the ids of all entries."""

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        reel = self.reels.get(tape)
        if reel is None or not reel.tape.mixed:
            return await super().append(tape, event, idempotency_key=idempotency_key)
        self.store(reel, max(FIRST_ID, reel.tape.offset + (7 << 20)), event)
        return reel.tape.position

    async def xadd(self, number: int) -> None:
        await self.create(TAPE, owner=None, channel=job_channel("J"))
        reel = self.reels[TAPE]
        reel.tape = replace(reel.tape, mixed=True)
        await self.append(TAPE, event(number))


def event(number: int, kind: str = "task_progress") -> NewEvent:
    body = {"event_type": kind, "job_id": "J", "timestamp": "", "data": number}
    return NewEvent(kind, json.dumps(body).encode(), kind == "task_completed")


@pytest.fixture
async def log() -> MixedLog:
    made = MixedLog()
    await made.create(TAPE, owner="U", channel=job_channel("J"))
    return made


@pytest.fixture
async def rig(log: MixedLog) -> AsyncIterator[Rig]:
    async with rigged(log=log) as made:
        yield made


async def publish(rig: Rig, number: int, kind: str = "task_progress", *, live: bool = True) -> None:
    """As our recorder does: on a mixed tape without a position in the message."""
    new = event(number, kind)
    position = await rig.log.append(TAPE, new)
    tape = await rig.log.describe(TAPE)
    assert tape is not None
    where = (None, None) if tape.mixed else (position.offset, position.epoch)
    if live:
        await rig.bus.publish(job_channel("J"), Envelope(new.payload, kind, *where, final=new.final).encode())


async def subscribe(client: Client, **data: Any) -> dict[str, Any]:
    return await client.ask({"method": "subscribe_job", "data": {"job_id": "J", **data}})


def numbers(bodies: list[dict[str, Any]]) -> list[Any]:
    """What was pushed: the number of each event, or the method of what is none."""
    return [body["data"]["data"] if body["method"] == "job_event" else body["method"] for body in bodies]


async def test_every_event_comes_once_in_order_without_a_position(rig: Rig, log: MixedLog) -> None:
    await log.xadd(1)
    client = rig.connect()
    assert (await subscribe(client))["success"] is True
    await publish(rig, 2)
    await log.xadd(3)
    await publish(rig, 4)
    await publish(rig, 5)
    pushed = await client.take(4)
    assert numbers(pushed) == [2, 3, 4, 5]
    assert not any({"offset", "epoch"} & set(body) for body in pushed)
    await client.expect_silence()


async def test_a_tape_that_becomes_mixed_while_it_is_watched(rig: Rig, log: MixedLog) -> None:
    client = rig.connect()
    await subscribe(client)
    await publish(rig, 1)
    await log.xadd(2)
    await publish(rig, 3)
    await publish(rig, 4)
    pushed = await client.take(4)
    assert numbers(pushed) == [1, 2, 3, 4]
    assert [body.get("offset") for body in pushed] == [1, None, None, None]
    await client.expect_silence()


@pytest.mark.parametrize(
    "since",
    ["earliest", "latest", {"last": 2}, {"seconds": 60}, {"offset": 2**60}, {"offset": str(FIRST_ID)}],
    ids=str,
)
async def test_since_is_answered_that_it_cannot_be(rig: Rig, log: MixedLog, since: Any) -> None:
    await log.xadd(1)
    tape = await log.describe(TAPE)
    assert tape is not None
    if isinstance(since, dict) and "offset" in since:
        since = {"epoch": tape.epoch, **since}
    client = rig.connect()
    answer = await subscribe(client, since=since)
    told = {"epoch": tape.epoch, "offset": str(tape.offset), "recovered": False, "count": 0, "mixed": True}
    assert answer["data"] == told
    complete = await client.get()
    assert (complete["method"], complete["offset"]) == ("replay_complete", str(tape.offset))
    await publish(rig, 2, "task_completed")
    last = await client.get()
    assert (last["data"]["data"], last["final"], "offset" in last) == (2, True, False)


async def test_what_a_plain_client_writes_is_seen_although_nobody_pushes_it(rig: Rig, log: MixedLog) -> None:
    await log.xadd(1)
    client = rig.connect()
    await subscribe(client)
    passing = asyncio.create_task(go_on(rig))
    try:
        for number in (2, 3):
            await log.xadd(number)
            assert numbers(await client.take(1)) == [number]
        await client.expect_silence()
    finally:
        passing.cancel()


async def test_an_event_that_is_on_no_tape_is_pushed_all_the_same(rig: Rig) -> None:
    client = rig.connect()
    await subscribe(client)
    await publish(rig, 1)
    loose = event(2)
    await rig.bus.publish(job_channel("J"), Envelope(loose.payload, loose.event_type).encode())
    await publish(rig, 3)
    pushed = await client.take(3)
    assert sorted(numbers(pushed)) == [1, 2, 3]
    assert [body.get("offset") for body in pushed if body["data"]["data"] != 2] == [1, 2]
    await client.expect_silence()


async def test_who_is_slow_misses_nothing(log: MixedLog) -> None:
    async with rigged(log=log, outbox_max_messages=3) as rig:
        await log.xadd(0)
        slow, quick = rig.connect(), rig.connect()
        await subscribe(slow)
        await subscribe(quick)
        slow.reading.clear()
        for number in range(1, 41):
            await (log.xadd(number) if number % 3 == 0 else publish(rig, number))
        await publish(rig, 41)
        assert numbers(await quick.take(41)) == list(range(1, 42))
        slow.reading.set()
        assert numbers(await slow.take(41)) == list(range(1, 42))
        await slow.expect_silence()


async def test_that_events_may_have_been_trimmed_is_told(rig: Rig, log: MixedLog) -> None:
    await log.xadd(1)
    client = rig.connect()
    await subscribe(client)
    await publish(rig, 2, live=False)
    await publish(rig, 3, live=False)
    reel = log.reels[TAPE]
    reel.entries = reel.entries[-1:]
    reel.tape = replace(reel.tape, first_offset=reel.entries[0].offset)
    await publish(rig, 4)
    gap, *pushed = await client.take(3)
    assert (gap["method"], gap["data"]["from"], gap["data"]["to"]) == ("gap", None, None)
    assert numbers(pushed) == [3, 4]


async def test_a_mixed_tape_that_is_claimed_is_seen_by_its_owner() -> None:
    """Until then it is nobody's, and its watcher is shown nothing."""
    log = MixedLog()
    await log.xadd(1)
    async with rigged(log=log) as rig:
        client = rig.connect()
        await subscribe(client)
        await log.create(TAPE, owner="U", channel=job_channel("J"))
        await publish(rig, 2)
        assert numbers(await client.take(1)) == [2]
