"""The socket on Redis, where a plain client of Redis writes to a tape as well."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio

from livetape.events.jobs import Jobs
from livetape.events.open import open_backend
from livetape.gateway.hub import MAX_OWN_PATTERNS
from unit.gateway.rig import Rig, go_on, offsets, rigged


async def until_quiet(rig: Rig, client: Any, count: int) -> list[dict[str, Any]]:
    """So many messages, while time passes for those who look at the tape from time to time."""
    passing = asyncio.create_task(go_on(rig))
    try:
        found: list[dict[str, Any]] = await client.take(count)
        await client.expect_silence()
        return found
    finally:
        passing.cancel()


@pytest.mark.parametrize("others", ["plain first", "plain later"])
async def test_a_tape_that_others_write_to_as_well(redis_url: str, others: str) -> None:
    backend: Any = open_backend(redis_url)
    async with redis.asyncio.Redis.from_url(redis_url) as plain, rigged(bus=backend.bus, log=backend.log) as rig:
        jobs = Jobs(backend.recorder)

        async def xadd(number: int) -> None:
            fields = {"data": str(number), "timestamp": "", "event_type": "task_progress"}
            await plain.xadd("job_events:J", fields)

        await backend.log.create("job_events:J", owner="U", channel="job_event/J")
        if others == "plain first":
            await xadd(1)
        else:
            await jobs.publish("U", "J", "task_progress", 1)
        client = rig.connect()
        assert (await client.ask({"method": "subscribe_job", "data": {"job_id": "J"}}))["success"] is True
        await jobs.publish("U", "J", "task_progress", 2)
        await xadd(3)
        recorded = await jobs.publish("U", "J", "task_progress", 4)
        assert recorded.mixed
        await xadd(5)
        pushed = await until_quiet(rig, client, 4)
        assert [body["data"]["data"] for body in pushed] == [2, 3, 4, 5]
        assert not any("offset" in body for body in pushed[1:])

        late = rig.connect()
        where = {"epoch": recorded.position.epoch, "offset": recorded.position.offset}
        assert where["offset"] > 2**53
        told = []
        for since in (where, where | {"offset": str(where["offset"])}):
            answer = await late.ask({"method": "subscribe_job", "data": {"job_id": "J", "since": since}})
            told.append((answer["data"]["recovered"], answer["data"]["mixed"], answer["data"]["epoch"]))
            assert (await late.get())["method"] == "replay_complete"
        assert told == [(False, True, where["epoch"])] * 2
    await backend.close()


async def test_ids_that_nobody_knows_are_few_patterns_and_lose_and_double_nothing(redis_url: str) -> None:
    backend: Any = open_backend(redis_url)
    async with redis.asyncio.Redis.from_url(redis_url) as plain, rigged(bus=backend.bus, log=backend.log) as rig:
        count_patterns: Any = plain.pubsub_numpat
        before = await count_patterns()
        await rig.publisher.create("E")
        client, other = rig.connect(), rig.connect()
        await client.subscribe("E")
        for number in range(100):
            await client.subscribe(f"X{number}")
            await other.ask({"method": "subscribe_graph_executions", "data": {"graph_id": f"Y{number}"}})
        await other.subscribe("X99")
        assert await count_patterns() - before <= MAX_OWN_PATTERNS + 1

        # The known one comes by its channel and by the pattern, many together: more than a topic can compare.
        await asyncio.gather(*[rig.publisher.nodes(40, "E") for _ in range(5)])
        pushed = await client.take(200)
        assert sorted(offsets(pushed)) == list(range(1, 201))
        assert {body["channel"] for body in pushed} == {"U|graph_exec#E"}
        assert not [name for name in rig.counts.values if name.startswith("gateway_heals_total")]

        # One of those that nobody knew begins, and is its reader's alone.
        await rig.publisher.create("X99", graph="Y99")
        for _ in range(3):
            await rig.publisher.node(execution="X99", graph="Y99")
        await rig.publisher.graph(execution="X99", graph="Y99")
        assert offsets(await client.take(4)) == [1, 2, 3, 4]
        heard = await other.take(5)
        assert sorted((body["channel"], body["offset"]) for body in heard) == [
            ("U|graph#Y99|executions", 1),
            *[("U|graph_exec#X99", offset) for offset in (1, 2, 3, 4)],
        ]
        await client.expect_silence()
        await other.expect_silence()
    await backend.close()
