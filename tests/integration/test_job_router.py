"""The job router in an application of somebody else, on uvicorn over real sockets, embedded and on Redis."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
import redis.asyncio
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from starlette.requests import Request

import support
from conftest import RedisServers
from livetape.auth import Principal
from livetape.errors import ClosedError, ConfigError, NotFoundError
from livetape.events.channel import job_tape
from livetape.gateway.fastapi import JobEvents, create_job_router
from livetape.gateway.options import GatewayOptions
from servers import RedisServer

PATIENCE_S = 10.0
SSE = {"accept": "text/event-stream"}
LINES = {"accept": "application/x-ndjson"}


@pytest.fixture(
    params=["sqlite", pytest.param("redis", marks=pytest.mark.needs("redis")), "valkey"],
)
def url(request: pytest.FixtureRequest, tmp_path: Path, redis_servers: RedisServers) -> str:
    """An empty log."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tapes.db"
    return redis_servers.get(request.param).url(redis_servers.new_db())


def authenticate(authorization: Annotated[str, Header()] = "") -> Principal:
    """Their application's own way: `Authorization: <user> [<role>]`."""
    user_id, _, role = authorization.partition(" ")
    if not user_id:
        raise HTTPException(401, "Who are you?")
    return Principal(user_id, role=role)


class Server(uvicorn.Server):
    """In the loop of the test; signals are not its business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Site:
    """An application that is served: its job events, and how to talk to it."""

    events: JobEvents
    http: httpx2.AsyncClient
    port: int

    async def publish(self, event_type: str, job: str = "J", *, user: str | None = "U", **data: Any) -> None:
        """As a worker does."""
        await self.events.publisher.publish_event(job, {"event_type": event_type, **data}, user_id=user)

    async def get(self, job: str = "J", user: str = "U", headers: dict[str, str] | None = None, **query: Any) -> Any:
        return await self.http.get(
            f"/api/jobs/{job}/events", params=query, headers={"authorization": user, **(headers or {})}
        )

    async def post(self, body: Any, job: str = "J", user: str = "U") -> Any:
        return await self.http.post(f"/api/jobs/{job}/events", json=body, headers={"authorization": user})

    @asynccontextmanager
    async def stream(self, job: str = "J", user: str = "U", **options: Any) -> AsyncIterator[Any]:
        headers = {"authorization": user, **SSE, **options.pop("headers", {})}
        async with self.http.stream("GET", f"/api/jobs/{job}/events", headers=headers, **options) as answer:
            yield answer

    async def settled(self) -> None:
        """Nothing is sent or watched any more."""
        async with asyncio.timeout(PATIENCE_S):
            while self.events.open_streams or self.events._opened.streams.hub.topics():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def served(url: str, *, jobs_unowned: Any = "admin", **options: Any) -> AsyncIterator[Site]:
    events = JobEvents(url, options=GatewayOptions(**options))
    app = FastAPI()
    app.include_router(create_job_router(events, authenticate=authenticate, jobs_unowned=jobs_unowned, prefix="/api"))

    @app.post("/reports/{report}")
    async def report(report: str, job_events: JobEvents = Depends(events)) -> str:  # noqa: B008
        await job_events.create(report, "U")
        await job_events.publisher.publish_task_started(report, "report", user_id="U")
        return report

    port = support.free_port()
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, lifespan="on", log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(PATIENCE_S):
        await server.ready.wait()
    address = f"http://127.0.0.1:{port}"
    try:
        async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_S, trust_env=False) as http:
            site = Site(events, http, port)
            yield site
        await site.settled()
    finally:
        events.end_streams()
        server.should_exit = True
        async with asyncio.timeout(PATIENCE_S):
            await serving
    with pytest.raises(ClosedError):
        _ = events.publisher


@pytest.fixture
async def site(url: str) -> AsyncIterator[Site]:
    async with served(url) as made:
        yield made


async def blocks(answer: Any) -> AsyncIterator[dict[str, str]]:
    """The events of a stream: their fields by name; comments under the empty name."""
    found: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            found[name] = value.removeprefix(" ")
        elif found:
            yield found
            found = {}


async def events_of(answer: Any) -> list[dict[str, str]]:
    """All to the end of the stream, without the first block, which only says when to come back."""
    async with asyncio.timeout(PATIENCE_S):
        found = [block async for block in blocks(answer)]
    assert set(found[0]) == {"retry"}
    return found[1:]


# ---- pages -----------------------------------------------------------------------------------------------------------


async def test_a_page(site: Site) -> None:
    await site.publish("task_started", task_type="t")
    await site.publish("task_progress", progress="一半")
    await site.publish("task_completed", result={"n": 1})
    body = (await site.get()).json()
    assert [event["offset"] for event in body["events"]] == [1, 2, 3]
    assert [event["event_type"] for event in body["events"]] == ["task_started", "task_progress", "task_completed"]
    assert body["events"][1]["data"] == {
        "event_type": "task_progress",
        "job_id": "J",
        "timestamp": "",
        "data": {"event_type": "task_progress", "progress": "一半"},
    }
    assert (body["next"], body["offset"], body["final"]) == (3, 3, True)
    page = (await site.get(after=1, limit=1)).json()
    assert ([event["offset"] for event in page["events"]], page["next"]) == ([2], 2)
    chosen = (await site.get(types="task_completed,other")).json()
    assert [event["offset"] for event in chosen["events"]] == [3]


@pytest.mark.parametrize("query", [{"after": "-1"}, {"after": "x"}, {"limit": "0"}, {"limit": "1001"}])
async def test_a_page_that_cannot_be_is_refused(site: Site, query: dict[str, str]) -> None:
    await site.publish("task_started")
    assert (await site.get(**query)).status_code == 422


# ---- publishing ------------------------------------------------------------------------------------------------------


async def test_publish(site: Site) -> None:
    first = await site.post({"event_type": "task_started", "data": {"a": [1, None]}})
    assert first.status_code == 201
    assert set(first.json()) == {"offset", "epoch"}
    again = {"event_type": "x", "data": "d", "timestamp": "2030-01-01T00:00:00Z", "idempotency_key": "k"}
    second, third = await site.post(again), await site.post(again)
    assert second.json() == third.json() == {"offset": 2, "epoch": first.json()["epoch"]}
    body = (await site.get()).json()
    assert [event["data"]["data"] for event in body["events"]] == [{"a": [1, None]}, "d"]
    assert body["events"][1]["data"]["timestamp"] == "2030-01-01T00:00:00Z"
    assert body["events"][0]["data"]["timestamp"].startswith("20")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b'{"event_type":""}', 422),
        (b'{"event_type":"a\\u0000b"}', 422),
        (b'{"data":1}', 422),
        (b'{"event_type":"x","data":NaN}', 422),
        (b'{"event_type":"x","data":' + b"[" * 300 + b"]" * 300 + b"}", 422),
        (b"[]", 422),
        (b'{"event_type":"x","data":"' + b"a" * 1024 * 1024 + b'"}', 413),
        (b'{"event_type":"x","data":"\\ud800"}', 201),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bodies(site: Site, content: bytes, status: int) -> None:
    headers = {"authorization": "U", "content-type": "application/json"}
    answer = await site.http.post("/api/jobs/J/events", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()


async def test_a_form_of_another_page_is_refused(site: Site) -> None:
    answer = await site.http.post("/api/jobs/J/events", content=b"{}", headers={"authorization": "U"})
    assert answer.status_code == 415


# ---- who may ---------------------------------------------------------------------------------------------------------


def test_without_authentication_there_is_no_router() -> None:
    with pytest.raises(ConfigError) as raised:
        create_job_router("memory://")
    assert "authenticate" in str(raised.value.fix)


async def test_who_is_not_signed_in_is_told_by_the_application(site: Site) -> None:
    for answer in (await site.get(user=""), await site.post({"event_type": "x"}, user="")):
        assert (answer.status_code, answer.json()) == (401, {"detail": "Who are you?"})


async def test_a_job_is_its_owners(site: Site) -> None:
    await site.post({"event_type": "task_started"}, user="U")
    unknown = await site.get(job="unknown", user="V")
    for user in ("V", "V admin"):
        foreign = await site.get(user=user)
        assert foreign.status_code == 404
        assert foreign.text == unknown.text.replace("unknown", "J")
        assert (await site.get(user=user, headers=SSE)).status_code == 404
    assert (await site.post({"event_type": "x"}, user="V")).status_code == 404
    assert (await site.get()).json()["offset"] == 1


@pytest.mark.parametrize(("unowned", "statuses"), [("admin", (404, 200)), ("any_user", (200, 200))])
async def test_jobs_without_an_owner(url: str, unowned: str, statuses: tuple[int, int]) -> None:
    async with served(url, jobs_unowned=unowned) as site:
        await site.publish("task_started", user=None)
        assert ((await site.get()).status_code, (await site.get(user="A admin")).status_code) == statuses


async def test_nobody_gets_a_job_without_an_owner_by_writing_to_it(site: Site) -> None:
    await site.publish("task_started", user=None, secret="s")
    assert (await site.post({"event_type": "x"}, user="U")).status_code == 404
    assert (await site.get(user="U")).status_code == 404


@pytest.mark.parametrize("given", [None, "", Principal("")])
async def test_an_empty_user_is_nobody(given: Any, tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(create_job_router(f"sqlite:///{tmp_path}/t.db", authenticate=lambda: given))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app") as http,
    ):
        answer = await http.get("/jobs/J/events")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


# ---- streams ---------------------------------------------------------------------------------------------------------


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
        async with site.stream(headers=LINES, params={"since": "last:1"}) as answer:
            lines = [json.loads(line) async for line in answer.aiter_lines()]
            assert [line["event_type"] for line in lines] == [*["task_progress"] * 3, "task_completed"]


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
        began = asyncio.get_running_loop().time()
        await site.settled()
        assert asyncio.get_running_loop().time() - began < 2


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


# ---- life ------------------------------------------------------------------------------------------------------------


async def test_the_dependency(site: Site) -> None:
    assert (await site.http.post("/reports/R")).json() == "R"
    assert (await site.get(job="R")).json()["offset"] == 1


async def test_an_id_may_have_a_slash(site: Site) -> None:
    await site.publish("task_started", job="a/b")
    assert (await site.get(job="a/b")).json()["offset"] == 1
    assert (await site.get(job="a%2Fb")).json()["offset"] == 1
    assert (await site.get(job="a*")).status_code == 400


async def test_opened_by_several_closed_by_the_last(url: str) -> None:
    events = JobEvents(url)
    with pytest.raises(ClosedError):
        await events()
    for _ in range(2):
        async with events:
            async with events.lifespan():
                await events.publisher.publish_event("J", {"event_type": "x"})
            assert (await events.log.describe(job_tape("J"))) is not None
        with pytest.raises(ClosedError):
            _ = events.reader


def test_nothing_durable_is_refused() -> None:
    async def opened() -> None:
        async with JobEvents("memory://"):
            pass

    with pytest.raises(ConfigError, match="durable"):
        asyncio.run(opened())
    for wrong in ({}, {"url": "redis://h", "client": object()}):
        with pytest.raises(ConfigError):
            JobEvents(**wrong)


async def test_both_routes_are_described(site: Site) -> None:
    found = (await site.http.get("/openapi.json")).json()["paths"]["/api/jobs/{job_id}/events"]
    assert {parameter["name"] for parameter in found["get"]["parameters"]} >= {"job_id", "after", "since", "limit"}
    assert "event_type" in json.dumps(found["post"]["requestBody"])


@pytest.mark.slow
@pytest.mark.needs("redis")
async def test_a_log_that_is_away_is_told(own_redis: RedisServer) -> None:
    async with served(own_redis.url()) as site:
        await site.publish("task_started")
        own_redis.kill()
        for answer in (await site.get(), await site.get(headers=SSE), await site.post({"event_type": "x"})):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert str(own_redis.port) not in answer.text
        own_redis.start()
        assert (await site.post({"event_type": "x"})).status_code == 201


APP = """
import os
from fastapi import FastAPI
from livetape.gateway.fastapi import JobEvents, create_job_router
job_events = JobEvents(os.environ["TAPES"])
app = FastAPI()
app.include_router(create_job_router(job_events, authenticate=lambda: "U"))
"""


@pytest.mark.slow
async def test_streams_let_the_server_stop(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(APP)
    port = support.free_port()
    words = [sys.executable, "-m", "uvicorn", "site_app:app", "--port", str(port), "--no-access-log"]
    environment = {"TAPES": f"sqlite:///{tmp_path}/tapes.db", "PYTHONPATH": str(tmp_path), "PATH": ""}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False) as http:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        assert (await http.post("/jobs/J/events", json={"event_type": "x"})).status_code == 201
                    except httpx2.TransportError:
                        await asyncio.sleep(0.1)
                    else:
                        break
            async with http.stream("GET", "/jobs/J/events", headers=SSE) as answer:
                lines = answer.aiter_lines()
                assert (await anext(lines)).startswith("retry:")
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(5):
                    async for _ in lines:
                        pass
        assert process.wait(5) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        _, output = process.communicate()
    assert b"Traceback" not in output, output.decode()
