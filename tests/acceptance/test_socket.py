"""What a plain WebSocket client of the seed sees. Golden lines: the seed's recorded traffic, never our own output."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from acceptance.api import Api, Started, graph, link, node
from acceptance.server import DEV_USER, Server
from acceptance.watch import Watcher, ask, receive, socket
from described import Recording
from reference.blocks import STORE

STREAM = "c4a05001-0000-4000-8000-000000000001"
ECHO = "c4a05001-0000-4000-8000-000000000003"
FIVE = ["method", "data", "success", "channel", "error"]
ADDED = {"offset", "epoch", "final"}
GRAPH_FIELDS = {
    "id", "user_id", "graph_id", "graph_version", "inputs", "preset_id", "status", "started_at", "ended_at",
    "is_shared", "share_token", "is_dry_run", "stats", "outputs",
}  # fmt: skip
NODE_FIELDS = {
    "user_id", "graph_id", "graph_version", "graph_exec_id", "node_exec_id", "node_id", "block_id", "status",
    "input_data", "output_data", "add_time", "queue_time", "start_time", "end_time",
}  # fmt: skip


def slow_graph(count: int = 5, pause: float = 0.1) -> dict[str, Any]:
    """It takes long enough to be watched from near its start by a client that has no `since`."""
    return graph(
        [node("stream", STREAM, count=count, pause=pause), node("echo", ECHO)], [link("stream.value", "echo.value")]
    )


def golden(method: str, channel: str) -> str:
    """The reply to a subscribe or unsubscribe, literally."""
    return '{"method":"METHOD","data":null,"success":true,"channel":"CHANNEL","error":null}'.replace(
        "METHOD", method
    ).replace("CHANNEL", channel)


async def until_completed(ws: Any) -> list[str]:
    frames: list[str] = []
    while True:
        frames.append(await receive(ws, timeout=20))
        message = json.loads(frames[-1])
        if message["method"] == "graph_execution_event" and message["data"]["status"] in ("COMPLETED", "FAILED"):
            return frames


async def test_a_seed_client_sees_a_graph_run(server: Server, api: Api) -> None:
    started = await asyncio.to_thread(api.run, slow_graph())
    channel = f"{DEV_USER}|graph_exec#{started.id}"
    async with socket(server.ws_url) as ws:
        reply = await ask(ws, {"method": "subscribe_graph_execution", "data": {"graph_exec_id": started.id}})
        assert reply == golden("subscribe_graph_execution", channel)
        frames = await until_completed(ws)
        heartbeat = await ask(ws, '{"method":"heartbeat","data":"ping","success":true}')
        assert heartbeat == '{"method":"heartbeat","data":"pong","success":true}'
        gone = await ask(ws, {"method": "unsubscribe", "data": {"graph_exec_id": started.id}})
        assert gone == golden("unsubscribe", channel)
    methods = set()
    offsets = []
    statuses: dict[str, list[str]] = {}
    for frame in frames:
        message = json.loads(frame)
        methods.add(message["method"])
        assert list(message)[:5] == FIVE
        assert set(list(message)[5:]) <= ADDED
        assert (message["success"], message["error"], message["channel"]) == (None, None, channel)
        assert frame.startswith('{"method":"' + message["method"] + '","data":{')
        offsets.append(message["offset"])
        data = message["data"]
        assert not ADDED & data.keys()
        if message["method"] == "node_execution_event":
            assert data.keys() >= NODE_FIELDS
            for pins in (data["input_data"], data["output_data"]):
                assert all(isinstance(values, list) for values in pins.values())
            statuses.setdefault(data["node_exec_id"], []).append(data["status"])
        else:
            assert data.keys() >= GRAPH_FIELDS
            assert data["id"] == started.id
    assert methods == {"graph_execution_event", "node_execution_event"}
    assert offsets == sorted(set(offsets))
    last = json.loads(frames[-1])
    assert last["data"]["status"] == "COMPLETED"
    assert last["final"] is True
    assert all(json.loads(frame).get("final") in (None, False) for frame in frames[:-1])
    assert len(statuses) == 6
    assert all(seen[-1] == "COMPLETED" and seen.count("COMPLETED") == 1 for seen in statuses.values())


async def test_a_seed_client_sees_all_executions_of_a_graph(server: Server, api: Api) -> None:
    created = await asyncio.to_thread(api.create, slow_graph(2, 0.02))
    channel = f"{DEV_USER}|graph#{created['id']}|executions"
    async with socket(server.ws_url) as ws:
        reply = await ask(ws, {"method": "subscribe_graph_executions", "data": {"graph_id": created["id"]}})
        assert reply == golden("subscribe_graph_executions", channel)
        for _ in range(2):
            execution = api.ok(await asyncio.to_thread(api.start_raw, created))
            messages = [json.loads(frame) for frame in await until_completed(ws)]
            assert {m["method"] for m in messages} == {"graph_execution_event"}
            assert {m["data"]["id"] for m in messages} == {execution["id"]}
            assert {m["channel"] for m in messages} == {channel}
            statuses = [m["data"]["status"] for m in messages]
            assert statuses[-1] == "COMPLETED"
            assert statuses.index("RUNNING") >= 0


ERRORS = {
    "not JSON": ("hello", "Invalid message format. Review the schema and retry"),
    "half JSON": ('{"method":"heartbeat"', "Invalid message format. Review the schema and retry"),
    "not an object": ("[1]", "Invalid message format. Review the schema and retry"),
    "no method": ("{}", "Invalid message format. Review the schema and retry"),
    "unknown method": ('{"method":"fly"}', "Invalid message format. Review the schema and retry"),
    "no data": ('{"method":"subscribe_graph_execution"}', "Subscription data missing"),
    "empty data": ('{"method":"subscribe_graph_executions","data":{}}', "Subscription data missing"),
    "unsubscribe without data": ('{"method":"unsubscribe"}', "Subscription data missing"),
    "wrong data": (
        '{"method":"subscribe_graph_execution","data":{"x":1}}',
        "Invalid message data. Refer to the API schema",
    ),
    "wrong type of data": (
        '{"method":"subscribe_graph_execution","data":{"graph_exec_id":[1]}}',
        "Invalid message data. Refer to the API schema",
    ),
    "server-only method": (
        '{"method":"graph_execution_event","data":{}}',
        "Message type is not processed by the server",
    ),
    "server-only notification": ('{"method":"notification","data":{}}', "Message type is not processed by the server"),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_a_bad_message_is_answered_and_the_socket_stays(server: Server, case: str) -> None:
    sent, text = ERRORS[case]
    async with socket(server.ws_url) as ws:
        frame = await ask(ws, sent)
        message = json.loads(frame)
        assert list(message)[:5] == FIVE
        assert (message["method"], message["success"], message["error"]) == ("error", False, text)
        # An `error` from the client is logged and not answered: the next answer is that of the heartbeat.
        await ws.send('{"method":"error","data":"from a client"}')
        assert await ask(ws, '{"method":"heartbeat"}') == '{"method":"heartbeat","data":"pong","success":true}'


async def test_never_subscribed(server: Server) -> None:
    async with socket(server.ws_url) as ws:
        reply = await ask(ws, {"method": "unsubscribe", "data": {"graph_exec_id": "never"}})
        assert reply == '{"method":"unsubscribe","data":null,"success":true,"channel":null,"error":null}'


async def test_a_large_frame_closes_only_this_socket(server: Server) -> None:
    async with socket(server.ws_url) as other, socket(server.ws_url) as ws:
        await ws.send(json.dumps({"method": "heartbeat", "data": "x" * 300_000}))
        with pytest.raises(ConnectionClosed):
            await receive(ws)
        assert ws.close_code == 1009
        assert json.loads(await ask(other, '{"method":"heartbeat"}'))["data"] == "pong"
    assert server.running


async def test_every_event_from_the_first_and_from_any_position(server: Server, api: Api) -> None:
    started = await asyncio.to_thread(api.run, slow_graph(4, 0.02))
    watcher = Watcher(server.ws_url, started.id)
    async with asyncio.timeout(20):
        await watcher.run()
    log = await asyncio.to_thread(api.events, started)
    assert [i.offset for i in watcher.items] == list(range(1, len(log) + 1))
    assert watcher.items == log
    assert watcher.complaints() == []
    replayed = [m["method"] for m in watcher.other]
    assert replayed == ["subscribe_graph_execution", "replay_complete"]
    for after in (0, 1, len(log) // 2, len(log) - 1):
        async with socket(server.ws_url) as ws:
            since = {"epoch": log[0].epoch, "offset": after}
            data = {"graph_exec_id": started.id, "since": since, "outputs": "each"}
            reply = json.loads(await ask(ws, {"method": "subscribe_graph_execution", "data": data}))
            assert reply["data"]["recovered"] is True
            assert reply["data"]["epoch"] == log[0].epoch
            assert reply["data"]["count"] == len(log) - after
            got = [json.loads(await receive(ws))["offset"] for _ in range(len(log) - after)]
            assert got == list(range(after + 1, len(log) + 1))
            assert json.loads(await receive(ws))["method"] == "replay_complete"


async def test_without_each_the_numbers_rise_and_snapshots_are_whole(server: Server, api: Api) -> None:
    started = await asyncio.to_thread(api.run, slow_graph(4, 0.02))
    watcher = Watcher(server.ws_url, started.id, outputs=None)
    async with asyncio.timeout(20):
        await watcher.run()
    log = await asyncio.to_thread(api.events, started)
    assert watcher.items == [i for i in log if i.value["event_type"] != "node_output_update"]


async def test_an_unknown_position_is_said_not_hidden(server: Server, api: Api) -> None:
    started = await asyncio.to_thread(api.run, slow_graph(1, 0))
    await asyncio.to_thread(api.wait, started)
    async with socket(server.ws_url) as ws:
        data = {"graph_exec_id": started.id, "since": {"epoch": "another", "offset": 3}}
        reply = json.loads(await ask(ws, {"method": "subscribe_graph_execution", "data": data}))
        assert reply["success"] is True
        assert reply["data"]["recovered"] is False


async def test_the_event_stream_twin_is_the_log(server: Server, api: Api) -> None:
    started = await asyncio.to_thread(api.run, slow_graph(4, 0.02))
    await asyncio.to_thread(api.wait, started)
    log = await asyncio.to_thread(api.events, started)
    path = f"/api/graphs/{started.graph_id}/executions/{started.id}/events"

    def read(last: str | None) -> tuple[str, list[tuple[str, str]]]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        params = {} if last else {"since": "earliest"}
        with api.http.stream("GET", path, headers=headers, params=params) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            text = "".join(response.iter_text())  # it ends after the last event
        found = []
        for block in text.replace("\r\n", "\n").split("\n\n"):
            fields = dict(x.split(": ", 1) for x in block.splitlines() if ": " in x and not x.startswith(":"))
            if "id" in fields:
                found.append((fields["id"], fields.get("data", "")))
        return response.headers["X-Stream-Position"], found

    position, events = await asyncio.to_thread(read, None)
    epoch = log[0].epoch
    assert position == f"{epoch}-0"
    assert {i.offset for i in log if i.value["event_type"] != "node_output_update"} <= {
        int(event_id.rpartition("-")[2]) for event_id, _ in events
    }
    by_offset = {i.offset: i for i in log}
    for event_id, data in events:
        item = by_offset[int(event_id.rpartition("-")[2])]
        assert event_id == f"{epoch}-{item.offset}"
        assert item.data in data
    middle = events[len(events) // 2][0]
    _, rest = await asyncio.to_thread(read, middle)
    assert rest == events[len(events) // 2 + 1 :]


async def test_a_job_of_any_script_is_on_a_tape(server: Server, api: Api) -> None:
    job = f"job-{api.create(slow_graph())['id']}"
    async with socket(server.ws_url) as ws:
        first = api.http.post(
            f"/api/jobs/{job}/events", json={"event_type": "task_started", "data": {"n": 0, "text": "ä"}}
        )
        assert first.status_code == 201, first.text
        epoch = first.json()["epoch"]
        assert first.json()["offset"] == 1
        data = {"job_id": job, "since": {"epoch": epoch, "offset": 0}}
        reply = json.loads(await ask(ws, {"method": "subscribe_job", "data": data}))
        assert reply["success"] is True
        assert reply["channel"] == f"{DEV_USER}|job#{job}"
        replayed = json.loads(await receive(ws))
        assert (replayed["method"], replayed["offset"]) == ("job_event", 1)
        assert json.loads(await receive(ws))["method"] == "replay_complete"
        body = {"event_type": "task_progress", "data": {"n": 1}, "idempotency_key": "k"}
        answers = [api.http.post(f"/api/jobs/{job}/events", json=body) for _ in range(3)]
        assert {(a.status_code, a.json()["offset"]) for a in answers} <= {(201, 2), (200, 2)}
        live = json.loads(await receive(ws))
        assert (live["method"], live["offset"], live["epoch"]) == ("job_event", 2, epoch)
        assert list(live)[:5] == FIVE
        api.http.post(f"/api/jobs/{job}/events", json={"event_type": "task_completed", "data": {}})
        assert json.loads(await receive(ws))["offset"] == 3


def test_the_smallest_graph(api: Api) -> None:
    """The simplest graph of all, without watching it."""
    started: Started = api.run(graph([node("one", STORE, input={"a": [1, None, "ü"]})], []))
    execution = api.wait(started)
    assert execution["status"] == "COMPLETED"
    assert execution["node_executions"][0]["output_data"] == {"output": [{"a": [1, None, "ü"]}]}
    last = api.events(started)[-1]
    assert execution["stream"]["offset"] <= last.offset, "the position is read before the state, never after"
    assert api.execution(started)["stream"] == {"epoch": last.epoch, "offset": last.offset}


async def test_what_an_engine_says_is_what_the_server_describes(server: Server, api: Api) -> None:
    recording = Recording((await asyncio.to_thread(api.http.get, "/asyncapi.json")).json())
    started = await asyncio.to_thread(api.run, slow_graph(count=3, pause=0))
    data = {"graph_exec_id": started.id, "since": "earliest", "outputs": "each"}
    async with socket(server.ws_url) as ws:
        recording.add("out", await ask(ws, {"method": "subscribe_graph_execution", "data": data}))
        for frame in await until_completed(ws):
            recording.add("out", frame)
        stop = {"method": "stop_graph_execution", "data": {"graph_exec_id": started.id}, "id": 1}
        await ws.send(json.dumps(stop))
        while recording.add("out", await receive(ws))["method"] != "stop_graph_execution":
            pass
    events = {"graph_execution_event", "node_execution_event", "node_output_event"}
    assert events <= recording.heard.keys()
    assert recording.heard["graph_execution_event"] >= {"offset", "epoch", "final"}
