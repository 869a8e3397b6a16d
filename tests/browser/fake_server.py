"""A small server that speaks the wire contract (sections 3 and 5) to the console, and fails when it is told to.

It holds its tapes in memory and runs in the loop of the test, so that a test decides what happens when: publish an
event, drop every socket, refuse new ones, lose a tape's history, send numbers twice or leave some out.

By hand, with executions that play by themselves: `PYTHONPATH=tests python -m browser.fake_server --port 8499`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from livetape.console import create_console
from serving import serving

USER = "3e53486c-cf57-477e-ba2a-cb02dc828e1a"
METHODS = {"graph": "graph_execution_event", "node": "node_execution_event", "output": "node_output_event"}
INPUT_BLOCK, WORK_BLOCK, OUTPUT_BLOCK = "b-input", "b-work", "b-output"


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Tape:
    """Numbered pushes; what lies before `first` was forgotten."""

    channel: str
    epoch: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    pushes: list[dict[str, Any]] = field(default_factory=list)
    first: int = 1
    sockets: dict[WebSocket, bool] = field(default_factory=dict)  # -> whether it takes single outputs

    @property
    def offset(self) -> int:
        return self.pushes[-1]["offset"] if self.pushes else self.first - 1

    def append(self, method: str, data: dict[str, Any], *, final: bool = False, skip: int = 0) -> dict[str, Any]:
        push = {
            "method": method, "data": data, "success": None, "channel": self.channel, "error": None,
            "offset": self.offset + 1 + skip, "epoch": self.epoch,
        }  # fmt: skip
        if final:
            push["final"] = True
        self.pushes.append(push)
        return push

    def after(self, offset: int) -> list[dict[str, Any]]:
        return [push for push in self.pushes if push["offset"] > offset and push["offset"] >= self.first]


@dataclass
class Execution:
    """One execution: its state as REST shows it, and its tape."""

    graph: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "QUEUED"
    status_reason: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    tape: Tape = field(init=False)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.tape = Tape(f"{USER}|graph_exec#{self.id}")

    def meta(self) -> dict[str, Any]:
        failed = sum(node["status"] == "FAILED" for node in self.nodes.values())
        return {
            "id": self.id, "user_id": USER, "graph_id": self.graph["id"], "graph_version": self.graph["version"],
            "inputs": self.inputs, "credential_inputs": None, "nodes_input_masks": None, "preset_id": None,
            "status": self.status, "status_reason": self.status_reason, "started_at": self.started_at,
            "ended_at": self.ended_at, "is_shared": False, "share_token": None, "is_dry_run": False,
            "stats": {"cost": 0, "node_exec_count": len(self.nodes), "node_error_count": failed},
        }  # fmt: skip

    def event(self) -> dict[str, Any]:
        return {"event_type": "graph_execution_update", **self.meta(), "outputs": json.loads(json.dumps(self.outputs))}

    def snapshot(self) -> dict[str, Any]:
        return {
            **self.meta(),
            "outputs": self.outputs,
            "node_executions": list(self.nodes.values()),
            "stream": {"epoch": self.tape.epoch, "offset": self.tape.offset},
        }


class FakeServer:
    """`async with FakeServer().running() as server:` then `server.url` and the methods below."""

    def __init__(self) -> None:
        self.graphs: dict[str, dict[str, Any]] = {}
        self.executions: dict[str, Execution] = {}
        self.jobs: dict[str, Tape] = {}
        self.graph_sockets: dict[str, set[WebSocket]] = {}
        self.sockets: set[WebSocket] = set()
        self.starts: list[dict[str, Any]] = []
        self.subscribes: list[dict[str, Any]] = []
        self.token: str | None = None  # what a client must show, when set
        self.close_new_with: int | None = None  # a close code for every new socket
        self.rest_down = False
        self.hold_replay_after: int | None = None  # a replay stops after so many events, until `let_go`
        self.let_go = asyncio.Event()
        self.overlap = 0  # how many numbers before the asked position are sent again
        self.on_start: Callable[[Execution], Any] | None = None
        self.url = ""
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- what a test does ---------------------------------------------------------------------------------------------

    def add_graph(self, name: str, *, inputs: dict[str, Any] | None = None, description: str = "") -> dict[str, Any]:
        graph = {
            "id": str(uuid.uuid4()), "version": 1, "is_active": True, "name": name, "description": description,
            "user_id": USER, "created_at": now(),
            "nodes": [
                {"id": "n-in", "block_id": INPUT_BLOCK, "input_default": {"name": "text"}, "metadata": {}},
                {"id": "n-work", "block_id": WORK_BLOCK, "input_default": {}, "metadata": {"name": "Read chapters"}},
                {"id": "n-out", "block_id": OUTPUT_BLOCK, "input_default": {"name": "words"}, "metadata": {}},
            ],
            "links": [],
            "input_schema": {"type": "object", "properties": inputs or {}, "required": list(inputs or {})},
            "output_schema": {"type": "object", "properties": {}},
        }  # fmt: skip
        self.graphs[graph["id"]] = graph
        return graph

    def add_execution(self, graph: dict[str, Any], **inputs: Any) -> Execution:
        execution = Execution(graph, inputs)
        self.executions[execution.id] = execution
        return execution

    async def graph_event(self, execution: Execution, status: str, reason: str | None = None, **kwargs: Any) -> None:
        execution.status, execution.status_reason = status, reason
        final = status in {"COMPLETED", "FAILED", "TERMINATED"}
        if status == "RUNNING" and execution.started_at is None:
            execution.started_at = now()
        if final:
            execution.ended_at = now()
        push = execution.tape.append(METHODS["graph"], execution.event(), final=final, **kwargs)
        await self._push(execution.tape, push)
        channel = f"{USER}|graph#{execution.graph['id']}|executions"
        for socket in list(self.graph_sockets.get(execution.graph["id"], ())):
            await self._send(socket, {**push, "channel": channel, "epoch": "graph"})

    async def node_event(
        self, execution: Execution, node_id: str, status: str, *, run: int = 1, reason: str | None = None, **kwargs: Any
    ) -> None:
        node_exec_id = f"{node_id}-run-{run}"
        block = next(node["block_id"] for node in execution.graph["nodes"] if node["id"] == node_id)
        known = execution.nodes.setdefault(
            node_exec_id,
            {
                "user_id": USER, "graph_id": execution.graph["id"], "graph_version": 1, "graph_exec_id": execution.id,
                "node_exec_id": node_exec_id, "node_id": node_id, "block_id": block,
                "input_data": {}, "output_data": {},
                "add_time": now(), "queue_time": None, "start_time": None, "end_time": None,
            },
        )  # fmt: skip
        known["status"], known["status_reason"] = status, reason
        if status == "QUEUED":
            known["queue_time"] = now()
        if status == "RUNNING":
            known["start_time"] = known["start_time"] or now()
        if status in {"COMPLETED", "FAILED", "TERMINATED"}:
            known["end_time"] = now()
        data = {"event_type": "node_execution_update", **json.loads(json.dumps(known))}
        await self._push(execution.tape, execution.tape.append(METHODS["node"], data, **kwargs))

    async def output(self, execution: Execution, node_id: str, name: str, value: Any, *, run: int = 1) -> None:
        node = execution.nodes[f"{node_id}-run-{run}"]
        index = sum(len(values) for values in node["output_data"].values())
        node["output_data"].setdefault(name, []).append(value)
        data = {
            "event_type": "node_output_update", "user_id": USER, "graph_id": execution.graph["id"],
            "graph_exec_id": execution.id, "node_id": node_id, "node_exec_id": node["node_exec_id"], "index": index,
            "name": name, "value": value,
        }  # fmt: skip
        await self._push(execution.tape, execution.tape.append(METHODS["output"], data))

    async def job_event(self, job_id: str, event_type: str, data: Any, *, final: bool = False) -> None:
        tape = self.jobs.setdefault(job_id, Tape(f"{USER}|job#{job_id}"))
        event = {"event_type": event_type, "job_id": job_id, "timestamp": now(), "data": data}
        await self._push(tape, tape.append("job_event", event, final=final))

    async def push_raw(self, execution: Execution, message: dict[str, Any]) -> None:
        for socket in list(execution.tape.sockets):
            await self._send(socket, {"channel": execution.tape.channel, **message})

    async def drop_sockets(self, code: int = 1012) -> None:
        for socket in list(self.sockets):
            with contextlib.suppress(Exception):
                await socket.close(code)
        self.sockets.clear()
        for tape in [*(one.tape for one in self.executions.values()), *self.jobs.values()]:
            tape.sockets.clear()
        self.graph_sockets.clear()

    def forget_history(self, execution: Execution, *, keep: int) -> None:
        """Trim: only the newest `keep` events can still be read."""
        execution.tape.first = execution.tape.offset - keep + 1

    def new_tape(self, execution: Execution) -> None:
        """As after a loss: another epoch, numbers from 1 again."""
        execution.tape.epoch = uuid.uuid4().hex[:8]
        execution.tape.pushes.clear()
        execution.tape.first = 1

    # --- REST ---------------------------------------------------------------------------------------------------------

    def app(self) -> Starlette:
        console = create_console()

        async def root(request: Request) -> Any:
            if "text/html" not in request.headers.get("accept", ""):
                return JSONResponse({"status": "healthy"})
            return _Raw(console)

        def rest(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
            async def guarded(request: Request) -> Response:
                if self.rest_down:
                    return _error(503, "The store does not answer.", "Try again in a moment.")
                if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                    return _error(401, "Authorization header is missing", "Send a token.")
                answer: Response = await handler(request)
                return answer

            return guarded

        return Starlette(
            routes=[
                Route("/", root),
                Route("/api/graphs", rest(self._list_graphs)),
                Route("/api/graphs/{graph}", rest(self._get_graph)),
                Route("/api/graphs/{graph}/execute/{version}", rest(self._start), methods=["POST"]),
                Route("/api/graphs/{graph}/executions/{execution}", rest(self._get_execution)),
                Route("/api/graphs/{graph}/executions/{execution}/stop", rest(self._stop), methods=["POST"]),
                Route("/api/blocks", rest(self._blocks)),
                Route("/api/executions", rest(self._list_executions)),
                WebSocketRoute("/ws", self._socket),
                Mount("/console", console),
            ]
        )

    async def _list_graphs(self, _: Request) -> Response:
        keys = {"id", "version", "is_active", "name", "description", "user_id", "created_at"}
        return JSONResponse([{key: graph[key] for key in keys} for graph in self.graphs.values()])

    async def _get_graph(self, request: Request) -> Response:
        graph = self.graphs.get(request.path_params["graph"])
        return JSONResponse(graph) if graph else _error(404, "no such graph")

    async def _list_executions(self, _: Request) -> Response:
        return JSONResponse([execution.meta() for execution in reversed(self.executions.values())])

    async def _get_execution(self, request: Request) -> Response:
        execution = self.executions.get(request.path_params["execution"])
        if execution is None or execution.graph["id"] != request.path_params["graph"]:
            return _error(404, "no such execution")
        return JSONResponse(execution.snapshot())

    async def _start(self, request: Request) -> Response:
        body = await request.json()
        graph = self.graphs[request.path_params["graph"]]
        self.starts.append({"graph": graph["id"], "key": request.headers.get("idempotency-key"), **body})
        missing = [name for name in graph["input_schema"]["required"] if body["inputs"].get(name) in ("", None)]
        if missing:
            detail = {
                "type": "validation_error",
                "message": f"Graph validation failed: {len(missing)} issues on 1 nodes",
                "node_errors": {"n-in": dict.fromkeys(missing, "a value is required")},
            }
            return _error(400, detail, "Adjust the request and retry.")
        execution = self.add_execution(graph, **body["inputs"])
        answer = {**execution.meta(), "stream": {"epoch": execution.tape.epoch, "offset": execution.tape.offset}}
        await self.graph_event(execution, "QUEUED")
        if self.on_start is not None:
            self._spawn(self.on_start(execution))
        return JSONResponse(answer)

    async def _stop(self, request: Request) -> Response:
        execution = self.executions[request.path_params["execution"]]
        execution.stop.set()
        await self.graph_event(execution, "TERMINATED", "cancelled_by_user")
        return JSONResponse(execution.meta())

    async def _blocks(self, _: Request) -> Response:
        names = {INPUT_BLOCK: "AgentInputBlock", WORK_BLOCK: "TextSplitBlock", OUTPUT_BLOCK: "AgentOutputBlock"}
        kinds = {INPUT_BLOCK: "Input", WORK_BLOCK: "Standard", OUTPUT_BLOCK: "Output"}
        return JSONResponse([{"id": key, "name": name, "uiType": kinds[key]} for key, name in names.items()])

    # --- WebSocket ----------------------------------------------------------------------------------------------------

    async def _socket(self, socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", [])
        shown = socket.query_params.get("token") or next(
            (one.removeprefix("bearer.") for one in offered if one.startswith("bearer.")), None
        )
        await socket.accept(subprotocol="livetape.v1" if "livetape.v1" in offered else None)
        if self.token and shown != self.token:
            await socket.close(4003 if shown else 4001, "Invalid token" if shown else "Missing authentication token")
            return
        if self.close_new_with is not None:
            await socket.close(self.close_new_with)
            return
        self.sockets.add(socket)
        try:
            while True:
                await self._message(socket, json.loads(await socket.receive_text()))
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            self._forget(socket)

    def _forget(self, socket: WebSocket) -> None:
        self.sockets.discard(socket)
        for tape in [*(one.tape for one in self.executions.values()), *self.jobs.values()]:
            tape.sockets.pop(socket, None)
        for sockets in self.graph_sockets.values():
            sockets.discard(socket)

    async def _message(self, socket: WebSocket, message: dict[str, Any]) -> None:
        method, data = message["method"], message.get("data") or {}
        if method == "heartbeat":
            await self._send(socket, {"method": "heartbeat", "data": "pong", "success": True})
            return
        reply: dict[str, Any] = {"method": method, "data": None, "success": True, "channel": None, "error": None}
        reply["id"] = message.get("id")
        if method == "unsubscribe":
            for tape in [*(one.tape for one in self.executions.values()), *self.jobs.values()]:
                if tape.channel == data.get("channel") and tape.sockets.pop(socket, None) is not None:
                    reply["channel"] = tape.channel
            await self._send(socket, reply)
            return
        self.subscribes.append({"method": method, **data})
        if method == "subscribe_graph_executions":
            self.graph_sockets.setdefault(data["graph_id"], set()).add(socket)
            reply["channel"] = f"{USER}|graph#{data['graph_id']}|executions"
            reply["data"] = {"epoch": "graph", "offset": 0, "recovered": True, "count": 0}
            await self._send(socket, reply)
            return
        if method == "subscribe_graph_execution":
            execution = self.executions.get(data["graph_exec_id"])
            tape = execution.tape if execution else Tape(f"{USER}|graph_exec#{data['graph_exec_id']}")
        else:
            tape = self.jobs.setdefault(data["job_id"], Tape(f"{USER}|job#{data['job_id']}"))
        each = data.get("outputs") == "each"
        since = data.get("since", "latest")
        recovered = True
        if since == "earliest":
            missed = tape.after(0)
        elif isinstance(since, dict):
            recovered = since["epoch"] == tape.epoch and since["offset"] + 1 >= tape.first
            missed = tape.after(max(0, since["offset"] - self.overlap)) if recovered else []
        else:
            missed = []
        missed = [push for push in missed if each or push["method"] != METHODS["output"]]
        reply["channel"] = tape.channel
        reply["data"] = {"epoch": tape.epoch, "offset": tape.offset, "recovered": recovered, "count": len(missed)}
        if method == "subscribe_job" and not tape.pushes:  # its tape is made by its first event
            reply["data"] = {"epoch": None, "offset": 0, "recovered": False, "count": 0}
        await self._send(socket, reply)
        for place, push in enumerate(missed):
            if place == self.hold_replay_after:
                await self.let_go.wait()
            await self._send(socket, push)
        done = {"method": "replay_complete", "data": None, "success": None, "channel": tape.channel, "error": None}
        await self._send(socket, {**done, "offset": tape.offset, "epoch": tape.epoch})
        tape.sockets[socket] = each

    async def _push(self, tape: Tape, push: dict[str, Any]) -> None:
        for socket, each in list(tape.sockets.items()):
            if each or push["method"] != METHODS["output"]:
                await self._send(socket, push)

    async def _send(self, socket: WebSocket, message: dict[str, Any]) -> None:
        try:
            await socket.send_text(json.dumps(message))
        except Exception:  # a socket that went away: the client comes back and asks for what it missed
            self._forget(socket)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- life ---------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[FakeServer]:
        async with serving(
            self.app(), port=port, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=1
        ) as found:
            self.url = f"http://127.0.0.1:{found}"
            try:
                yield self
            finally:
                for one in list(self._tasks):
                    one.cancel()
                await self.drop_sockets(1001)


class _Raw:
    """Hands a request on to an ASGI app, from inside a route."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def _error(status: int, detail: Any, hint: str = "") -> Response:
    return JSONResponse({"message": f"status {status}", "detail": detail, "hint": hint}, status_code=status)


async def play(server: FakeServer, execution: Execution, *, pace: float = 0.25, chunks: int = 12) -> None:
    """A run as a small graph makes it: input, one node with many outputs, a result for each."""
    await server.graph_event(execution, "RUNNING")
    for status in ("QUEUED", "RUNNING"):
        await server.node_event(execution, "n-in", status)
    await server.output(execution, "n-in", "result", execution.inputs.get("text", "Alice"))
    await server.node_event(execution, "n-in", "COMPLETED")
    await server.node_event(execution, "n-work", "QUEUED")
    await asyncio.sleep(pace)
    await server.node_event(execution, "n-work", "RUNNING")
    for chunk in range(1, chunks + 1):
        await asyncio.sleep(pace)
        if execution.stop.is_set():
            return
        await server.output(
            execution, "n-work", "chunk", f"Chapter {chunk}: down the rabbit hole, {chunk * 2117} words"
        )
        await server.node_event(execution, "n-out", "QUEUED", run=chunk)
        execution.nodes[f"n-out-run-{chunk}"]["input_data"] = {"value": [chunk * 2117]}
        await server.node_event(execution, "n-out", "RUNNING", run=chunk)
        execution.outputs.setdefault("words", []).append(chunk * 2117)
        await server.output(execution, "n-out", "output", chunk * 2117, run=chunk)
        await server.node_event(execution, "n-out", "COMPLETED", run=chunk)
    await server.node_event(execution, "n-work", "COMPLETED")
    await server.graph_event(execution, "COMPLETED")


async def main() -> None:
    parser = argparse.ArgumentParser(description="The console on a fake server, to look at.")
    parser.add_argument("--port", type=int, default=8499)
    parser.add_argument("--pace", type=float, default=0.25)
    options = parser.parse_args()
    server = FakeServer()
    server.add_graph("hello", description="Greets whoever is named.")
    text = {"text": {"type": "string", "title": "Text", "description": "What to read.", "default": "alice.txt"}}
    alice = server.add_graph("alice", inputs=text, description="Reads Alice in Wonderland chapter by chapter.")
    server.on_start = lambda execution: play(server, execution, pace=options.pace)
    async with server.running(options.port):
        await play(server, server.add_execution(alice, text="alice.txt"), pace=0.01)
        failed = server.add_execution(alice, text="missing.txt")
        await server.graph_event(failed, "RUNNING")
        await server.node_event(failed, "n-in", "RUNNING")
        await server.node_event(failed, "n-in", "FAILED", reason="block_error")
        await server.graph_event(failed, "FAILED", "block_error")
        print(f"console on {server.url}")
        while True:
            await asyncio.sleep(5)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
