"""`livetape serve all` and `livetape serve gateway` on one Redis: what runs in one process is watched in another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from livetape_process import COMMAND, LivetapeProcess, ending, poll
from servers import RedisServer

pytestmark = [pytest.mark.needs("redis"), pytest.mark.slow]

KEY = "k" * 48


class Site:
    """A `serve all` with its data folder, and gateways on the same Redis."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.folder = folder
        self.redis = redis
        self.environment = {"LIVETAPE_BUS": redis.url(), "LIVETAPE_JWT_VERIFY_KEY": KEY}
        self.all = LivetapeProcess(folder, "serve", "all", environment=self.environment)
        self.gateways: list[LivetapeProcess] = []

    def gateway(self, *words: str, **environment: str) -> LivetapeProcess:
        made = LivetapeProcess(self.folder, "serve", "gateway", *words, environment=self.environment | environment)
        self.gateways.append(made)
        return made

    def graph(self, name: str) -> str:
        graphs = httpx2.get(f"{self.all.url}/api/graphs", trust_env=False).json()
        return str(next(graph["id"] for graph in graphs if graph["name"].startswith(name)))

    def run(self, name: str) -> tuple[str, str]:
        """`(graph, execution)`, started."""
        graph = self.graph(name)
        answer = httpx2.post(f"{self.all.url}/api/graphs/{graph}/execute/1", json={"inputs": {}}, trust_env=False)
        assert answer.status_code < 300, answer.text
        return graph, str(answer.json()["id"])

    def execution(self, graph: str, execution: str) -> dict[str, Any]:
        url = f"{self.all.url}/api/graphs/{graph}/executions/{execution}"
        found: dict[str, Any] = httpx2.get(url, trust_env=False).json()
        return found

    def wait_over(self, graph: str, execution: str) -> int:
        """The last number of its tape."""

        def is_over() -> bool:
            return self.execution(graph, execution)["status"] in ("COMPLETED", "FAILED", "TERMINATED")

        poll(f"the execution is over\n{self.all.output()}", is_over, timeout=40)
        answer = httpx2.get(
            f"{self.all.url}/api/graphs/{graph}/executions/{execution}/events", params={"limit": 1}, trust_env=False
        ).json()
        return int(answer["stream"]["offset"] if "stream" in answer else answer["offset"])

    def redis_length(self, execution: str) -> int:
        answer = self.redis.cli("XLEN", f"execution_events:{execution}")
        return int(answer.removeprefix(":"))


@pytest.fixture
def site(tmp_path: Path, own_redis: RedisServer) -> Iterator[Site]:
    made = Site(tmp_path / "site", own_redis)
    try:
        yield made
    finally:
        with ending(made.all, *made.gateways):
            pass


async def subscribe(socket: ClientConnection, execution: str, since: Any = "earliest") -> dict[str, Any]:
    data = {"graph_exec_id": execution, "since": since, "outputs": "each"}
    await socket.send(json.dumps({"method": "subscribe_graph_execution", "id": "1", "data": data}))
    reply: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
    assert reply["success"], reply
    return reply


async def follow(socket: ClientConnection, upto: int | None = None) -> list[int]:
    """Offsets of the events, up to this one or to the last."""
    offsets: list[int] = []
    async with asyncio.timeout(60):
        while True:
            push = json.loads(await socket.recv())
            assert push["method"] not in ("gap", "error"), push
            if push["method"].endswith("_event"):
                offsets.append(push["offset"])
                if push.get("final") or push["offset"] == upto:
                    return offsets


async def test_a_run_of_one_process_is_watched_on_another_live_and_from_its_start(site: Site) -> None:
    gateway = site.gateway()
    site.all.start()
    gateway.start()
    graph, execution = site.run("Alice")
    async with connect(gateway.ws_url) as socket:
        await subscribe(socket, execution)
        live = await follow(socket)
    last = site.wait_over(graph, execution)
    assert live == list(range(1, last + 1))

    url = f"{gateway.url}/api/graphs/{graph}/executions/{execution}/events"
    page = httpx2.get(url, params={"after": 5, "limit": 3}, trust_env=False)
    assert [event["offset"] for event in page.json()["events"]] == [6, 7, 8]
    for accept, mark in (("text/event-stream", "id: "), ("application/x-ndjson", '{"offset":')):
        stream = httpx2.get(url, headers={"accept": accept}, trust_env=False, timeout=30).text
        lines = [line for line in stream.splitlines() if line.startswith(mark)]
        assert len(lines) >= last, accept
    assert httpx2.get(url.replace(graph, "other"), trust_env=False).status_code == 404
    assert httpx2.get(url.replace(execution, "other"), trust_env=False).status_code == 404

    # Jobs are published and read on either.
    job = {"event_type": "task_completed", "data": {"x": 1}}
    published = httpx2.post(f"{gateway.url}/api/jobs/j/events", json=job, trust_env=False)
    assert (published.status_code, published.json()["offset"]) == (201, 1)
    for process in (site.all, gateway):
        read = httpx2.get(f"{process.url}/api/jobs/j/events", trust_env=False).json()
        assert [event["offset"] for event in read["events"]] == [1]
    assert httpx2.get(f"{gateway.url}/api/jobs/j", trust_env=False).json()["final"] is True

    for path in ("/", "/health", "/livez", "/readyz", "/version", "/asyncapi.json", "/openapi.json", "/metrics"):
        assert gateway.status(path) == 200, path
    missing = httpx2.get(f"{gateway.url}/api/graphs", trust_env=False)
    assert (missing.status_code, set(missing.json()) >= {"message", "detail", "hint", "code"}) == (404, True)
    assert "livetape_websocket_connections_total" in httpx2.get(f"{gateway.url}/metrics", trust_env=False).text
    assert (gateway.stop(), site.all.stop()) == (0, 0)


async def test_a_stop_on_another_process_reaches_the_engine(site: Site) -> None:
    gateway = site.gateway(LIVETAPE_GATEWAY__STOP_SECONDS="1")
    site.all.start()
    gateway.start()
    graph, execution = site.run("Alice")

    async def stop(of: str) -> dict[str, Any]:
        request = {"method": "stop_graph_execution", "id": "s", "data": {"graph_exec_id": of}}
        await socket.send(json.dumps(request))
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 10))
        return answer

    async with connect(gateway.ws_url) as socket:
        accepted = await stop(execution)
        assert (accepted["success"], accepted["data"]) == (True, {"accepted": True})
        site.wait_over(graph, execution)
        assert site.execution(graph, execution)["status"] == "TERMINATED"
        unknown = await stop("unknown")
        assert (unknown["success"], unknown["code"]) == (False, "not_found")
        site.all.stop()
        nobody = await stop(execution)
        assert (nobody["success"], nobody["code"], nobody["retry"]) == (False, "unavailable", True)


@pytest.mark.parametrize("own_redis", [{}, {"appendonly": "yes"}], ids=["loses", "keeps"], indirect=True)
async def test_a_redis_that_is_killed_gets_everything_back(site: Site) -> None:
    keeps = site.redis.options["appendonly"] == "yes"
    gateway = site.gateway()
    site.all.start()
    gateway.start()
    graph, before = site.run("Hello")
    count = site.wait_over(graph, before)
    graph, execution = site.run("Alice")
    async with connect(gateway.ws_url) as socket:
        await subscribe(socket, execution)
        await follow(socket, upto=50)
    site.redis.kill()
    poll("the gateway says that Redis is away", lambda: gateway.status("/readyz") == 503)
    assert gateway.status("/livez") == 200
    down = httpx2.get(f"{gateway.url}/readyz", trust_env=False).json()
    assert {item["pointer"] for item in down["errors"]} & {"/bus", "/log"}
    # The engine goes on meanwhile, and what is new is started.
    graph, second = site.run("Hello")
    site.wait_over(graph, second)
    if not keeps:
        site.redis.forget()
    site.redis.start()
    gateway.wait_for("/readyz", 200)
    site.all.wait_for("/readyz", 200)
    graph = site.graph("Alice")
    last = site.wait_over(graph, execution)
    poll(f"the tape is whole again\n{site.all.output()}", lambda: site.redis_length(execution) == last, timeout=30)
    poll("what ran meanwhile is there", lambda: site.redis_length(second) > 0)
    poll("what was over is there again", lambda: site.redis_length(before) == count)
    async with connect(gateway.ws_url) as socket:
        reply = await subscribe(socket, execution)
        assert reply["data"]["recovered"] is True
        assert await follow(socket) == list(range(1, last + 1))


async def test_a_server_starts_and_works_without_its_redis(site: Site) -> None:
    site.redis.stop()
    gateway = site.gateway()
    for process in (site.all, gateway):
        process.spawn()
        process.wait_for("/livez", 200, timeout=30)
    assert (site.all.status("/readyz"), gateway.status("/readyz")) == (503, 503)
    graph, execution = site.run("Hello")
    last = site.wait_over(graph, execution)
    site.redis.start()
    gateway.wait_for("/readyz", 200)
    site.all.wait_for("/readyz", 200)
    poll("the relay goes on", lambda: site.redis_length(execution) >= 1)
    async with connect(gateway.ws_url) as socket:
        await subscribe(socket, execution)
        assert (await follow(socket))[-1] >= last


async def test_an_older_run_is_readable_where_the_database_is(site: Site) -> None:
    """Tapes that were written before there was a Redis."""
    up = LivetapeProcess(site.folder, "up", environment={"LIVETAPE_JWT_VERIFY_KEY": KEY})
    site.all.port = up.port
    with ending(up):
        up.start()
        graph, execution = site.run("Hello")
        last = site.wait_over(graph, execution)
        up.stop()
    site.all.start()
    assert site.redis_length(execution) == 0
    page = httpx2.get(f"{site.all.url}/api/graphs/{graph}/executions/{execution}/events", trust_env=False).json()
    assert [event["offset"] for event in page["events"]] == list(range(1, last + 1))
    async with connect(site.all.ws_url) as socket:
        await subscribe(socket, execution)
        assert await follow(socket) == list(range(1, last + 1))


async def test_a_stop_tells_sockets_to_go_elsewhere(site: Site) -> None:
    gateway = site.gateway(LIVETAPE_GATEWAY__DRAIN_SECONDS="3")
    gateway.start()
    async with connect(gateway.ws_url) as first, connect(gateway.ws_url) as second:
        gateway.signal(signal.SIGTERM)
        told = [json.loads(await asyncio.wait_for(socket.recv(), 5)) for socket in (first, second)]
        assert [push["method"] for push in told] == ["reconnect", "reconnect"]
        assert gateway.status("/readyz") == 503
        assert gateway.status("/livez") == 200
        with pytest.raises(websockets.InvalidStatus, match="503"):
            async with connect(gateway.ws_url):
                pass
        await first.close()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await asyncio.wait_for(second.recv(), 5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert gateway.wait() == 0


async def test_a_second_signal_ends_it_at_once(site: Site) -> None:
    gateway = site.gateway()
    gateway.start()
    async with connect(gateway.ws_url) as socket:
        gateway.signal(signal.SIGINT)
        assert json.loads(await asyncio.wait_for(socket.recv(), 5))["method"] == "reconnect"
        gateway.signal(signal.SIGINT)
        assert gateway.wait() == 130


async def test_workers_share_a_port_and_one_that_dies_comes_back(site: Site) -> None:
    gateway = site.gateway("--workers", "3", LIVETAPE_GATEWAY__DRAIN_SECONDS="1")
    site.all.start()
    gateway.start()
    poll("all serve", lambda: "3 workers" in gateway.output())
    workers = gateway.workers()
    assert len(workers) == 3
    sockets = [await connect(gateway.ws_url).__aenter__() for _ in range(30)]
    graph, execution = site.run("Hello")
    for socket in sockets:
        await subscribe(socket, execution)
    last = site.wait_over(graph, execution)
    assert [await follow(socket) for socket in sockets] == [list(range(1, last + 1))] * 30

    os.kill(min(workers), signal.SIGKILL)
    poll("another takes its place", lambda: len(gateway.workers() - workers) == 1)
    assert "signal 9" in gateway.output()
    for socket in sockets:
        await socket.close()
    async with connect(gateway.ws_url) as socket:
        await subscribe(socket, execution)
        assert (await follow(socket))[-1] == last
        seen = {
            line.partition('worker="')[2][:1]
            for _ in range(60)
            for line in httpx2.get(f"{gateway.url}/metrics", trust_env=False).text.splitlines()
            if line.startswith("livetape_websocket_connections_total")
        }
        assert seen <= {"0", "1", "2"}
        assert seen
        left = gateway.workers()
        assert gateway.stop() == 0
    assert all(not Path(f"/proc/{pid}").exists() for pid in left)


async def test_workers_end_with_a_parent_that_is_killed(site: Site) -> None:
    gateway = site.gateway("--workers", "2", LIVETAPE_GATEWAY__DRAIN_SECONDS="0")
    gateway.start()
    poll("all serve", lambda: "2 workers" in gateway.output())
    workers = gateway.workers()
    gateway.signal(signal.SIGKILL)
    gateway.wait()
    poll("none is left", lambda: all(not _runs(pid) for pid in workers))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("environment", "words", "said"),
    [
        ({"LIVETAPE_JWT_VERIFY_KEY": KEY}, ("gateway",), "a gateway alone needs a Redis bus"),
        ({"LIVETAPE_BUS": "memory://", "LIVETAPE_JWT_VERIFY_KEY": KEY}, ("gateway",), "a gateway alone needs a Redis"),
        ({"LIVETAPE_BUS": "redis://h"}, ("gateway",), "a gateway needs the key that tokens are checked with"),
        ({"REDIS_HOST": "h"}, ("gateway", "--workers", "2"), "a gateway needs the key"),
        (
            {"LIVETAPE_BUS": "redis://h", "LIVETAPE_LOG": "sqlite:///a.db"},
            ("gateway",),
            "a Redis bus needs a Redis log",
        ),
        ({}, ("all",), "livetape serve all needs a Redis over which others see what happens"),
    ],
)
def test_what_cannot_work_is_refused_with_its_remedy(
    environment: dict[str, str], words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [COMMAND, "serve", *words, "--port", "0"],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.startswith(f"error[LT-E300]: {said}")
    for part in ("because", "set by", "fix"):
        assert f"  {part:<9} " in ended.stderr
    assert not (tmp_path / ".livetape").exists(), "nothing is made for what cannot start"


def test_a_gateway_loads_neither_the_engine_nor_a_database() -> None:
    code = (
        "import sys, livetape.cli.commands.serve, livetape.runtime.gateway, livetape.adapters.redis.open\n"
        "print(*sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = (
        "sqlalchemy",
        "alembic",
        "jinja2",
        "livetape.engine",
        "livetape.adapters.sql",
        "livetape.adapters.sqlite",
    )
    assert [name for name in loaded if name.startswith(unwanted)] == []
