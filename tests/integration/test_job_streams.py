"""Job streams on real servers and embedded: the publisher's older names, the reader, and plain Redis clients beside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from livetape.errors import NotFoundError
from livetape.events.archive import Archiver
from livetape.events.job_record import JobRecord
from livetape.events.open import Backend, open_backend
from livetape.events.reader import JobReader
from livetape.events.recovery import Gap
from livetape.events.retention import Retention, RetentionPolicy
from livetape.events.streams import RedisStreamPublisher
from servers import RedisServer

PATIENCE_S = 10.0


@pytest.fixture(params=[pytest.param("redis", marks=pytest.mark.needs("redis")), "valkey", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Redis, Valkey, or a file."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tapes.db"
    servers = request.getfixturevalue("redis_servers")
    return str(servers.get(request.param).url(servers.new_db()))


@pytest.fixture
async def backend(url: str) -> AsyncIterator[Backend]:
    backend = open_backend(url)
    yield backend
    await backend.close()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def take(items: Any, count: int) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(items) for _ in range(count)]


def numbers(items: Any) -> list[Any]:
    return [item.data["n"] if isinstance(item, JobRecord) else item for item in items]


async def publish(publisher: RedisStreamPublisher, first: int, last: int, job_id: str = "j") -> None:
    for number in range(first, last + 1):
        await publisher.publish_event(job_id, {"event_type": "step", "timestamp": "", "n": number})


# ---- on every backend ------------------------------------------------------------------------------------------------


async def test_a_job_from_beginning_to_end(backend: Backend) -> None:
    publisher = RedisStreamPublisher(backend=backend, user_id="ann")
    reader = JobReader.of(backend)
    assert await publisher.publish_task_started("j", "outline", task_prompt="写大纲") == "1-0"
    async with aclosing(reader.follow("j", until_final=True)) as items:
        (started,) = await take(items, 1)
        assert (started.event_type, started.data["task_prompt"]) == ("task_started", "写大纲")
        await publisher.publish_task_progress("j", "outline", "半")
        await publisher.publish_outline_generated("j", {"title": "技术文档", "nodes": [1]})
        await publisher.publish_task_completed("j", "outline", {"ok": True})
        async with asyncio.timeout(PATIENCE_S):
            rest = [item async for item in items]
    assert [item.event_type for item in rest] == ["task_progress", "outline_generated", "task_completed"]
    assert [item.id for item in rest] == ["2-0", "3-0", "4-0"]
    page = await reader.read("j")
    assert [r[:6] for r in page] == [r[:6] for r in (started, *rest)]
    info = await reader.info("j")
    assert (info.owner, info.length, info.offset, info.final, info.mixed) == ("ann", 4, 4, True, False)
    assert await publisher.get_stream_length("j") == await reader.length("j") == 4
    with pytest.raises(NotFoundError):
        await publisher.publish_event("j", {}, user_id="bob")
    assert [r.event_type async for r in reader.replay("j", 0, types=["outline_generated"])] == ["outline_generated"]
    assert [hit.job_id async for hit in reader.search("技术文档")] == ["j"]


async def test_info_is_a_plain_dict(backend: Backend) -> None:
    publisher = RedisStreamPublisher(backend=backend)
    assert await publisher.get_stream_info("none") == {"length": 0}
    assert await publisher.get_stream_length("none") == 0
    await publish(publisher, 1, 3)
    info = await publisher.get_stream_info("j")
    json.dumps(info)
    assert (info["length"], info["last-generated-id"]) == (3, "3-0")
    assert json.loads(info["last-entry"][1]["data"])["n"] == 3


async def test_pages_filters_and_positions(backend: Backend) -> None:
    reader = JobReader.of(backend)
    await publish(RedisStreamPublisher(backend=backend), 1, 20)
    page = await reader.read("j", limit=7)
    assert numbers(page) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(await reader.read("j", page.next, limit=3)) == [8, 9, 10]
    assert numbers(await reader.read("j", "18-0")) == [19, 20]
    assert numbers(await reader.read("j", 18, where={"n": 20})) == [20]


async def test_following_a_job_while_many_publish(backend: Backend) -> None:
    reader = JobReader.of(backend)
    publishers = [RedisStreamPublisher(backend=backend) for _ in range(4)]
    followers = [reader.follow("j", after) for after in (None, "latest", None)]
    got = [asyncio.create_task(take(items, 400)) for items in followers]
    await asyncio.sleep(0.3)
    await asyncio.gather(*(publish(publisher, 1, 100) for publisher in publishers))
    for task in got:
        assert [record.offset for record in await task] == list(range(1, 401))
    for items in followers:
        await items.aclose()


async def test_what_is_trimmed_is_told_and_the_archive_has_it(backend: Backend, tmp_path: Path) -> None:
    cold = open_backend(f"sqlite:///{tmp_path}/archive.db")
    await publish(RedisStreamPublisher(backend=backend), 1, 50)
    before = [record async for record in JobReader.of(backend).replay("j", 0)]
    retention = Retention(backend.log, RetentionPolicy(max_entries=10), archiver=Archiver(backend.log, cold.log))
    report = await retention.run_once()
    assert (report.trimmed, report.archived, report.failed) == (40, 50, 0)
    reader = JobReader.of(backend)
    async with aclosing(reader.follow("j", 5)) as items:
        gap, first = await take(items, 2)
        assert (gap.first, gap.last, first.offset) == (6, 40, 41)
    both = JobReader.of(backend, archive=cold.log)
    assert [record async for record in both.replay("j", 0)] == before
    async with aclosing(both.follow("j", 5)) as items:
        assert [item.offset for item in await take(items, 45)] == list(range(6, 51))
    await cold.close()


async def test_workers_share_a_job(backend: Backend) -> None:
    reader = JobReader.of(backend)
    await publish(RedisStreamPublisher(backend=backend), 1, 6)
    group = reader.group("j", "workers")
    assert await group.create()
    assert not await group.create()
    one, two = await group.take("a", limit=3), await group.take("b", limit=3)
    assert numbers(item.record for item in (*one, *two)) == [1, 2, 3, 4, 5, 6]
    assert await group.ack(*one) == 3
    assert [item.offset for item in await group.pending()] == [4, 5, 6]
    await asyncio.sleep(0.05)
    async with aclosing(group.consume("c", idle_s=0.02)) as items:
        claimed = await take(items, 3)
    assert numbers(item.record for item in claimed) == [4, 5, 6]
    assert {item.deliveries for item in claimed} == {2}
    assert await group.ack(*(item.record for item in claimed)) == 3
    assert await group.drop()


async def test_a_reader_by_its_url(url: str) -> None:
    async with RedisStreamPublisher(url=url) as publisher:
        await publish(publisher, 1, 3)
    async with JobReader.open(url) as reader:
        assert numbers(await reader.read("j")) == [1, 2, 3]


async def test_replay_reads_many_pages(backend: Backend) -> None:
    publisher = RedisStreamPublisher(backend=backend)
    for first in range(1, 3000, 500):
        await asyncio.gather(*(publish(publisher, number, number) for number in range(first, first + 500)))
    records = [record async for record in JobReader.of(backend).replay("j", 0)]
    assert [record.offset for record in records] == list(range(1, 3001))
    assert sorted(numbers(records)) == list(range(1, 3001))


# ---- beside plain clients of Redis -----------------------------------------------------------------------------------


async def seed_publish(client: redis.asyncio.Redis, job_id: str, event: dict[str, Any]) -> str:
    """As the older publisher does it."""
    fields = {
        "data": json.dumps(event, ensure_ascii=False),
        "timestamp": event.get("timestamp", ""),
        "event_type": event.get("event_type", "unknown"),
    }
    return str(await client.xadd(f"job_events:{job_id}", fields))


async def test_what_a_plain_client_reads(client: redis.asyncio.Redis) -> None:
    publisher = RedisStreamPublisher(client)
    entry_id = await publisher.publish_event("j", {"event_type": "custom", "message": "自定义", "timestamp": "t"})
    await publisher.publish_task_failed("j", "x", error="坏")
    ((name, entries),) = await client.xread({"job_events:j": "0"}, count=10)
    assert name == "job_events:j"
    assert entries[0] == (
        entry_id,
        {
            "data": '{"event_type":"custom","message":"自定义","timestamp":"t"}',
            "timestamp": "t",
            "event_type": "custom",
        },
    )
    assert list(entries[1][1]) == ["data", "timestamp", "event_type"]
    assert json.loads(entries[1][1]["data"])["error"] == "坏"
    assert await client.xlen("job_events:j") == await publisher.get_stream_length("j") == 2
    assert (await client.xread({"job_events:j": entry_id}))[0][1][0][0] == "2-0"


async def test_older_publishers_before_and_after_ours(client: redis.asyncio.Redis, redis_url: str) -> None:
    publisher = RedisStreamPublisher(client)
    theirs = [await seed_publish(client, "j", {"event_type": "step", "n": number}) for number in (1, 2)]
    async with JobReader.open(redis_url) as reader, aclosing(reader.follow("j")) as items:
        assert numbers(await take(items, 2)) == [1, 2]
        ours = await publisher.publish_event("j", {"event_type": "step", "n": 3})
        assert numbers(await take(items, 1)) == [3]
        theirs.append(await seed_publish(client, "j", {"event_type": "step", "n": 4}))
        assert numbers(await take(items, 1)) == [4]
        await publish(publisher, 5, 6)
        assert numbers(await take(items, 2)) == [5, 6]
        info = await reader.info("j")
        assert (info.length, info.mixed) == (6, True)
        page = await reader.read("j")
        assert numbers(page) == [1, 2, 3, 4, 5, 6]
        assert [page.records[i].id for i in (0, 1, 2, 3)] == [*theirs[:2], ours, theirs[2]]
        assert numbers(await reader.read("j", theirs[1], limit=2)) == [3, 4]
    assert await publisher.get_stream_length("j") == 6
    assert [e[1]["event_type"] for e in await client.xrange("job_events:j")] == ["step"] * 6


async def test_an_older_publisher_after_ours(client: redis.asyncio.Redis, redis_url: str) -> None:
    """Its entries are numbered by the server: the tape becomes a mixed one, and nobody loses anything."""
    publisher = RedisStreamPublisher(client)
    await publish(publisher, 1, 2)
    async with JobReader.open(redis_url) as reader, aclosing(reader.follow("j")) as items:
        assert numbers(await take(items, 2)) == [1, 2]
        await seed_publish(client, "j", {"event_type": "step", "n": 3})
        await publish(publisher, 4, 4)
        assert numbers(await take(items, 2)) == [3, 4]
        await seed_publish(client, "j", {"event_type": "task_completed", "n": 5})
        (last,) = await take(items, 1)
        assert (last.data["n"], last.final) == (5, True)
        assert not [item for item in await _replayed(reader) if isinstance(item, Gap)]


async def _replayed(reader: JobReader) -> list[Any]:
    return [item async for item in reader.replay("j", 0)]


async def test_one_loop_and_one_client_per_task_and_nothing_closed(redis_servers: Any) -> None:
    """As Celery tasks do it: `asyncio.run`, a client, a publisher, and away."""
    url = redis_servers.get("valkey").url(redis_servers.new_db())

    async def task(number: int) -> str:
        client = redis.asyncio.Redis.from_url(url, max_connections=2)
        publisher = RedisStreamPublisher(client)
        try:
            await publisher.publish_task_started("j", "t")
            return await publisher.publish_event("j", {"n": number})
        finally:
            await client.aclose()  # its owner's business

    run: Callable[[int], str] = lambda number: asyncio.run(task(number))  # noqa: E731
    assert [await asyncio.to_thread(run, n) for n in range(3)] == ["2-0", "4-0", "6-0"]


@pytest.mark.slow
@pytest.mark.needs("redis")
@pytest.mark.parametrize("own_redis", [{"appendonly": "yes", "appendfsync": "always"}], indirect=True)
async def test_following_over_the_death_of_the_server(own_redis: RedisServer) -> None:
    async with (
        RedisStreamPublisher(url=own_redis.url()) as publisher,
        JobReader.open(own_redis.url()) as reader,
        aclosing(reader.follow("j")) as items,
    ):
        await publish(publisher, 1, 3)
        assert numbers(await take(items, 3)) == [1, 2, 3]
        own_redis.kill()
        own_redis.start()
        await publish(publisher, 4, 5)
        assert numbers(await take(items, 2)) == [4, 5]
        own_redis.kill()
        own_redis.forget()
        own_redis.start()
        await publish(publisher, 1, 1)
        gap, record = await take(items, 2)
        assert (gap.first, gap.last) == (6, None)
        assert record.data["n"] == 1
        assert record.epoch == gap.epoch
