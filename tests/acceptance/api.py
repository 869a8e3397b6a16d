"""A small client of the REST API: plain JSON in and out, nothing of livetape's own models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx2

from acceptance.rawjson import elements, members
from livetape_process import ServerError, poll

TERMINAL = {"COMPLETED", "FAILED", "TERMINATED"}


@dataclass(frozen=True)
class Item:
    """One event as somebody saw it. `data` is the JSON text exactly as it came."""

    offset: int
    epoch: str
    data: str
    final: bool = False

    @property
    def value(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.data)
        return value


@dataclass(frozen=True)
class Started:
    """A stored graph and one execution of it."""

    graph: dict[str, Any]
    execution: dict[str, Any]

    @property
    def graph_id(self) -> str:
        return str(self.graph["id"])

    @property
    def id(self) -> str:
        return str(self.execution["id"])


class Api:
    def __init__(self, url: str, *, token: str | None = None, timeout: float = 30) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ok(self, response: httpx2.Response) -> Any:
        if response.status_code >= 300:
            request = response.request
            raise ServerError(f"{request.method} {request.url.path}: {response.status_code} {response.text[:2000]}")
        return response.json() if response.content else None

    def blocks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ok(self.http.get("/api/blocks"))
        return found

    def block_id(self, name: str) -> str:
        found = [block["id"] for block in self.blocks() if block["name"] == name]
        if len(found) != 1:
            raise ServerError(f"{len(found)} blocks are named {name}")
        return str(found[0])

    def create(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        created: dict[str, Any] = self.ok(self.http.post("/api/graphs", json={"graph": graph}))
        return created

    def start_raw(
        self, graph: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> httpx2.Response:
        return self.http.post(
            f"/api/graphs/{graph['id']}/execute/{graph['version']}",
            json={"inputs": dict(inputs or {})},
            headers={"Idempotency-Key": key} if key else {},
        )

    def run(self, graph: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> Started:
        """Store the graph and start it once."""
        created = self.create(graph)
        return Started(created, self.ok(self.start_raw(created, inputs)))

    def execution(self, started: Started) -> dict[str, Any]:
        found: dict[str, Any] = self.ok(self.http.get(f"/api/graphs/{started.graph_id}/executions/{started.id}"))
        return found

    def wait(self, started: Started, timeout: float = 30) -> dict[str, Any]:
        """The execution when it has ended."""

        def ended() -> dict[str, Any] | None:
            execution = self.execution(started)
            return execution if execution["status"] in TERMINAL else None

        return poll(f"execution {started.id} ends", ended, timeout=timeout)

    def page(self, started: Started, after: int = 0, limit: int = 1000) -> tuple[list[Item], dict[str, Any]]:
        response = self.http.get(
            f"/api/graphs/{started.graph_id}/executions/{started.id}/events", params={"after": after, "limit": limit}
        )
        self.ok(response)
        raw = members(response.text)
        items = []
        for element in elements(raw.pop("events")):
            event = {"epoch": raw["epoch"]} | members(element)
            items.append(
                Item(
                    offset=int(event["offset"]),
                    epoch=json.loads(event["epoch"]),
                    data=event["data"],
                    final=event.get("final") == "true",
                )
            )
        return items, {key: json.loads(value) for key, value in raw.items()}

    def events(self, started: Started) -> list[Item]:
        """The whole log of an execution, page by page."""
        log: list[Item] = []
        while True:
            items, _ = self.page(started, log[-1].offset if log else 0)
            if not items:
                return log
            log += items


# ---- Graphs as a client writes them ----------------------------------------------------------------------------------


def node(ref: str, block_id: str, **defaults: Any) -> dict[str, Any]:
    return {"id": ref, "block_id": block_id, "input_default": defaults, "metadata": {"ref": ref}}


def link(source: str, sink: str, *, is_static: bool = False) -> dict[str, Any]:
    """`link("a.output", "b.input")`"""
    (source_id, _, source_name), (sink_id, _, sink_name) = source.partition("."), sink.partition(".")
    return {
        "source_id": source_id,
        "source_name": source_name,
        "sink_id": sink_id,
        "sink_name": sink_name,
        "is_static": is_static,
    }


def graph(nodes: list[dict[str, Any]], links: list[dict[str, Any]], name: str = "test graph") -> dict[str, Any]:
    return {"name": name, "description": "", "nodes": nodes, "links": links}


def refs(created: Mapping[str, Any]) -> dict[str, str]:
    """`{new node id: the id that the test gave}`, by the metadata that a node keeps."""
    return {n["id"]: n["metadata"]["ref"] for n in created["nodes"]}
