"""A stop, a start, and everything is there; what is loaded when the server says that it is ready."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import pytest

from acceptance.api import Api, Started, graph, link, node
from acceptance.server import MakeServer, cli
from acceptance.watch import Watcher, ask, receive, socket
from livetape_process import poll
from reference.blocks import CALCULATOR, STORE

STREAM = "c4a05001-0000-4000-8000-000000000001"
EVENTS = 10_000
DRIVERS = {"redis", "hiredis", "aio_pika", "aiormq", "pika", "asyncpg", "psycopg", "psycopg2", "psycopg_pool"}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_events_replay_in_full_and_in_order_after_a_restart(make_server: MakeServer) -> None:
    server = make_server(blocks=True)
    await asyncio.to_thread(server.start)
    with Api(server.url) as api:
        started = await asyncio.to_thread(api.run, graph([node("stream", STREAM, count=EVENTS)], []))
        execution = await asyncio.to_thread(api.wait, started, 120)
        assert execution["status"] == "COMPLETED"
        before = await asyncio.to_thread(api.events, started)
    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(server.start)
    watcher = Watcher(server.ws_url, started.id)
    async with asyncio.timeout(60):
        await watcher.run()
    assert len(watcher.items) >= EVENTS
    assert [i.offset for i in watcher.items] == list(range(1, len(watcher.items) + 1))
    assert watcher.items == before
    assert watcher.complaints() == []
    assert watcher.items[-1].final
    values = [i.value for i in watcher.items]
    outputs = [v for v in values if v["event_type"] == "node_output_update"]
    assert [v["index"] for v in outputs] == list(range(EVENTS))
    assert [v["value"] for v in outputs] == list(range(EVENTS))
    # Snapshots are coalesced: k outputs cost O(k) bytes, not O(k^2).
    snapshots = sum(len(i.data) for i in watcher.items if i.value["event_type"] == "node_execution_update")
    single = sum(len(i.data) for i in watcher.items if i.value["event_type"] == "node_output_update")
    assert snapshots < 2 * single


async def test_a_graceful_stop_hands_back_and_the_run_goes_on(make_server: MakeServer) -> None:
    server = make_server(blocks=True)
    await asyncio.to_thread(server.start)
    with Api(server.url) as api:
        run = graph(
            [node("stream", STREAM, count=20, pause=0.05), node("echo", STORE)], [link("stream.value", "echo.input")]
        )
        started = await asyncio.to_thread(api.run, run)
        watcher = Watcher(server.ws_url, started.id)
        task = asyncio.create_task(watcher.run())
        await asyncio.to_thread(poll, "some outputs", lambda: len(watcher.items) > 10)
        assert await asyncio.to_thread(server.stop) == 0
        assert not watcher.final
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(30):
            await task
        execution = await asyncio.to_thread(api.execution, started)
        assert execution["status"] == "COMPLETED"
        assert watcher.items == await asyncio.to_thread(api.events, started)
    assert watcher.connections >= 2


async def test_what_was_stored_is_there_after_a_kill(make_server: MakeServer) -> None:
    server = make_server()
    await asyncio.to_thread(server.start)
    with Api(server.url) as api:
        created = await asyncio.to_thread(api.create, graph([node("add", CALCULATOR, operation="Add", a=1, b=2)], []))
        execution = api.ok(await asyncio.to_thread(api.start_raw, created, None, key="k"))
        started = Started(created, execution)
        await asyncio.to_thread(api.wait, started)
        before = await asyncio.to_thread(api.execution, started)  # its `stream` is now that of the end
        job = api.http.post("/api/jobs/j/events", json={"event_type": "task_started", "data": {}}).json()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    with Api(server.url) as api:
        assert await asyncio.to_thread(api.execution, started) == before
        kept = api.ok(api.http.get(f"/api/graphs/{created['id']}"))
        assert kept["nodes"] == created["nodes"]
        # The same key still is the same execution.
        again = api.ok(await asyncio.to_thread(api.start_raw, created, None, key="k"))
        assert again["id"] == started.id
        follow = api.http.post("/api/jobs/j/events", json={"event_type": "task_completed", "data": {}}).json()
        assert follow == {"offset": job["offset"] + 1, "epoch": job["epoch"]}
        async with socket(server.ws_url) as ws:
            data = {"job_id": "j", "since": {"epoch": job["epoch"], "offset": 0}}
            await ask(ws, {"method": "subscribe_job", "data": data})
            got = [json.loads(await receive(ws)) for _ in range(2)]
            assert [g["offset"] for g in got] == [1, 2]


def test_stop_ends_a_running_execution(make_server: MakeServer) -> None:
    server = make_server(blocks=True).start()
    with Api(server.url) as api:
        started = api.run(graph([node("stream", STREAM, count=1000, pause=0.05)], []))
        poll("it runs", lambda: api.execution(started)["status"] == "RUNNING")
        path = f"/api/graphs/{started.graph_id}/executions/{started.id}/stop"
        answer = api.ok(api.http.post(path, params={"wait": 10}))
        assert answer["status"] == "TERMINATED"
        log = api.events(started)
        assert log[-1].final
        assert log[-1].value["status"] == "TERMINATED"
        assert {x["status"] for x in api.execution(started)["node_executions"]} == {"TERMINATED"}
        # Terminal never changes: stopping again says the same, and restarting the server does not wake it.
        assert api.ok(api.http.post(path))["status"] == "TERMINATED"
        server.stop()
        server.start()
        assert api.execution(started)["status"] == "TERMINATED"
        assert api.events(started) == log


def test_no_driver_of_another_server_is_loaded_at_readiness(make_server: MakeServer) -> None:
    """Python itself says what it imported until `/readyz` answered 200."""
    server = make_server(command=[sys.executable, "-X", "importtime", "-m", "livetape"])
    server.start()
    output = server.log_path.read_text(errors="replace")
    loaded = {m.group(1) for m in re.finditer(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", output, re.MULTILINE)}
    assert len(loaded) > 100, "the import times are there"
    assert "sqlite3" in loaded
    assert any(name.startswith("livetape.gateway") for name in loaded)
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & DRIVERS
    assert not {"pytest", "hypothesis"} & tops
    assert not any(name.startswith("livetape.testing") for name in loaded)


def test_ready_means_ready(make_server: MakeServer) -> None:
    """The first request after 200 from /readyz is served, by every part."""
    server = make_server().start()
    with Api(server.url) as api:
        assert api.http.get("/livez").status_code == 200
        assert api.http.get("/health").json() == {"status": "healthy"}
        assert api.http.get("/").json() == {"status": "healthy"}
        assert api.wait(api.run(graph([node("one", STORE, input=1)], [])))["status"] == "COMPLETED"
        assert "openapi" in api.http.get("/openapi.json").json()
        assert "livetape_" in api.http.get("/metrics").text


def test_port_zero_takes_a_free_one_and_says_which(make_server: MakeServer) -> None:
    server = make_server()
    server.port = 0
    server.spawn()
    facts = server.data_dir / "server.json"
    found = poll("it says where it listens", lambda: facts.exists() and json.loads(facts.read_text() or "null"))
    server.port = int(found["url"].rpartition(":")[2])
    assert server.port > 0
    with Api(server.url) as api:
        poll("it is ready", lambda: api.http.get("/readyz").status_code == 200)
        assert server.url in server.output()
    assert server.stop() == 0
    assert not facts.exists()


def test_commands_find_the_server_by_its_data_folder(make_server: MakeServer) -> None:
    server = make_server().start()
    done = cli("graphs", "list", "--data-dir", str(server.data_dir))
    assert done.returncode == 0, done.stderr
    server.stop()
    done = cli("graphs", "list", "--data-dir", str(server.data_dir))
    assert done.returncode > 0
    assert "livetape up" in done.stderr
    assert "Traceback" not in done.stderr
