"""Graphs, executions, jobs and blocks, as a client sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import pytest

from livetape.events.channel import execution_tape, job_tape
from unit.api.fakes import BLOB, EPOCH, World, bearer, graph, tape

Client = httpx2.AsyncClient


async def new_graph(client: Client, name: str = "adder", **extra: Any) -> dict[str, Any]:
    answer = await client.post("/api/graphs", json=graph(name, **extra))
    assert answer.status_code == 200, answer.text
    created: dict[str, Any] = answer.json()
    return created


async def new_execution(client: Client) -> dict[str, Any]:
    created = await new_graph(client)
    answer = await client.post(f"/api/graphs/{created['id']}/execute/1", json={"inputs": {"a": 1}})
    assert answer.status_code == 200, answer.text
    started: dict[str, Any] = answer.json()
    return started


class TestGraphs:
    async def test_life(self, client: Client) -> None:
        created = await new_graph(client)
        assert (created["version"], created["user_id"]) == (1, "alice")
        path = f"/api/graphs/{created['id']}"
        assert [g["id"] for g in (await client.get("/api/graphs")).json()] == [created["id"]]
        updated = await client.put(path, json=graph("second")["graph"])
        assert updated.json()["version"] == 2
        assert (await client.get(path)).json()["name"] == "second"
        assert (await client.get(path, params={"version": 1})).json()["name"] == "adder"
        assert (await client.get(f"{path}/versions/1")).json()["name"] == "adder"
        assert [g["version"] for g in (await client.get(f"{path}/versions")).json()] == [1, 2]
        active = await client.put(f"{path}/versions/active", json={"active_graph_version": 1})
        assert (active.status_code, active.json()) == (200, None)
        assert (await client.delete(path)).json() == {"version_counts": 2}
        assert (await client.get(path)).status_code == 404

    async def test_somebody_elses_is_not_there(self, client: Client) -> None:
        created = await new_graph(client)
        answer = await client.get(f"/api/graphs/{created['id']}", headers=bearer("bob"))
        assert answer.status_code == 404

    async def test_the_id_in_the_body_must_be_that_of_the_path(self, client: Client) -> None:
        created = await new_graph(client)
        answer = await client.put(f"/api/graphs/{created['id']}", json={"id": "other", "name": "x"})
        assert (answer.status_code, answer.json()["code"]) == (400, "graph_id_mismatch")

    async def test_an_invalid_graph_names_its_nodes(self, client: Client) -> None:
        answer = await client.post("/api/graphs", json=graph("invalid"))
        body = answer.json()
        assert answer.status_code == 400
        assert body["detail"] == {
            "type": "validation_error",
            "message": "Graph validation failed: 3 issues on 2 nodes",
            "node_errors": {"n1": {"a": "wrong", "b": "This field is required"}, "n2": {"c": "x"}},
        }
        assert [e["pointer"] for e in body["errors"]] == ["/nodes/n1/a", "/nodes/n1/b", "/nodes/n2/c"]

    @pytest.mark.parametrize("where", ["", "/versions/1"])
    async def test_an_export_has_no_secrets(self, client: Client, where: str) -> None:
        values = {"a": 1, "secret_word": "s", "use_token": True, "options": {"password": "p", "x": [{"api_key": 1}]}}
        nodes = [{"id": "n", "block_id": "b1", "input_default": values, "metadata": {"webhook_id": "w", "x": 1}}]
        created = await new_graph(client, nodes=nodes)
        path = f"/api/graphs/{created['id']}{where}"
        kept = (await client.get(path)).json()
        assert kept["nodes"][0]["input_default"] == values
        exported = (await client.get(path, params={"for_export": True})).json()
        assert exported["user_id"] == ""
        assert exported["nodes"][0]["input_default"] == {"a": 1, "use_token": True, "options": {"x": [{}]}}
        assert exported["nodes"][0]["metadata"] == {"x": 1}


class TestStarting:
    async def test_it_is_queued_and_says_where_its_tape_stands(self, client: Client, world: World) -> None:
        started = await new_execution(client)
        assert started["status"] == "QUEUED"
        assert started["stream"] == {"epoch": EPOCH, "offset": 1}
        assert world.executions.inputs == [{"a": 1}]

    async def test_the_body_may_be_left_out(self, client: Client, world: World) -> None:
        created = await new_graph(client)
        answer = await client.post(f"/api/graphs/{created['id']}/execute/1")
        assert answer.status_code == 200
        assert world.executions.inputs == [{}]

    async def test_a_repeated_key_gives_the_same_execution(self, client: Client) -> None:
        created = await new_graph(client)
        path, headers = f"/api/graphs/{created['id']}/execute/1", {"Idempotency-Key": "k"}
        first = await client.post(path, content=b'{"inputs":{"a":1,"b":2}}', headers=headers | JSON)
        again = await client.post(path, content=b'{ "inputs": {"b": 2, "a": 1} }', headers=headers | JSON)
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert again.json()["id"] == first.json()["id"]
        other = await client.post(path, json={"inputs": {"a": 2}}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")

    @pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9", "a\tb"])
    async def test_a_key_is_1_to_255_printable_characters(self, client: Client, key: str) -> None:
        created = await new_graph(client)
        answer = await client.post(
            f"/api/graphs/{created['id']}/execute/1", headers={"Idempotency-Key": key.encode("latin-1")}
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["location"] == "header"

    @pytest.mark.parametrize(
        ("body", "query", "name"),
        [
            ({"credentials_inputs": {"c": {"id": "1"}}}, "", "credentials_inputs"),
            ({}, "?preset_id=p", "preset_id"),
        ],
    )
    async def test_what_cannot_be_done_is_refused(
        self, client: Client, world: World, body: dict[str, Any], query: str, name: str
    ) -> None:
        created = await new_graph(client)
        answer = await client.post(f"/api/graphs/{created['id']}/execute/1{query}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "unsupported")
        assert name in answer.json()["detail"]
        assert world.executions.stored == {}

    @pytest.mark.parametrize("version", ["0", "-1", "x", "99999999999999999999"])
    async def test_a_version_is_a_positive_number(self, client: Client, version: str) -> None:
        assert (await client.post(f"/api/graphs/g/execute/{version}")).status_code == 422


JSON = {"Content-Type": "application/json"}


class TestExecutions:
    async def test_one_with_its_nodes(self, client: Client) -> None:
        started = await new_execution(client)
        answer = await client.get(f"/api/graphs/{started['graph_id']}/executions/{started['id']}")
        body = answer.json()
        assert body["stream"] == {"epoch": EPOCH, "offset": 2}
        assert [n["node_exec_id"] for n in body["node_executions"]] == ["ne1"]
        assert (body["inputs"], body["outputs"]) == ({"a": 1}, {})
        assert (await client.get(f"/api/graphs/other/executions/{started['id']}")).status_code == 404

    async def test_lists(self, client: Client) -> None:
        for _ in range(3):
            started = await new_execution(client)
        everything = (await client.get("/api/executions")).json()
        assert [e["id"] for e in everything] == ["e3", "e2", "e1"]
        assert [e["stream"]["offset"] for e in everything] == [3, 3, 3]
        page = (await client.get(f"/api/graphs/{started['graph_id']}/executions?page=1&page_size=2")).json()
        assert page["pagination"] == {"total_items": 1, "total_pages": 1, "current_page": 1, "page_size": 2}
        assert page["stream"] == {"epoch": EPOCH, "offset": 0}
        beyond = (await client.get(f"/api/graphs/{started['graph_id']}/executions?page=9")).json()
        assert beyond["executions"] == []

    @pytest.mark.parametrize("query", ["page=0", "page_size=101", "page_size=0", "page=9999999999"])
    async def test_pages_have_limits(self, client: Client, query: str) -> None:
        assert (await client.get(f"/api/graphs/g/executions?{query}")).status_code == 422

    async def test_stop(self, client: Client, world: World) -> None:
        started = await new_execution(client)
        path = f"/api/graphs/{started['graph_id']}/executions/{started['id']}/stop"
        answer = await client.post(path, params={"wait": 2.5})
        assert answer.json()["status"] == "TERMINATED"
        assert answer.json()["stream"] == {"epoch": EPOCH, "offset": 1}
        assert world.executions.waits == [2.5]
        assert (await client.post(path, headers=bearer("bob"))).status_code == 404

    @pytest.mark.parametrize("wait", ["-1", "15.1", "nan", "inf"])
    async def test_stop_waits_for_at_most_15_seconds(self, client: Client, wait: str) -> None:
        assert (await client.post(f"/api/graphs/g/executions/e/stop?wait={wait}")).status_code == 422

    async def test_events(self, client: Client, world: World) -> None:
        started = await new_execution(client)
        path = f"/api/graphs/{started['graph_id']}/executions/{started['id']}/events"
        answer = await client.get(path)
        assert answer.json() == {"tape": execution_tape(started["id"]), "caller": "alice"}
        assert (await client.get(path, headers=bearer("bob"))).status_code == 404
        assert (await client.get(f"/api/graphs/other/executions/{started['id']}/events")).status_code == 404
        world.tapes.tapes.clear()
        late = await client.get(path)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert (await client.get(path, headers=bearer("bob"))).status_code == 404


class TestJobs:
    async def test_publish_and_read(self, client: Client, world: World) -> None:
        body = {"event_type": "task_progress", "data": {"n": 1}, "timestamp": "t", "idempotency_key": "k"}
        answer = await client.post("/api/jobs/j1/events", json=body)
        assert (answer.status_code, answer.json()) == (201, {"epoch": EPOCH, "offset": 1})
        assert world.jobs.published == [("alice", "j1", "task_progress", {"n": 1}, "t", "k")]
        assert (await client.get("/api/jobs/j1/events")).json()["tape"] == job_tape("j1")
        await client.post("/api/jobs/j1/events", json={"event_type": "task_completed"})
        assert (await client.get("/api/jobs/j1")).json() == {
            "job_id": "j1",
            "events": 2,
            "first_offset": 1,
            "final": True,
            "epoch": EPOCH,
            "stream": {"epoch": EPOCH, "offset": 2},
        }

    @pytest.mark.parametrize("path", ["/api/jobs/j1", "/api/jobs/j1/events", "/api/jobs/none", "/api/jobs/none/events"])
    async def test_others_see_nothing(self, client: Client, path: str) -> None:
        await client.post("/api/jobs/j1/events", json={"event_type": "x"})
        assert (await client.get(path, headers=bearer("bob"))).status_code == 404

    async def test_others_cannot_write(self, client: Client) -> None:
        await client.post("/api/jobs/j1/events", json={"event_type": "x"})
        assert (
            await client.post("/api/jobs/j1/events", json={"event_type": "x"}, headers=bearer("bob"))
        ).status_code == 404

    async def test_without_an_owner_it_is_for_admins(self, client: Client, world: World) -> None:
        world.tapes.put(tape(job_tape("j"), None))
        assert (await client.get("/api/jobs/j")).status_code == 404
        assert (await client.get("/api/jobs/j", headers=bearer("root", role="admin"))).status_code == 200

    @pytest.mark.parametrize("unowned", ["admin", "any_user"])
    async def test_nobody_gets_one_by_writing_to_it(self, connected: Any, unowned: Any) -> None:
        """It has events of somebody who named no owner: to own it would be to read them."""
        world = World(jobs_unowned=unowned)
        world.tapes.put(tape(job_tape("j"), None, offset=3))
        event = {"event_type": "x"}
        async with connected(world, headers=bearer()) as client:
            answer = await client.post("/api/jobs/j/events", json=event)
            assert answer.status_code == (404 if unowned == "admin" else 201)
            if unowned == "admin":
                assert answer.json()["detail"] == "Job #j not found."
            admin = await client.post("/api/jobs/j/events", json=event, headers=bearer("root", role="admin"))
            assert admin.status_code == 201
        assert world.tapes.tapes[job_tape("j")].owner is None
        assert [entry[0] for entry in world.jobs.published] == [None] * (1 if unowned == "admin" else 2)

    async def test_one_without_events_belongs_to_its_first_writer(self, client: Client, world: World) -> None:
        world.tapes.put(tape(job_tape("j"), None))
        assert (await client.post("/api/jobs/j/events", json={"event_type": "x"})).status_code == 201
        assert world.tapes.tapes[job_tape("j")].owner == "alice"

    async def test_positions_on_a_tape_that_others_write_to_are_strings(self, client: Client, world: World) -> None:
        offset = 2**60
        world.tapes.put(replace(tape(job_tape("j"), "alice", offset=offset), mixed=True))
        answer = await client.post("/api/jobs/j/events", json={"event_type": "x"})
        assert answer.json() == {"epoch": EPOCH, "offset": str(offset + 1), "mixed": True}

    async def test_unless_everybody_may_see_them(self, connected: Any) -> None:
        world = World(jobs_unowned="any_user")
        world.tapes.put(tape(job_tape("j"), None))
        async with connected(world, headers=bearer()) as client:
            assert (await client.get("/api/jobs/j")).status_code == 200

    @pytest.mark.parametrize(
        ("written", "job_id"),
        [("org%2Frepo", "org/repo"), ("org/repo", "org/repo"), ("a%20b%23c", "a b#c"), ("%E2%82%AC", "€")],
    )
    async def test_an_id_may_have_any_printable_character(
        self, client: Client, world: World, written: str, job_id: str
    ) -> None:
        answer = await client.post(f"/api/jobs/{written}/events", json={"event_type": "x"})
        assert answer.status_code == 201
        assert world.jobs.published[0][1] == job_id
        assert (await client.get(f"/api/jobs/{written}")).json()["job_id"] == job_id

    @pytest.mark.parametrize(
        "body", [{}, {"event_type": ""}, {"event_type": "x" * 201}, {"event_type": "a\x00"}, {"event_type": 1}]
    )
    async def test_a_type_is_needed(self, client: Client, body: dict[str, Any]) -> None:
        assert (await client.post("/api/jobs/j/events", json=body)).status_code == 422

    @pytest.mark.parametrize("data", [None, 1, "text", [1], {"a": {"b": "\u0000"}}, "😀"])
    async def test_data_is_any_json(self, client: Client, world: World, data: Any) -> None:
        await client.post("/api/jobs/j/events", json={"event_type": "x", "data": data})
        assert world.jobs.published[0][3] == data


class TestBlocks:
    async def test_list(self, client: Client) -> None:
        answer = await client.get("/api/blocks")
        (block,) = answer.json()  # the disabled one is left out
        assert (block["id"], block["name"], block["uiType"]) == ("b1", "Adder", "Standard")
        assert block["inputSchema"]["properties"]["a"]["type"] == "integer"
        assert answer.headers["cache-control"] == "private, no-cache"

    async def test_it_need_not_be_sent_twice(self, client: Client) -> None:
        etag = (await client.get("/api/blocks")).headers["etag"]
        for sent in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
            again = await client.get("/api/blocks", headers={"If-None-Match": sent})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert (await client.get("/api/blocks", headers={"If-None-Match": '"x"'})).status_code == 200


class TestLargeValues:
    async def test_a_pointer_is_followed(self, client: Client) -> None:
        started = await new_execution(client)
        answer = await client.get(f"/api/blobs/{started['id']}/{BLOB}")
        assert (answer.status_code, answer.json()) == (200, [1])
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["etag"] == f'"{BLOB}"'
        assert "private" in answer.headers["cache-control"]

    async def test_what_is_not_there_or_not_the_callers_is_404(self, client: Client) -> None:
        started = await new_execution(client)
        assert (await client.get(f"/api/blobs/{started['id']}/{'0' * 64}")).status_code == 404
        assert (await client.get(f"/api/blobs/nothing/{BLOB}")).status_code == 404
        assert (await client.get(f"/api/blobs/{started['id']}/{BLOB}", headers=bearer("bob"))).status_code == 404

    @pytest.mark.parametrize("name", ["x", "A" * 64, "..%2f..%2fsecret.key"])
    async def test_only_a_hash_is_a_name(self, client: Client, name: str) -> None:
        started = await new_execution(client)
        assert (await client.get(f"/api/blobs/{started['id']}/{name}")).status_code in (404, 422)
