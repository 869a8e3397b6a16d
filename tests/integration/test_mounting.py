"""The gateway in an application of somebody else: one line, and it opens, serves and closes with it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import hypercorn
import hypercorn.asyncio
import pytest
from fastapi import FastAPI, Request
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

import support
from conftest import RedisServers
from integration.job_site import PATIENCE_S, SSE
from integration.test_gateway import ask, close_code, receive
from livetape.auth import Authenticator, OriginPolicy, TokenOptions, TokenVerifier, issue_token
from livetape.errors import ClosedError, ConfigError
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.log import NewEvent
from livetape.gateway.access import Access
from livetape.gateway.mount import MountedGateway, mount_gateway
from serving import serving

KEY = "the key of an application, long enough to be one"


@dataclass
class Site:
    """An application with a lifespan, a state and a route of its own, and the gateway in it."""

    app: FastAPI
    gateway: MountedGateway
    told: list[str] = field(default_factory=list)
    port: int = 0

    def token(self, user: str = "U", *, ttl_s: float = 3600) -> str:
        return issue_token(KEY, user_id=user, now=datetime.now(UTC), ttl=timedelta(seconds=ttl_s))

    @asynccontextmanager
    async def socket(self, user: str = "U", *, path: str = "/ws", **options: Any) -> AsyncIterator[ClientConnection]:
        address = f"ws://127.0.0.1:{self.port}{path}?token={self.token(user)}"
        async with connect(address, proxy=None, close_timeout=1, **options) as ws:
            yield ws

    async def get(self, path: str, user: str | None = "U", **headers: str) -> httpx2.Response:
        if user is not None:
            headers["authorization"] = f"Bearer {self.token(user)}"
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as http:
            return await http.get(path, headers=headers)


def application(url: str, **options: Any) -> Site:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        # The gateway is open in all of the application's own life.
        await site.gateway.publisher.publish_task_started("life", "life", user_id="U")
        told.append("started")
        yield {"of": "the application"}
        await site.gateway.publisher.publish_task_completed("life", "life", None)
        told.append("stopped")

    app = FastAPI(lifespan=lifespan)

    @app.get("/own")
    async def own(request: Request) -> str:
        return str(request.state.of)

    site = Site(app, mount_gateway(app, url, key=KEY, **options), told)
    return site


@asynccontextmanager
async def served(site: Site, *, ws: str = "websockets-sansio", lifespan: Any = "on") -> AsyncIterator[Site]:
    async with serving(site.app, ws=ws, lifespan=lifespan) as site.port:
        try:
            yield site
        finally:
            site.gateway.drain()


@pytest.fixture
async def site(url: str) -> AsyncIterator[Site]:
    async with served(application(url)) as made:
        yield made


SUBSCRIBE = '{"method":"subscribe_job","data":{"job_id":"J","since":"earliest"}}'


async def test_sockets_get_what_the_application_publishes(site: Site) -> None:
    assert (await site.get("/own", user=None)).json() == "the application"
    await site.gateway.create("J", "U")
    async with site.socket() as mine, site.socket("V") as theirs:
        assert json.loads(await ask(mine, SUBSCRIBE))["data"]["recovered"] is True
        assert json.loads(await receive(mine))["method"] == "replay_complete"
        assert json.loads(await ask(theirs, SUBSCRIBE))["success"] is True
        await receive(theirs)
        work = asyncio.create_task(site.gateway.publisher.publish_task_started("J", "report"))
        assert json.loads(await receive(mine))["data"]["event_type"] == "task_started"
        await work
        assert json.loads(await ask(theirs, '{"method":"heartbeat"}'))["data"] == "pong"
        assert site.gateway.gateway.sockets == 2


async def test_events_over_http(site: Site) -> None:
    publisher = site.gateway.publisher
    await publisher.publish_task_started("J", "report", user_id="U")
    await publisher.publish_task_completed("J", "report", {"pages": 1})
    page = await site.get("/api/jobs/J/events")
    assert [event["event_type"] for event in page.json()["events"]] == ["task_started", "task_completed"]
    stream = await site.get("/api/jobs/J/events", **SSE)
    assert stream.text.count("event: task_") == 2
    assert [(await site.get("/api/jobs/J/events", user)).status_code for user in ("V", None)] == [404, 401]

    tape = execution_tape("E")
    await site.gateway.log.create(tape, owner="U", channel=execution_channel("U", "G", "E"), graph_id="G")
    await site.gateway.log.append(tape, NewEvent("graph_execution_update", b'{"id":"E"}', final=True))
    assert (await site.get("/api/graphs/G/executions/E/events")).json()["final"] is True
    for path, user in {"/api/graphs/H/executions/E/events": "U", "/api/graphs/G/executions/E/events": "V"}.items():
        answer = await site.get(path, user)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Graph execution #E not found."})


async def test_it_is_described(site: Site) -> None:
    document = (await site.get("/asyncapi.json", user=None)).json()
    assert document["servers"]["this"]["host"] == f"127.0.0.1:{site.port}"
    assert document["channels"]["ws"]["address"] == "/ws"
    paths = (await site.get("/openapi.json", user=None)).json()["paths"]
    assert set(paths) == {
        "/own",
        "/api/jobs/{job_id}/events",
        "/api/graphs/{graph_id}/executions/{graph_exec_id}/events",
    }


async def test_it_lives_as_long_as_the_application(tmp_path: Path) -> None:
    site = application(f"sqlite:///{tmp_path}/tapes.db")
    with pytest.raises(ClosedError):
        _ = site.gateway.gateway
    for _ in range(2):  # an application may be started again
        async with served(site):
            ws = await connect(f"ws://127.0.0.1:{site.port}/ws?token={site.token()}", proxy=None)
            await ask(ws, '{"method":"heartbeat"}')
        assert await close_code(ws) == (1012, "Service restart")
        await ws.close()
        with pytest.raises(ClosedError):
            _ = site.gateway.publisher
    assert site.told == ["started", "stopped"] * 2
    async with site.gateway:
        read = await site.gateway.reader.read("life")
    assert [record.event_type for record in read] == ["task_started", "task_completed"] * 2


@pytest.mark.parametrize("ws", ["auto", "websockets-sansio", "livetape.gateway.transports.uvicorn:GatewayProtocol"])
async def test_plain_uvicorn_carries_it_and_our_own_protocol_too(tmp_path: Path, ws: str) -> None:
    async with served(application(f"sqlite:///{tmp_path}/tapes.db"), ws=ws) as site, site.socket() as socket:
        assert json.loads(await ask(socket, '{"method":"heartbeat"}'))["data"] == "pong"


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_another_server_carries_it(tmp_path: Path) -> None:
    site = application(f"sqlite:///{tmp_path}/tapes.db")
    site.port = support.free_port()
    config = hypercorn.Config.from_mapping(bind=[f"127.0.0.1:{site.port}"], errorlog=None, graceful_timeout=PATIENCE_S)
    stop = asyncio.Event()
    running = asyncio.create_task(hypercorn.asyncio.serve(site.app, config, shutdown_trigger=stop.wait))
    async with asyncio.timeout(PATIENCE_S):
        while not await accepts(site.port):
            await asyncio.sleep(0.01)
    await site.gateway.publisher.publish_task_started("J", "report", user_id="U")
    async with site.socket() as ws:
        await ask(ws, SUBSCRIBE)
        assert json.loads(await receive(ws))["data"]["event_type"] == "task_started"
        site.gateway.drain()
        assert await close_code(ws) == (1012, "Service restart")
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await running
    assert site.told == ["started", "stopped"]


async def test_without_a_lifespan_sockets_are_refused(tmp_path: Path) -> None:
    async with served(application(f"sqlite:///{tmp_path}/tapes.db"), lifespan="off") as site:
        with pytest.raises(InvalidStatus) as refused:
            async with site.socket():
                pass
        assert refused.value.response.status_code == 503
        assert (await site.get("/api/jobs/J/events")).status_code == 503


async def test_what_can_be_chosen(tmp_path: Path) -> None:
    app = FastAPI()
    verifier = TokenVerifier(TokenOptions(verify_key=KEY))
    gateway = mount_gateway(
        app,
        f"sqlite:///{tmp_path}/tapes.db",
        authenticator=Authenticator(verifier, origins=OriginPolicy(["https://page.example"])),
        authenticate=lambda: "U",
        check=lambda principal, subject, tape: Access.DENIED if subject.id == "secret" else Access.GRANTED,
        path="/live",
        prefix="/v1",
    )
    async with served(Site(app, gateway)) as site:
        async with site.socket(path="/live", origin="https://page.example") as ws:
            await ask(ws, '{"method":"heartbeat"}')
        for job in ("secret", "open"):
            await gateway.create(job, "V")
        assert (await site.get("/v1/jobs/open/events", user=None)).status_code == 200
        assert (await site.get("/v1/jobs/secret/events", user=None)).status_code == 404


@pytest.mark.parametrize(
    "options",
    [
        {"url": "memory://"},
        {"key": KEY},
        {"url": "nonsense://", "key": KEY, "client": object()},
        {"url": "memory://", "key": KEY, "authenticator": Authenticator(None, enable_auth=False)},
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        mount_gateway(FastAPI(), **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.needs("redis"))])
def test_the_example_runs(kind: str, tmp_path: Path, redis_servers: RedisServers) -> None:
    arguments = [redis_servers.get("redis").url(redis_servers.new_db())] if kind == "redis" else []
    command = [sys.executable, "-W", "error", str(support.ROOT / "examples" / "gateway_in_fastapi.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["application: started", "client: subscribe_job alice|job#report-1"]
    assert [line for line in lines if "replay_complete" not in line][2:] == [
        "client: 1 task_started",
        "client: 2 task_progress",
        "client: 3 task_completed",
        "application: stopped",
    ]
