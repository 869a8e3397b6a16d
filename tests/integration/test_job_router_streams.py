"""Event streams of the job router, and clients that go."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
import redis.asyncio
from starlette.requests import Request

from integration.job_site import LINES, PATIENCE_S, SSE, Site, blocks, events_of, served
from livetape.auth import Principal
from livetape.errors import NotFoundError
from livetape.events.channel import job_tape


async def test_server_sent_events(site: Site) -> None:
    await site.publish("task_started")
    async with site.stream() as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        begin = answer.headers["x-stream-position"]
        assert begin.endswith("-0")
        await site.publish("task_progress", progress="p")
        await site.publish("task_completed")
        found = await events_of(answer)
    epoch = begin.partition("-")[0]
    assert [block["id"] for block in found] == [f"{epoch}-{number}" for number in (1, 2, 3)]
    assert [block["event"] for block in found] == ["task_started", "task_progress", "task_completed"]
    assert json.loads(found[1]["data"])["data"] == {"event_type": "task_progress", "progress": "p"}


async def test_who_comes_back_gets_the_rest(site: Site) -> None:
    for number in range(5):
        await site.publish("task_progress", number=number)
    await site.publish("task_failed")
    async with site.stream() as answer:
        found = await events_of(answer)
    async with site.stream(headers={"last-event-id": found[2]["id"]}) as answer:
        assert answer.headers["x-stream-position"] == found[2]["id"]
        assert [block["id"] for block in await events_of(answer)] == [block["id"] for block in found[3:]]
    async with site.stream(headers={"last-event-id": found[-1]["id"]}) as answer:
        assert answer.status_code == 204
    async with site.stream(params={"since": "last:2"}) as answer:
        assert [block["id"] for block in await events_of(answer)] == [block["id"] for block in found[4:]]
    assert (await site.get(headers=SSE, since="tomorrow")).status_code == 422


async def test_lines(site: Site) -> None:
    await site.publish("task_started")
    await site.publish("task_completed", result=1)
    answer = await site.get(headers=LINES)
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, last = (json.loads(line) for line in answer.text.splitlines())
    assert (first["offset"], first["event_type"], "final" in first) == (1, "task_started", False)
    assert (last["offset"], last["data"]["data"]["result"], last["final"]) == (2, 1, True)


async def test_what_is_gone_is_told(site: Site) -> None:
    for number in range(4):
        await site.publish("task_progress", number=number)
    tape = await site.events.log.describe(job_tape("J"))
    await site.events.log.trim(tape.name, keep_after=2)
    await site.publish("task_completed")
    async with site.stream(headers={"last-event-id": f"{tape.epoch}-0"}) as answer:
        found = await events_of(answer)
    assert [block["event"] for block in found] == ["gap", "task_progress", "task_progress", "task_completed"]
    assert json.loads(found[0]["data"])["from"] == 1


@pytest.mark.slow
async def test_a_tape_that_others_write_to_as_well(redis_url: str) -> None:
    plain = redis.asyncio.Redis.from_url(redis_url)
    fields = {"data": '{"n":1}', "timestamp": "", "event_type": "task_progress"}
    async with served(redis_url, jobs_unowned="any_user") as site, plain:
        for _ in range(2):
            await plain.xadd("job_events:J", fields)
        page = (await site.get(limit=1)).json()
        assert (page["mixed"], isinstance(page["next"], str)) == (True, True)
        rest = (await site.get(after=page["next"])).json()
        assert (len(rest["events"]), rest["next"]) == (1, rest["offset"])
        async with site.stream(headers={"last-event-id": f"{page['epoch']}-{page['next']}"}) as answer:
            await plain.xadd("job_events:J", fields)
            await site.publish("task_completed", user=None)
            found = await events_of(answer)
        assert [block["event"] for block in found] == ["task_progress", "task_progress", "task_completed"]
        async with site.stream(params={"since": "latest"}, headers={"last-event-id": found[-2]["id"]}) as answer:
            assert [block["id"] for block in await events_of(answer)] == [found[-1]["id"]]
        async with site.stream(headers=LINES, params={"since": "seconds:60"}) as answer:
            lines = [json.loads(line) async for line in answer.aiter_lines()]
            assert [line["event_type"] for line in lines] == [*["task_progress"] * 3, "task_completed"]
            assert [f"{line['epoch']}-{line['offset']}" for line in lines[2:]] == [block["id"] for block in found[1:]]
            assert all(line["mixed"] is True and isinstance(line["offset"], str) for line in lines)
        async with site.stream(headers=LINES, params={"since": "seconds:0"}) as answer:
            assert [line async for line in answer.aiter_lines()] == []
        refused = await site.get(headers=LINES, since="last:1")
        assert (refused.status_code, "counted back" in refused.json()["detail"]) == (422, True)
        for epoch in ("e\r\nX-More: y", "e\n", "\u20ac", "\0"):  # no header of the answer can have it
            assert (await site.get(headers=SSE, since=f"{epoch}-5")).status_code == 422
        published = await site.post({"event_type": "x"})
        assert published.status_code == 201
        newest = (await site.get()).json()["offset"]
        assert published.json() == {"offset": newest, "epoch": page["epoch"], "mixed": True}


@pytest.mark.parametrize("headers", [SSE, LINES], ids=["sse", "lines"])
@pytest.mark.parametrize("mixed", [False, True])
async def test_a_stream_ends_with_the_token_of_its_reader(redis_url: str, headers: dict[str, str], mixed: bool) -> None:
    async with served(redis_url, expiry_grace_seconds=0.1) as site:
        await site.publish("task_started")
        if mixed:
            async with redis.asyncio.Redis.from_url(redis_url) as plain:
                await plain.xadd("job_events:J", {"data": "{}", "timestamp": "", "event_type": "x"})
            await site.publish("task_progress")
        began = asyncio.get_running_loop().time()
        async with site.stream(user="U user 0.3", headers=headers) as answer:
            assert answer.status_code == 200
            async with asyncio.timeout(PATIENCE_S):
                text = "".join([line async for line in answer.aiter_lines()])
        assert "task_started" in text
        assert 0.3 < asyncio.get_running_loop().time() - began < 5
        async with site.stream() as answer:  # one that does not expire goes on
            await site.publish("task_completed")
            assert len(await events_of(answer)) == (4 if mixed else 2)


async def test_a_silent_stream_says_that_it_is_there(url: str) -> None:
    async with served(url, keepalive_seconds=0.05) as site:
        await site.publish("task_started")
        async with site.stream() as answer, asyncio.timeout(PATIENCE_S):
            async for block in blocks(answer):
                if "" in block:
                    break


async def test_a_job_can_be_watched_before_it_begins(site: Site) -> None:
    await site.events.create("J", "U")
    await site.events.create("J", "U")
    with pytest.raises(NotFoundError):
        await site.events.create("J", "V")
    async with site.stream() as answer:
        await site.publish("task_started", user=None)
        await site.publish("task_completed", user=None)
        assert [block["event"] for block in await events_of(answer)] == ["task_started", "task_completed"]


async def test_many_watch_one_job(site: Site) -> None:
    await site.events.create("J", "U")
    async with asyncio.TaskGroup() as tasks:

        async def watch() -> list[str]:
            async with site.stream() as answer:
                return [block["id"] for block in await events_of(answer)]

        watching = [tasks.create_task(watch()) for _ in range(20)]
        async with asyncio.timeout(PATIENCE_S):
            while site.events.open_streams < 20:
                await asyncio.sleep(0.01)
        assert len(site.events._opened.streams.hub.topics()) == 1
        for number in range(50):
            await site.publish("task_progress", number=number)
        await site.publish("task_completed")
    assert {len(task.result()) for task in watching} == {51}
    assert len({tuple(task.result()) for task in watching}) == 1


# ---- clients that go -------------------------------------------------------------------------------------------------


async def test_who_hangs_up_leaves_nothing(site: Site) -> None:
    await site.publish("task_started")
    for end in ("shut", "reset"):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        request = "GET /api/jobs/J/events HTTP/1.1\r\nhost: h\r\nauthorization: U\r\naccept: text/event-stream\r\n\r\n"
        writer.write(request.encode())
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"id: ")
        assert site.events.open_streams == 1
        if end == "reset":
            linger = b"\1\0\0\0\0\0\0\0"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        writer.close()
        await site.settled()


async def test_an_answer_that_is_never_sent_holds_nothing(site: Site) -> None:
    await site.publish("task_started")
    tape = await site.events.visible("J", Principal("U"))
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"accept", b"text/event-stream")],
    }
    await site.events.respond(Request(scope), tape)
    assert site.events.open_streams == 0
    assert not site.events._opened.streams.hub.topics()
