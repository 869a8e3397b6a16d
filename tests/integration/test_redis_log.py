"""The log on Redis beyond its contract: the fields of the seed, other writers, owners, times, slots."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from conftest import RedisServers
from integration.redis_events import JOB, said, step
from livetape.adapters.redis.commands import Word
from livetape.adapters.redis.keys import id_of, offset_of
from livetape.adapters.redis.log import RedisLog
from livetape.adapters.redis.recorder import RedisRecorder
from livetape.errors import LogError, LogUnavailableError, NotFoundError
from livetape.events.channel import job_channel, job_tape
from livetape.events.codec import Envelope, encode_payload
from livetape.events.event import JobEvent
from livetape.events.log import NewEvent, Position
from livetape.events.recorder import Live
from livetape.events.tape_retention import TapeRetention
from livetape.testing.fakes import ManualClock
from redis_commands import PlainClusterCommands, PlainCommands, plain
from servers import RedisServer

pytestmark = pytest.mark.needs("redis")


@asynccontextmanager
async def listening(server: RedisServer, channel: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """What a plain client of redis-py receives on the channel."""
    async with Redis(port=server.port) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        assert await pubsub.get_message(timeout=5) is not None, "it listens"

        async def heard() -> AsyncIterator[bytes]:
            async for message in pubsub.listen():
                yield message["data"]

        async with aclosing(heard()) as messages:
            yield messages


async def seed_publishes(commands: PlainCommands, event: dict[str, Any]) -> bytes:
    """As the seed's RedisStreamPublisher does."""
    entry_id: bytes = await commands.send(
        (
            "XADD",
            JOB,
            "*",
            "data",
            json.dumps(event, ensure_ascii=False),
            "timestamp",
            event.get("timestamp", ""),
            "event_type",
            event.get("event_type", "unknown"),
        )
    )
    return entry_id


# ---- what a plain client sees --------------------------------------------------------------------------------------


async def test_a_job_has_exactly_the_fields_of_the_seed(commands: PlainCommands, recorder: RedisRecorder) -> None:
    made = await recorder.record(JOB, job_channel("j1"), step(text="é 大", n=1.5), owner="u")
    assert made.entry_id == "1-0"
    ((entry_id, fields),) = await commands.send(("XRANGE", JOB, "-", "+"))
    assert entry_id == b"1-0"
    assert fields == [
        b"data",
        '{"text":"é 大","n":1.5}'.encode(),
        b"timestamp",
        b"2030-01-02T03:04:05+00:00",
        b"event_type",
        b"task_progress",
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b'{"event_type":"x","job_id":"j1","timestamp":"","data":null}',
        b'{"event_type":"x","job_id":"j1","timestamp":"no time","data":[1, 2]}',
        b'{"event_type":"x","job_id":"other","timestamp":"","data":null}',
        b'{"event_type":"x","timestamp":"","data":null}',
        b'{ "event_type":"x"}',
        b"not even JSON",
    ],
)
async def test_whatever_is_appended_to_a_job_is_read_back(log: RedisLog, payload: bytes) -> None:
    await log.append(JOB, NewEvent("x", payload))
    (entry,) = await log.read(JOB)
    assert (entry.event_type, entry.payload, entry.final) == ("x", payload, False)


async def test_both_forms_stand_on_one_job(log: RedisLog) -> None:
    other = NewEvent("task_progress", b'{"event_type":"task_progress","own":1}')
    events = [other, step(n=1), other, replace(step(n=2), final=True), step("task_failed"), step(n=3)]
    for event in events:
        await log.append(JOB, event)
    assert [(e.payload, e.final) for e in await log.read(JOB)] == [(e.payload, e.final) for e in events]


@pytest.mark.parametrize("event_type", ["plain", 'with "quotes"', "back\\slash", "Größe 大", "tab\t", "\x7f\u2028"])
async def test_any_name_and_id_survives_the_fields(log: RedisLog, commands: PlainCommands, event_type: str) -> None:
    job_id = 'a "job" \\ /ü'
    event = JobEvent(event_type=event_type, job_id=job_id, timestamp=event_type, data={"a": 1})
    payload = encode_payload(event)[0]
    await log.append(job_tape(job_id), NewEvent(event_type, payload))
    (entry,) = await log.read(job_tape(job_id))
    assert (entry.event_type, entry.payload) == (event_type, payload)
    ((_, fields),) = await commands.send(("XRANGE", job_tape(job_id), "-", "+"))
    assert fields[::2] == [b"data", b"timestamp", b"event_type"]
    assert fields[5].decode() == event_type


async def test_the_time_of_a_job_event_is_its_timestamp_or_the_birth_of_the_tape(commands: PlainCommands) -> None:
    clock = ManualClock()
    log = RedisLog(commands, clock=clock)
    born = clock.now()
    await log.append(JOB, step())
    clock.advance(60)
    await log.append(JOB, NewEvent("x", b'{"event_type":"x","job_id":"j1","timestamp":"soon","data":1}'))
    await log.append("other", said("a"))
    assert [entry.time for entry in await log.read(JOB)] == [datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), born]
    assert (await log.read("other"))[0].time == clock.now()


LIVES = [
    Live(),
    Live(b'{"event_type":"said","text":"short"}'),
    Live(lossy=True),
    Live(traceparent='00-"odd"-01'),
    Live(b"{}", "error_comms_update", True, "00-ab-cd-01"),
]


@pytest.mark.parametrize("live", LIVES)
@pytest.mark.parametrize("event", [said("é"), NewEvent("end", b"{}", final=True), step(), step("task_failed")])
async def test_the_envelope_is_what_the_codec_writes(
    redis_servers: RedisServers, recorder: RedisRecorder, event: NewEvent, live: Live
) -> None:
    async with listening(redis_servers.get("redis"), channel := f"bytes/{time.monotonic_ns()}") as heard:
        made = await recorder.record(JOB, channel, event, live=live)
        assert made.receivers == 1
        data = await anext(heard)
    expected = Envelope(
        event.payload if live.payload is None else live.payload,
        event.event_type,
        made.position.offset,
        made.position.epoch,
        final=event.final,
        lossy=live.lossy,
        traceparent=live.traceparent,
    )
    assert data == expected.encode()


# ---- other writers ---------------------------------------------------------------------------------------------------


async def test_a_stream_of_the_seed_is_a_tape(commands: PlainCommands, log: RedisLog) -> None:
    first = await seed_publishes(
        commands, {"event_type": "task_started", "timestamp": "2030-01-01T00:00:00", "a": "大"}
    )
    last = await seed_publishes(commands, {})
    tape = await log.describe(JOB)
    assert tape is not None
    assert (tape.owner, tape.mixed, tape.channel, tape.final) == (None, True, job_channel("j1"), False)
    assert (tape.first_offset, tape.offset) == (offset_of(first), offset_of(last))
    assert await log.describe(JOB) == tape, "the epoch stays"
    started, unknown = await log.read(JOB, epoch=tape.epoch)
    assert json.loads(started.payload) == {
        "event_type": "task_started",
        "job_id": "j1",
        "timestamp": "2030-01-01T00:00:00",
        "data": {"event_type": "task_started", "timestamp": "2030-01-01T00:00:00", "a": "大"},
    }
    assert started.time == datetime(2030, 1, 1, tzinfo=UTC)
    assert (unknown.event_type, json.loads(unknown.payload)["timestamp"]) == ("unknown", "")
    assert abs(unknown.time - datetime.now(UTC)) < timedelta(minutes=5)
    assert await log.read(JOB, started.offset) == [unknown]
    assert await log.read(JOB, unknown.offset) == []
    assert Position.parse(str(tape.position)) == tape.position
    await seed_publishes(commands, {"event_type": "task_completed"})
    ended = await log.describe(JOB)
    assert ended is not None
    assert ended.final
    assert ended.epoch == tape.epoch


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        (("data", "plain text"), "plain text"),
        (("data", "[1,"), "[1,"),
        (("data", "NaN"), "NaN"),
        (("data", b"\xff"), "\\xff"),
        (("a", "1", "b", "2"), {"a": "1", "b": "2"}),
    ],
)
async def test_what_is_not_json_becomes_json(
    commands: PlainCommands, log: RedisLog, fields: Sequence[Word], data: Any
) -> None:
    await commands.send(("XADD", JOB, "*", *fields))
    (entry,) = await log.read(JOB)
    assert json.loads(entry.payload) == {"event_type": "unknown", "job_id": "j1", "timestamp": "", "data": data}


async def test_from_the_seed_to_ours_and_back_nothing_is_lost(commands: PlainCommands, recorder: RedisRecorder) -> None:
    log = RedisLog(commands)
    await seed_publishes(commands, {"event_type": "task_started"})
    before = await log.describe(JOB)
    assert before is not None
    made = await recorder.record(JOB, "job_event/j1", step(n=1), owner="u", idempotency_key="k")
    await seed_publishes(commands, {"event_type": "task_progress"})
    last = await recorder.record(JOB, "job_event/j1", step("task_completed"))
    assert made.mixed
    assert last.mixed
    assert made.position.epoch == before.epoch
    again = await recorder.record(JOB, "job_event/j1", step(n=1), idempotency_key="k")
    assert (again.position, again.entry_id, again.repeated) == (made.position, made.entry_id, True)
    entries = await log.read(JOB)
    assert [entry.event_type for entry in entries] == [
        "task_started",
        "task_progress",
        "task_progress",
        "task_completed",
    ]
    assert [entry.offset for entry in entries] == sorted({entry.offset for entry in entries})
    assert entries[1].offset == made.position.offset
    assert made.entry_id == id_of(made.position.offset)
    plain_view = await commands.send(("XRANGE", JOB, "-", "+"))
    assert [json.loads(fields[1]) for _, fields in plain_view][1] == {"n": 1}
    assert [fields[::2] for _, fields in plain_view] == [[b"data", b"timestamp", b"event_type"]] * 4
    tape = await log.describe(JOB)
    assert tape is not None
    assert (tape.owner, tape.mixed, tape.final, tape.offset) == ("u", True, True, last.position.offset)
    assert await log.trim(JOB, keep_after=made.position.offset) == 2
    assert [entry.offset for entry in await log.read(JOB)] == [entry.offset for entry in entries[2:]]


async def test_numbers_stay_when_somebody_else_writes_later(commands: PlainCommands, log: RedisLog) -> None:
    first = await log.append(JOB, step(n=1))
    await log.append(JOB, step(n=2))
    await seed_publishes(commands, {"event_type": "x"})
    tape = await log.describe(JOB)
    assert tape is not None
    assert (tape.mixed, tape.epoch) == (True, first.epoch)
    after = await log.append(JOB, step(n=3))
    entries = await log.read(JOB, 1, epoch=first.epoch)
    assert [entry.offset for entry in entries][0::2] == [2, after.offset]
    assert await log.offset_at(JOB, datetime.now(UTC) + timedelta(hours=1)) == after.offset


@pytest.mark.parametrize("before", ["own", "theirs"])
async def test_large_entries_are_looked_at_once(before: str, commands: PlainCommands, log: RedisLog) -> None:
    async def looks() -> int:
        told: bytes = await commands.send(("INFO", "commandstats"))
        found = re.search(rb"cmdstat_xinfo\|stream:calls=(\d+)", told)
        return int(found[1]) if found else 0

    async def described() -> tuple[int, int, bool]:
        tape = await log.describe(JOB)
        assert tape is not None
        count = await looks()
        assert await log.describe(JOB) == tape
        assert await looks() == count
        return tape.first_offset, tape.offset, tape.final

    large = {"event_type": "x", "data": "y" * 100_000}
    first = (
        (await log.append(JOB, step(n=1))).offset
        if before == "own"
        else offset_of(await seed_publishes(commands, large))
    )
    second = offset_of(await seed_publishes(commands, large))
    assert await described() == (first, second, False)
    third = offset_of(await seed_publishes(commands, {"event_type": "task_progress"}))
    await seed_publishes(commands, large)
    await commands.send(("XTRIM", JOB, "MAXLEN", 2))
    last = await seed_publishes(commands, {**large, "event_type": "task_completed"})
    assert await described() == (third, offset_of(last), True)
    await commands.send(("XTRIM", JOB, "MAXLEN", 1))
    assert await described() == (offset_of(last), offset_of(last), True)
    small = await seed_publishes(commands, {})
    assert await described() == (offset_of(last), offset_of(small), True)
    await commands.send(("XDEL", JOB, small))  # an offset that was told is not taken back
    assert await described() == (offset_of(last), offset_of(small), True)
    await commands.send(("DEL", JOB))
    gone = await log.describe(JOB)
    assert gone is not None
    assert gone.first_offset == gone.offset + 1
    again = offset_of(await seed_publishes(commands, large))
    assert await described() == (again, again, True)


async def test_a_mixed_tape_pushes_without_a_position(
    redis_servers: RedisServers, commands: PlainCommands, recorder: RedisRecorder
) -> None:
    await seed_publishes(commands, {})
    event = step("task_completed")
    async with listening(redis_servers.get("redis"), channel := f"mixed/{time.monotonic_ns()}") as heard:
        await recorder.record(JOB, channel, event)
        data = await anext(heard)
    assert data == Envelope(event.payload, event.event_type, final=True).encode()


async def test_offsets_go_on_after_the_stream_was_deleted(commands: PlainCommands, log: RedisLog) -> None:
    first = await log.append("t", said("a"))
    await commands.send(("DEL", "t"))
    assert await log.read("t", epoch=first.epoch) == []
    tape = await log.describe("t")
    assert tape is not None
    assert (tape.offset, tape.first_offset) == (1, 2)
    assert await log.append("t", said("b")) == Position(first.epoch, 2)


async def test_a_key_that_is_no_stream_is_an_error_of_the_log(commands: PlainCommands, log: RedisLog) -> None:
    await commands.send(("SET", "t", "text"))
    for call in (log.append("t", said("a")), log.read("t"), log.describe("t")):
        with pytest.raises(LogError) as caught:
            await call
        assert not isinstance(caught.value, LogUnavailableError)


async def test_a_name_with_braces_is_refused(log: RedisLog) -> None:
    for call in (log.append("a{b}", said("a")), log.read("a{b}"), log.describe("a{b}")):
        with pytest.raises(LogError):
            await call


# ---- who may write, and how often ------------------------------------------------------------------------------------


async def test_two_publishers_race_for_one_tape(redis_servers: RedisServers) -> None:
    server, db = redis_servers.get("redis"), redis_servers.new_db()
    async with plain(server.port, db) as one, plain(server.port, db) as two:
        recorders = [RedisRecorder(one), RedisRecorder(two)]

        async def publish(number: int) -> Any:
            return await recorders[number % 2].record(JOB, "c/x", step(n=number), owner=f"u{number % 2}")

        results = await asyncio.gather(*(publish(number) for number in range(40)), return_exceptions=True)
        tape = await RedisLog(one).describe(JOB)
        assert tape is not None
        winner = int((tape.owner or "")[1:])
        assert all(isinstance(result, NotFoundError) for result in results[1 - winner :: 2])
        assert [result.position.offset for result in results[winner::2]] == list(range(1, 21))
        theirs = await recorders[0].record(JOB, "c/x", step(), owner="admin", any_owner=True)
        assert theirs.position.offset == 21
        assert (await recorders[1].record(JOB, "c/x", step())).position.offset == 22


async def test_two_writers_without_owner_share_one_numbering(redis_servers: RedisServers) -> None:
    server, db = redis_servers.get("redis"), redis_servers.new_db()
    async with plain(server.port, db) as one, plain(server.port, db) as two:
        logs = [RedisLog(one), RedisLog(two)]
        positions = await asyncio.gather(*(logs[n % 2].append("t", said(str(n))) for n in range(100)))
        assert sorted(position.offset for position in positions) == list(range(1, 101))


async def test_keys_are_remembered_as_long_as_their_entries(commands: PlainCommands, log: RedisLog) -> None:
    first = [await log.append("t", said(str(n)), idempotency_key=f"k{n}") for n in range(4)]
    await log.trim("t", keep_after=2)
    assert await commands.send(("ZRANGE", "{t}:keys", 0, -1)) == [b"k2", b"k3"]
    assert await log.append("t", said("x"), idempotency_key="k3") == first[3]
    assert (await log.append("t", said("x"), idempotency_key="k0")).offset == 5


# ---- time ------------------------------------------------------------------------------------------------------------


async def test_a_clock_that_goes_backwards_changes_no_number(commands: PlainCommands) -> None:
    clock = ManualClock()
    log = RedisLog(commands, clock=clock)
    start = clock.now()
    await log.append("t", said("a"))
    clock.advance(3600)
    await log.append("t", said("b"))
    clock.advance(-7200)
    assert (await log.append("t", said("c"))).offset == 3
    assert [entry.offset for entry in await log.read("t")] == [1, 2, 3]
    assert await log.offset_at("t", start) in {1, 3}


async def test_the_offset_at_a_time_is_never_a_later_one(commands: PlainCommands) -> None:
    clock = ManualClock()
    log = RedisLog(commands, clock=clock)
    assert await log.offset_at("t", clock.now()) == 0
    times = []
    for n in range(12):
        clock.advance(10 if n % 3 else 50)
        await log.append("t", said(str(n)))
        times.append(clock.now())
    assert await log.offset_at("t", times[0] - timedelta(seconds=1)) == 0
    for offset, moment in enumerate(times, start=1):
        assert offset - 3 <= await log.offset_at("t", moment) <= offset
    assert await log.offset_at("t", clock.now() + timedelta(days=1)) == 12
    assert await log.offset_at("t", clock.now()) == 12
    await log.trim("t", keep_after=await log.offset_at("t", times[6]))
    assert 5 <= len(await log.read("t")) <= 8


async def test_a_copy_has_the_time_of_its_event(commands: PlainCommands, log: RedisLog) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    for tape, event in (("t", said("a")), (JOB, NewEvent("x", b"{}"))):
        await log.create(tape, owner=None, channel="", epoch="e")
        await log.put(tape, Position("e", 1), replace(event, at_us=int(long_ago.timestamp() * 1_000_000)))
        assert (await log.read(tape))[0].time == long_ago
        assert await log.offset_at(tape, long_ago) == 1


async def test_redis_forgets_a_finished_job_after_a_day_and_its_number_a_week_later(
    commands: PlainCommands, recorder: RedisRecorder
) -> None:
    day = 24 * 3600 * 1000
    await recorder.record(JOB, "c", step(), idempotency_key="k")
    for key, expected in ((JOB, 30 * day), (f"{{{JOB}}}:keys", 30 * day), (f"{{{JOB}}}:meta", 37 * day)):
        assert expected - 60_000 < await commands.send(("PTTL", key)) <= expected + 30_000
    await recorder.record(JOB, "c", step("task_completed"))
    for key, expected in ((JOB, day), (f"{{{JOB}}}:keys", day), (f"{{{JOB}}}:meta", 8 * day)):
        assert expected - 60_000 < await commands.send(("PTTL", key)) <= expected + 30_000
    assert 0 < await commands.send(("PTTL", f"{{{JOB}}}:w:{recorder._lanes._writer}")) <= 600_000


async def test_the_times_to_live_are_renewed_now_and_then(commands: PlainCommands) -> None:
    clock = ManualClock()
    log = RedisLog(commands, clock=clock)
    await log.append("t", said("a"))
    await commands.send(("PEXPIRE", "t", 5000))
    await log.append("t", said("b"))
    assert await commands.send(("PTTL", "t")) <= 5000
    clock.advance(31)
    await log.append("t", said("c"))
    assert await commands.send(("PTTL", "t")) > 5000


async def test_a_tape_may_keep_its_newest_entries_only(commands: PlainCommands) -> None:
    clock = ManualClock()
    log = RedisLog(commands, clock=clock, retention=TapeRetention(max_entries=200))
    for n in range(0, 1000, 50):
        clock.advance(10)
        await asyncio.gather(*(log.append("t", said(str(n + k)), idempotency_key=f"k{n + k}") for k in range(50)))
    tape = await log.describe("t")
    assert tape is not None
    assert tape.offset == 1000
    assert 500 < tape.first_offset <= 801
    assert await commands.send(("ZCARD", "{t}:keys")) < 600


# ---- clusters --------------------------------------------------------------------------------------------------------


async def test_all_keys_of_a_tape_share_a_slot(redis_cluster: list[RedisServer]) -> None:
    commands = PlainClusterCommands(redis_cluster)
    log, recorder = RedisLog(commands), RedisRecorder(commands)
    tapes = [f"slots:{n}" for n in range(30)]
    for tape in tapes:
        await recorder.record(tape, "c/x", said("a"), owner="u", idempotency_key="k")
        await log.append(tape, said("b"))
    found = [key.decode() for node in commands.nodes for key in await node.send(("KEYS", "*slots:*"))]
    assert len(found) >= 4 * len(tapes)
    for tape in tapes:
        keys = [key for key in found if key == tape or key.startswith(f"{{{tape}}}:")]
        assert {key_slot(key.encode()) for key in keys} == {key_slot(tape.encode())}
        assert len(keys) == 5
    assert sorted([tape async for tape in log.tapes("slots:")]) == sorted(tapes)
    for key in found:
        await commands.send(("DEL", key), key)
    await commands.close()


async def test_tapes_are_listed_once_whoever_made_them(commands: PlainCommands, log: RedisLog) -> None:
    await log.append("job_events:a*", said("x"))
    await log.create("job_events:b", owner="u", channel="c")
    await commands.send(("XADD", "job_events:c", "*", "data", "{}"))
    await commands.send(("SET", "job_events:text", "no stream"))
    await log.append("other", said("x"))
    assert sorted([tape async for tape in log.tapes("job_events:")]) == [
        "job_events:a*",
        "job_events:b",
        "job_events:c",
    ]
    assert [tape async for tape in log.tapes("job_events:a*")] == ["job_events:a*"]
    assert [tape async for tape in log.tapes("job_events:*")] == []
    assert len([tape async for tape in log.tapes()]) == 4
