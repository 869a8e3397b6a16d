"""The server is killed with SIGKILL at random instants, and nothing is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path

import httpx2
import pytest

from acceptance.api import Api, Started, graph, link, node
from acceptance.server import Server
from acceptance.watch import Watcher
from chaos.box import STORE, STREAM, run_box
from chaos.checker import check_graph_tape, check_numbers, check_replay, check_statuses, check_transcript

RUNS = int(os.environ.get("CHAOS_RUNS", "20"))
KILLED_MORE = 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_at_random_instants(tmp_path: Path) -> None:
    """CHAOS_SEED repeats a run; what the kills hit still depends on the machine's timing."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")
    report = run_box(tmp_path, runs=RUNS, seed=seed, killed_more=KILLED_MORE, say=print)
    artefact = os.environ.get("CHAOS_REPORT")
    if artefact:
        Path(artefact).write_text(json.dumps(report, indent=1) + "\n")
    assert report["problems"] == [], f"CHAOS_SEED={seed}"
    # It was really done: every kill, and every check of every run.
    faults = dict(report["faults"])
    faults.pop("kill while it started", None)
    assert sum(faults.values()) == RUNS + 2 * min(KILLED_MORE, RUNS)
    assert report["faults"]["kill while it ran"] > 0
    assert all(n >= RUNS for name, n in report["checks"].items() if name != "no work of nobody")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_executions_at_once_survive_two_kills(tmp_path: Path) -> None:
    """More executions than the worker runs at once: some run, some wait in the queue, when the process dies."""
    count = 25
    server = Server(tmp_path / "data", blocks=True)
    await asyncio.to_thread(server.start)
    try:
        with Api(server.url) as api:
            nodes = [node("stream", STREAM, count=4, pause=0.05), node("store", STORE)]
            created = await asyncio.to_thread(api.create, graph(nodes, [link("stream.value", "store.input")]))
            answers = [api.ok(await asyncio.to_thread(api.start_raw, created, key=str(n))) for n in range(count)]
            all_started = [Started(created, answer) for answer in answers]
            watchers = [Watcher(server.ws_url, started.id) for started in all_started[:5]]
            watchers.append(Watcher(server.ws_url, graph_id=created["id"], finals=count))
            async with asyncio.TaskGroup() as clients, asyncio.timeout(120):
                for watcher in watchers:
                    clients.create_task(watcher.run())
                for _ in range(2):
                    await asyncio.to_thread(server.kill)
                    # The same starts again, as a client does that got no answer: nothing runs twice.
                    await asyncio.to_thread(server.start)
                    for n, started in enumerate(all_started):
                        again = api.ok(await asyncio.to_thread(api.start_raw, created, key=str(n)))
                        assert again["id"] == started.id
            logs = {}
            for started in all_started:
                execution = await asyncio.to_thread(api.wait, started)
                log = logs[started.id] = await asyncio.to_thread(api.events, started)
                assert execution["status"] == "COMPLETED"
                assert check_numbers(log, "log") == []
                assert check_statuses(log) == []
                assert check_replay(log, execution) == []
                assert len(execution["node_executions"]) == 5
            for watcher, started in zip(watchers, all_started[:5], strict=False):
                assert check_transcript(watcher.items, logs[started.id]) == []
            assert check_graph_tape(watchers[-1].items, logs) == []
            assert [complaint for watcher in watchers for complaint in watcher.complaints()] == []
    finally:
        if server.running:
            await asyncio.to_thread(server.kill)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_script_that_repeats_its_events_after_a_kill_has_each_once_on_the_tape(tmp_path: Path) -> None:
    """It posts with an idempotency key, and posts again when it got no answer."""
    count = 400
    server = Server(tmp_path / "data")
    await asyncio.to_thread(server.start)
    offsets: list[int] = []
    try:
        with Api(server.url) as api:

            def post_all() -> None:
                for n in range(count):
                    body = {"event_type": "task_progress", "data": {"n": n}, "idempotency_key": f"k{n}"}
                    deadline = time.monotonic() + 60
                    while True:
                        try:
                            answer = api.http.post("/api/jobs/j/events", json=body)
                            break
                        except httpx2.TransportError:
                            assert time.monotonic() < deadline
                            time.sleep(0.02)  # the server is another process, and it is down
                    offsets.append(int(api.ok(answer)["offset"]))

            script = asyncio.create_task(asyncio.to_thread(post_all))
            for share in (0.25, 0.6):
                async with asyncio.timeout(60):
                    while len(offsets) < count * share:
                        await asyncio.sleep(0.001)  # the thread is posting
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await script
            page = api.ok(api.http.get("/api/jobs/j/events", params={"limit": 1000}))
            data = [event["data"] for event in page["events"]]
            assert offsets == list(range(1, count + 1))
            assert [event["offset"] for event in page["events"]] == offsets
            assert [(d.get("data") or d)["n"] for d in data] == list(range(count))
    finally:
        if server.running:
            await asyncio.to_thread(server.kill)
