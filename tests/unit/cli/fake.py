"""A small server that answers as the wire contract says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

GRAPH_ID = "11111111-0000-7000-8000-000000000001"
EXECUTION_ID = "22222222-0000-7000-8000-000000000002"
EPOCH = "abcd1234"

GRAPH: dict[str, Any] = {
    "id": GRAPH_ID,
    "version": 3,
    "is_active": True,
    "name": "Count words",
    "description": "Counts the words of a text.",
    "nodes": [
        {"id": "n1", "block_id": "b-in", "input_default": {"name": "text"}, "metadata": {}},
        {"id": "n2", "block_id": "b-count", "input_default": {}, "metadata": {"customized_name": "count"}},
    ],
    "links": [{"source_id": "n1", "source_name": "result", "sink_id": "n2", "sink_name": "text"}],
    "input_schema": {"properties": {"text": {"type": "string"}}, "required": ["text"]},
    "output_schema": {"properties": {"words": {}}},
}
BLOCKS = [{"id": "b-in", "name": "AgentInputBlock"}, {"id": "b-count", "name": "CountWordsBlock"}]


def node_event(node: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "event_type": "node_execution_update",
        "graph_id": GRAPH_ID,
        "graph_version": 3,
        "graph_exec_id": EXECUTION_ID,
        "node_exec_id": f"{node}-1",
        "node_id": node,
        "status": status,
        "input_data": {},
        "output_data": {},
        **more,
    }


def output_event(node: str, name: str, value: Any) -> dict[str, Any]:
    return {
        "event_type": "node_output_update",
        "graph_id": GRAPH_ID,
        "graph_exec_id": EXECUTION_ID,
        "node_id": node,
        "node_exec_id": f"{node}-1",
        "index": 0,
        "name": name,
        "value": value,
    }


def graph_event(status: str, **more: Any) -> dict[str, Any]:
    return {
        "event_type": "graph_execution_update",
        "id": EXECUTION_ID,
        "graph_id": GRAPH_ID,
        "graph_version": 3,
        "status": status,
        "outputs": {},
        **more,
    }


COMPLETED_TAPE = [
    graph_event("QUEUED"),
    graph_event("RUNNING"),
    node_event("n1", "RUNNING"),
    output_event("n1", "result", "one two"),
    node_event("n1", "COMPLETED"),
    node_event("n2", "RUNNING"),
    output_event("n2", "words", 2),
    node_event("n2", "COMPLETED"),
    graph_event("COMPLETED", outputs={"words": [2]}),
]
METHODS = {
    "graph_execution_update": "graph_execution_event",
    "node_execution_update": "node_execution_event",
    "node_output_update": "node_output_event",
}


@dataclass
class FakeServer:
    """What the fake holds, and what it was asked."""

    url: str = ""
    tape: list[dict[str, Any]] = field(default_factory=lambda: list(COMPLETED_TAPE))
    job_tape: list[dict[str, Any]] = field(default_factory=list)
    graphs: list[dict[str, Any]] = field(default_factory=lambda: [GRAPH])
    status: str = "COMPLETED"
    outputs: dict[str, Any] = field(default_factory=lambda: {"words": [2]})
    stats: dict[str, Any] = field(default_factory=lambda: {"duration": 1.5, "node_exec_count": 2})
    ends: bool = True
    drop_after: list[tuple[int, int]] = field(default_factory=list)
    """(events, close code): sockets are closed after so many events, one entry a connection."""
    paused: str | None = None
    """Why the queue is."""

    refuse_subscribe: str | None = None
    fail_with: tuple[int, Any] | None = None
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    subscriptions: list[dict[str, Any]] = field(default_factory=list)
    protocols: list[list[str]] = field(default_factory=list)

    def app(self) -> Starlette:
        get, post = ["GET"], ["POST"]
        one = "/api/graphs/{graph_id}/executions/{id}"
        return Starlette(
            routes=[
                Route("/api/graphs", self.wrap(lambda r, b: self.graphs), methods=get),
                Route("/api/graphs", self.wrap(self.create_graph), methods=post),
                Route("/api/blocks", self.wrap(lambda r, b: BLOCKS), methods=get),
                Route("/api/executions", self.wrap(lambda r, b: [self.execution()]), methods=get),
                Route("/api/graphs/{graph_id}", self.wrap(self.one_graph), methods=get),
                Route(
                    "/api/graphs/{graph_id}/execute/{version}", self.wrap(lambda r, b: self.execution()), methods=post
                ),
                Route(
                    "/api/graphs/{graph_id}/executions",
                    self.wrap(lambda r, b: {"executions": [self.execution()], "pagination": {}}),
                    methods=get,
                ),
                Route(one, self.wrap(lambda r, b: self.execution()), methods=get),
                Route(
                    one + "/stop", self.wrap(lambda r, b: {**self.execution(), "status": "TERMINATED"}), methods=post
                ),
                Route(one + "/retry", self.wrap(lambda r, b: {**self.execution(), "id": "retried"}), methods=post),
                Route(one + "/rerun", self.wrap(lambda r, b: {**self.execution(), "id": "rerun"}), methods=post),
                Route("/api/queue", self.wrap(lambda r, b: self.queue()), methods=get),
                Route("/api/queue/pause", self.wrap(self.pause), methods=["PUT", "DELETE"]),
                Route(one + "/events", self.wrap(lambda r, b: self.page(r, self.tape)), methods=get),
                Route("/api/jobs/{job:path}/events", self.wrap(lambda r, b: self.page(r, self.job_tape)), methods=get),
                Route(
                    "/api/jobs/{job:path}/events",
                    self.wrap(lambda r, b: {"epoch": EPOCH, "offset": 7}, status=201),
                    methods=post,
                ),
                Route("/readyz", self.wrap(lambda r, b: {"status": "ready"}), methods=get),
                WebSocketRoute("/ws", self.socket),
            ]
        )

    def wrap(self, answer: Callable[[Request, Any], Any], status: int = 200) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = await request.json() if request.method in {"POST", "PUT"} and await request.body() else None
            self.requests.append((request.method, request.url.path, body))
            self.headers.append(dict(request.headers))
            if self.fail_with is not None:
                return JSONResponse(self.fail_with[1], status_code=self.fail_with[0])
            found = answer(request, body)
            return found if isinstance(found, Response) else JSONResponse(found, status_code=status)

        return endpoint

    def execution(self) -> dict[str, Any]:
        return {
            "id": EXECUTION_ID,
            "graph_id": GRAPH_ID,
            "graph_version": 3,
            "status": self.status,
            "outputs": self.outputs,
            "stats": self.stats,
            "started_at": "2026-01-01T00:00:00Z",
            "stream": {"epoch": EPOCH, "offset": 0},
        }

    def queue(self) -> dict[str, Any]:
        return {"depth": 2, "oldest_seconds": 3.25, "paused": self.paused}

    def pause(self, request: Request, body: Any) -> Any:
        self.paused = None if body is None else body["reason"]
        return self.queue()

    def create_graph(self, request: Request, body: Any) -> Any:
        stored = {**body["graph"], "id": f"new-{len(self.graphs)}", "version": 1, "description": ""}
        self.graphs = [*self.graphs, stored]
        return stored

    def one_graph(self, request: Request, body: Any) -> Any:
        found = [graph for graph in self.graphs if graph["id"] == request.path_params["graph_id"]]
        if not found:
            return JSONResponse({"detail": "Graph not found", "code": "not_found"}, status_code=404)
        return found[0]

    def page(self, request: Request, tape: list[dict[str, Any]]) -> Any:
        after, limit = int(request.query_params["after"]), min(int(request.query_params["limit"]), 4)
        events = [
            {
                "offset": offset,
                "event_type": event["event_type"],
                "data": event,
                "final": offset == len(tape) and self.ends,
                "time": f"2026-01-01T00:00:{offset / 100:09.6f}+00:00",
            }
            for offset, event in enumerate(tape, 1)
            if offset > after
        ]
        return {"epoch": EPOCH, "events": events[:limit]}

    async def socket(self, socket: WebSocket) -> None:
        self.protocols.append(list(socket.scope["subprotocols"]))
        await socket.accept(subprotocol="livetape.v1")
        with suppress(WebSocketDisconnect):
            await self._serve(socket)

    async def _serve(self, socket: WebSocket) -> None:
        request = await socket.receive_json()
        self.subscriptions.append(request)
        if self.refuse_subscribe is not None:
            error = {"method": "error", "data": None, "success": False, "channel": None, "error": self.refuse_subscribe}
            await socket.send_json({**error, "id": request["id"]})
            await socket.receive_json()
        tape = self.job_tape if request["method"] == "subscribe_job" else self.tape
        since = request["data"]["since"]
        after = {"earliest": 0, "latest": len(tape)}.get(since, 0) if isinstance(since, str) else since.get("offset", 0)
        reply = {
            "method": request["method"],
            "data": {"recovered": True},
            "success": True,
            "channel": "c",
            "error": None,
        }
        await socket.send_json({**reply, "id": request["id"]})
        drop = self.drop_after.pop(0) if self.drop_after else None
        for sent, (offset, event) in enumerate(list(enumerate(tape, 1))[after:]):
            if drop is not None and sent == drop[0]:
                await socket.close(drop[1])
                return
            method = METHODS.get(event["event_type"], "job_event")
            push = {"method": method, "data": event, "success": None, "channel": "c", "error": None}
            final = offset == len(tape) and self.ends
            await socket.send_json({**push, "offset": offset, "epoch": EPOCH, "final": final})
        await socket.send_json(
            {"method": "replay_complete", "data": {}, "success": None, "channel": "c", "error": None}
        )
        await socket.receive_text()


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


PLAIN_LINES = f"""\
    1 QUEUED     execution {EXECUTION_ID[:13]}
    2 RUNNING    execution {EXECUTION_ID[:13]}
    3 RUNNING    input text
    4 OUTPUT     input text  result = one two
    5 COMPLETED  input text
    6 RUNNING    count
    7 OUTPUT     count  words = 2
    8 COMPLETED  count
    9 COMPLETED  execution {EXECUTION_ID[:13]}
"""
"""What the fake's execution looks like as lines."""
