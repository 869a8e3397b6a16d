"""Retries, webhooks, reviews and the queue, as a client sees them."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from livetape.engine.start_options import StartOptions
from unit.api.fakes import World, bearer, graph

Client = httpx2.AsyncClient


async def executed(client: Client, **body: Any) -> str:
    """The path of a new execution."""
    created = (await client.post("/api/graphs", json=graph())).json()
    started = await client.post(f"/api/graphs/{created['id']}/execute/1", json=body)
    assert started.status_code == 200, started.text
    return f"/api/graphs/{created['id']}/executions/{started.json()['id']}"


async def test_a_start_says_how(world: World, client: Client) -> None:
    await executed(client, dry_run=True, priority=3, nodes_input_masks={"n": {"a": 2}})
    assert world.executions.options == [StartOptions(priority=3, dry_run=True, masks={"n": {"a": 2}})]
    created = (await client.post("/api/graphs", json=graph())).json()
    refused = await client.post(f"/api/graphs/{created['id']}/execute/1", json={"priority": 10})
    assert refused.status_code == 422


@pytest.mark.parametrize("how", ["retry", "rerun"])
async def test_once_more(client: Client, how: str) -> None:
    path = await executed(client, inputs={"a": 1})
    if how == "retry":
        refused = await client.post(f"{path}/retry")
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    await client.post(f"{path}/stop")
    headers = {"Idempotency-Key": "k"}
    first = await client.post(f"{path}/{how}", headers=headers)
    second = await client.post(f"{path}/{how}", headers=headers)
    assert (first.status_code, first.json()["status"]) == (200, "QUEUED")
    assert (second.json()["id"], second.headers["Idempotency-Replayed"]) == (first.json()["id"], "true")
    assert first.json()["id"] not in path
    for wrong in (
        await client.post(f"{path}/{how}", headers=bearer("bob")),
        await client.post(f"{path}x/{how}"),
        await client.post(f"/api/graphs/other/executions/{path.split('/')[-1]}/{how}"),
    ):
        assert wrong.status_code == 404
    if how == "retry":
        other = await client.post(f"{path}/retry", headers=headers, json={"from_node": "n"})
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


async def test_a_webhook_starts_a_graph(world: World, client: Client) -> None:
    created = (await client.post("/api/graphs", json=graph())).json()
    answer = await client.post(f"/api/graphs/{created['id']}/trigger/1", json={"event": "push"})
    assert (answer.status_code, world.executions.inputs) == (200, [{"event": "push"}])
    assert (await client.post(f"/api/graphs/{created['id']}/trigger/1", json=[1])).status_code == 422


async def test_reviews_are_listed_and_decided(world: World, client: Client) -> None:
    (pending,) = (await client.get("/api/review/pending")).json()
    assert (pending["node_exec_id"], pending["payload"], pending["status"]) == ("ne1", {"n": 1}, "WAITING")
    assert (await client.get("/api/review/pending", params={"page": 2})).json() == []
    assert (await client.get("/api/review/execution/e1")).json() == [pending]
    assert (await client.get("/api/review/execution/e2")).status_code == 404
    decisions = [
        {"node_exec_id": "ne1", "approved": True, "message": "fine", "reviewed_data": None},
        {"node_exec_id": "ne1", "approved": False},
        {"node_exec_id": "nowhere", "approved": True},
    ]
    answer = await client.post("/api/review/action", json={"reviews": decisions})
    assert answer.json() == {
        "approved_count": 1,
        "rejected_count": 1,
        "failed_count": 1,
        "error": "nowhere: Node execution #nowhere asks for no review.",
    }
    assert world.reviews.decided == [("ne1", True, "fine", None, True), ("ne1", False, "", None, False)]
    assert (await client.get("/api/review/pending", headers=bearer("bob"))).json() == []
    assert (await client.post("/api/review/action", json={"reviews": []})).status_code == 422


async def test_the_queue_is_for_administrators(world: World, client: Client) -> None:
    for refused in (
        await client.get("/api/queue"),
        await client.put("/api/queue/pause", json={"reason": "x"}),
        await client.delete("/api/queue/pause"),
    ):
        assert refused.status_code == 403
    admin = bearer("root", role="admin")
    assert (await client.get("/api/queue", headers=admin)).json() == {
        "depth": 3, "oldest_seconds": 1.5, "paused": None,
    }  # fmt: skip
    paused = await client.put("/api/queue/pause", headers=admin, json={"reason": "a new disk"})
    assert paused.json()["paused"] == "a new disk"
    assert (await client.delete("/api/queue/pause", headers=admin)).json()["paused"] is None
    assert world.queue.reason is None
