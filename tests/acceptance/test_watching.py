"""Many watchers, at bad moments: joining in the middle, reading slowly, asking twice, coming back over SSE."""

from __future__ import annotations

import asyncio
import json
import random
import socket as socket_module
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from acceptance.api import Api, Item, Started, graph, link, node
from acceptance.rawjson import members
from acceptance.server import DEV_USER, MakeServer, Server
from acceptance.watch import PUSHES, Watcher, ask, receive, socket

STREAM = "c4a05001-0000-4000-8000-000000000001"
ECHO = "c4a05001-0000-4000-8000-000000000003"
PUSHED = {f'"{name}"' for name in PUSHES}


def streaming(count: int, pause: float) -> dict[str, Any]:
    return graph(
        [node("stream", STREAM, count=count, pause=pause), node("echo", ECHO)], [link("stream.value", "echo.value")]
    )


async def started_on(api: Api, shape: dict[str, Any]) -> Started:
    return await asyncio.to_thread(api.run, shape)


async def log_of(api: Api, started: Started) -> list[Item]:
    await asyncio.to_thread(api.wait, started)
    return await asyncio.to_thread(api.events, started)


async def test_watchers_that_join_at_any_moment_see_everything_once(server: Server, api: Api) -> None:
    """Between the replay and the live events there must be no hole and no overlap, wherever the join falls."""
    started = await started_on(api, streaming(60, 0.01))
    watchers = [Watcher(server.ws_url, started.id) for _ in range(16)]  # 20 sockets a user are the limit
    instants = random.Random(7)

    async def join(watcher: Watcher) -> None:
        await asyncio.sleep(instants.uniform(0, 1.0))  # the join's own moment
        await watcher.run()

    async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
        for watcher in watchers:
            clients.create_task(join(watcher))
    log = await log_of(api, started)
    for watcher in watchers:
        assert watcher.items == log
        assert watcher.complaints() == []
        assert watcher.connections == 1


async def test_clients_that_come_and_go_all_the_time_see_everything_once(server: Server, api: Api) -> None:
    started = await started_on(api, streaming(60, 0.01))
    instants = random.Random(8)

    async def restless(watcher: Watcher) -> None:
        while not watcher.final:
            try:
                async with asyncio.timeout(instants.uniform(0.01, 0.2)):
                    await watcher.run()
            except TimeoutError:
                pass  # it hangs up in the middle of anything

    watchers = [Watcher(server.ws_url, started.id) for _ in range(8)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
        for watcher in watchers:
            clients.create_task(restless(watcher))
    log = await log_of(api, started)
    for watcher in watchers:
        assert watcher.items == log
        assert watcher.complaints() == []
    assert sum(watcher.connections for watcher in watchers) > 20


async def test_a_client_that_does_not_read_slows_nobody(make_server: MakeServer) -> None:
    """Its outbox is small here, and so is its window: almost everything has to wait for it in the log."""
    server = make_server(
        blocks=True,
        env={"LIVETAPE_GATEWAY__OUTBOX_MAX_MESSAGES": "64", "LIVETAPE_GATEWAY__OUTBOX_MAX_BYTES": "65536"},
    )
    await asyncio.to_thread(server.start)
    with Api(server.url) as api, socket_module.socket() as narrow:
        started = await started_on(api, streaming(1500, 0.001))
        narrow.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", server.port))
        narrow.setblocking(False)
        async with connect(
            server.ws_url, sock=narrow, proxy=None, compression=None, max_queue=1, ping_interval=None, close_timeout=1
        ) as lazy:
            data = {"graph_exec_id": started.id, "since": "earliest", "outputs": "each"}
            await lazy.send(json.dumps({"method": "subscribe_graph_execution", "data": data}))
            # It does not read. Others are served meanwhile, old events and new ones.
            watcher = Watcher(server.ws_url, started.id)
            other = Watcher(server.ws_url, (await started_on(api, streaming(5, 0.01))).id)
            async with asyncio.timeout(40), asyncio.TaskGroup() as clients:
                clients.create_task(watcher.run())
                clients.create_task(other.run())
            log = await log_of(api, started)
            assert watcher.items == log
            assert other.items[-1].value["status"] == "COMPLETED"
            # What it gets when it reads at last is everything, once and in order, or it was closed with advice.
            offsets: list[int] = []
            try:
                while not offsets or offsets[-1] < len(log):
                    message = members(await receive(lazy))
                    if message["method"] in PUSHED:
                        offsets.append(int(message["offset"]))
            except ConnectionClosed:
                assert lazy.close_code == 4008
                assert offsets == list(range(1, len(offsets) + 1))
            else:
                assert offsets == list(range(1, len(log) + 1))


async def test_a_socket_with_both_subscriptions_gets_a_graph_event_once_per_channel(server: Server, api: Api) -> None:
    started = await started_on(api, streaming(5, 0.1))
    channels = [f"{DEV_USER}|graph_exec#{started.id}", f"{DEV_USER}|graph#{started.graph_id}|executions"]
    async with socket(server.ws_url) as ws:
        for method, data in (
            ("subscribe_graph_execution", {"graph_exec_id": started.id}),
            ("subscribe_graph_executions", {"graph_id": started.graph_id}),
            ("subscribe_graph_execution", {"graph_exec_id": started.id}),  # twice is once
        ):
            await ws.send(json.dumps({"method": method, "data": data}))
        pushes = []
        while len([p for p in pushes if p.get("data", {}).get("status") == "COMPLETED" and "id" in p["data"]]) < 2:
            message = json.loads(await receive(ws))
            if message["method"] in ("graph_execution_event", "node_execution_event"):
                pushes.append(message)
        assert await ask(ws, '{"method":"heartbeat"}') == '{"method":"heartbeat","data":"pong","success":true}'
    for channel in channels:
        mine = [p for p in pushes if p["channel"] == channel]
        assert mine
        assert len({p["offset"] for p in mine}) == len(mine)
    assert {p["method"] for p in pushes if p["channel"] == channels[1]} == {"graph_execution_event"}


async def test_after_unsubscribe_nothing_comes(server: Server, api: Api) -> None:
    started = await started_on(api, streaming(10, 0.05))
    async with socket(server.ws_url) as ws:
        await ask(ws, {"method": "subscribe_graph_execution", "data": {"graph_exec_id": started.id}})
        await receive(ws)
        await ws.send(json.dumps({"method": "unsubscribe", "data": {"graph_exec_id": started.id}}))
        while json.loads(await receive(ws))["method"] != "unsubscribe":
            pass
        await asyncio.to_thread(api.wait, started)
        assert await ask(ws, '{"method":"heartbeat"}') == '{"method":"heartbeat","data":"pong","success":true}'


async def test_an_event_stream_goes_on_after_a_kill(make_server: MakeServer) -> None:
    """What a browser's EventSource does: it comes back with Last-Event-ID."""
    server = make_server(blocks=True)
    await asyncio.to_thread(server.start)
    with Api(server.url) as api:
        started = await started_on(api, streaming(30, 0.05))
        path = f"{server.url}/api/graphs/{started.graph_id}/executions/{started.id}/events"
        seen: list[tuple[str, str]] = []

        async def follow() -> None:
            async with httpx2.AsyncClient(trust_env=False, timeout=30) as http:
                while not (seen and '"status":"COMPLETED"' in seen[-1][1] and '"id":' in seen[-1][1]):
                    headers = {"Accept": "text/event-stream"}
                    params = {"since": "earliest"}
                    if seen:
                        headers["Last-Event-ID"], params = seen[-1][0], {}
                    try:
                        async with http.stream("GET", path, headers=headers, params=params) as response:
                            fields: dict[str, str] = {}
                            async for line in response.aiter_lines():
                                name, _, value = line.partition(": ")
                                if line:
                                    fields[name] = value
                                    continue
                                if "id" in fields and fields.get("data"):
                                    seen.append((fields["id"], fields["data"]))
                                fields = {}
                    except httpx2.TransportError:
                        await asyncio.sleep(0.02)  # the server is another process, and it is down

        task = asyncio.create_task(follow())
        async with asyncio.timeout(20):
            while len(seen) < 10:
                await asyncio.sleep(0.01)  # another process sends them
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(30):
            await task
        log = await log_of(api, started)
    assert [event_id for event_id, _ in seen] == [f"{i.epoch}-{i.offset}" for i in log]
    assert all(i.data in data for i, (_, data) in zip(log, seen, strict=True))


@pytest.mark.parametrize("instant", [0, 0.002, 0.005, 0.02, 0.1])
def test_a_stop_at_any_moment_is_final(server: Server, api: Api, instant: float) -> None:
    import threading

    started = api.run(streaming(1000, 0.02))
    threading.Event().wait(instant)
    path = f"/api/graphs/{started.graph_id}/executions/{started.id}/stop"
    assert api.ok(api.http.post(path))["status"] in ("TERMINATED", "RUNNING", "QUEUED")
    execution = api.wait(started, 15)
    assert execution["status"] == "TERMINATED"
    assert {x["status"] for x in execution["node_executions"]} <= {"TERMINATED", "COMPLETED", "INCOMPLETE"}
    log = api.events(started)
    assert log[-1].final
    assert [i.value["status"] for i in log if i.final] == ["TERMINATED"]


async def test_an_old_client_that_lost_its_socket_gets_its_channels_back(server: Server, api: Api) -> None:
    """Old pages do not subscribe again: within 120 s the server does it for them."""
    started = await started_on(api, streaming(40, 0.05))
    channel = f"{DEV_USER}|graph_exec#{started.id}"
    async with socket(server.ws_url) as ws:
        await ask(ws, {"method": "subscribe_graph_execution", "data": {"graph_exec_id": started.id}})
        first = json.loads(await receive(ws))
        ws.transport.abort()
    got = [first]
    await asyncio.sleep(1)  # the old client's fixed delay
    async with socket(server.ws_url) as ws:
        while got[-1].get("final") is not True:
            got.append(json.loads(await receive(ws, timeout=20)))
    assert {m["channel"] for m in got} == {channel}
    # What it had not confirmed is sent again, because nobody knows whether it has seen it; nothing is missing.
    again = [m["offset"] for m in got[1:]]
    assert again == sorted(set(again))
    log = await log_of(api, started)
    want = {i.offset for i in log if i.value["event_type"] != "node_output_update" and i.offset >= first["offset"]}
    assert want <= {m["offset"] for m in got}
