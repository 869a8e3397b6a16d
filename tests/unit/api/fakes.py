"""What the REST interface is given in these tests: the same ports, kept in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from livetape.api.app import create_api
from livetape.api.services import ApiOptions
from livetape.auth import Authenticator, OriginPolicy, TokenOptions, TokenVerifier, issue_token
from livetape.engine.block import Block, BlockContext, BlockRegistry, BlockSchema
from livetape.engine.graph import Graph, GraphMeta, GraphModel
from livetape.engine.start_options import StartOptions
from livetape.errors import ConflictError, GraphValidationError, NotFoundError
from livetape.events.channel import execution_tape, graph_tape, job_tape
from livetape.events.executions import ExecutionStatus, GraphExecution, GraphExecutionMeta, NodeExecutionResult
from livetape.events.log import Position, Tape
from livetape.events.recorder import Recorded
from livetape.store.executions import QueueFigures
from livetape.store.reviews import ReviewRow, ReviewStatus

KEY = "a-key-of-more-than-thirty-two-bytes-for-tests"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EPOCH = "k3v9x0aq"
BLOB = "ab" * 32


def token(user_id: str = "alice", role: str = "user", ttl: timedelta = timedelta(hours=1)) -> str:
    return issue_token(KEY, user_id=user_id, role=role, now=datetime.now(UTC), ttl=ttl)


def bearer(user_id: str = "alice", **kwargs: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user_id, **kwargs)}"}


def tape(name: str, owner: str | None, *, graph_id: str | None = None, offset: int = 0, final: bool = False) -> Tape:
    return Tape(name, owner, graph_id, "channel", EPOCH, offset, 1, final)


@dataclass
class Tapes:
    tapes: dict[str, Tape] = field(default_factory=dict)

    def put(self, new: Tape) -> None:
        self.tapes[new.name] = new

    async def describe(self, tape: str) -> Tape | None:
        return self.tapes.get(tape)


@dataclass
class Graphs:
    tapes: Tapes
    stored: dict[str, list[GraphModel]] = field(default_factory=dict)
    broken: Exception | None = None

    def _own(self, user_id: str, graph_id: str) -> list[GraphModel]:
        if self.broken is not None:
            raise self.broken
        versions = self.stored.get(graph_id, [])
        if not versions or versions[0].user_id != user_id:
            raise NotFoundError(f"Graph #{graph_id} not found.")
        return versions

    def _store(self, user_id: str, graph_id: str, version: int, graph: Graph) -> GraphModel:
        if self.broken is not None:
            raise self.broken
        if graph.name == "invalid":
            raise GraphValidationError(
                node_errors={"n1": {"a": "wrong", "b": "This field is required"}, "n2": {"c": "x"}}
            )
        values = graph.model_dump() | {"id": graph_id, "version": version, "user_id": user_id, "created_at": NOW}
        model = GraphModel.model_validate(values)
        self.stored.setdefault(graph_id, []).append(model)
        return model

    async def create(self, user_id: str, graph: Graph) -> GraphModel:
        graph_id = f"g{len(self.stored) + 1}"
        model = self._store(user_id, graph_id, 1, graph)
        self.tapes.put(tape(graph_tape(graph_id), user_id, graph_id=graph_id))
        return model

    async def update(self, user_id: str, graph_id: str, graph: Graph) -> GraphModel:
        return self._store(user_id, graph_id, len(self._own(user_id, graph_id)) + 1, graph)

    async def get(self, user_id: str, graph_id: str, version: int | None = None) -> GraphModel:
        versions = self._own(user_id, graph_id)
        wanted = version or len(versions)
        if wanted > len(versions):
            raise NotFoundError(f"Graph #{graph_id} has no version {version}.")
        return versions[wanted - 1]

    async def list(self, user_id: str) -> list[GraphMeta]:
        if self.broken is not None:
            raise self.broken
        newest = [versions[-1] for versions in self.stored.values() if versions[0].user_id == user_id]
        return [GraphMeta.model_validate(model.model_dump(include=set(GraphMeta.model_fields))) for model in newest]

    async def versions(self, user_id: str, graph_id: str) -> Sequence[GraphModel]:
        return self._own(user_id, graph_id)

    async def set_active(self, user_id: str, graph_id: str, version: int) -> None:
        await self.get(user_id, graph_id, version)

    async def delete(self, user_id: str, graph_id: str) -> int:
        count = len(self._own(user_id, graph_id))
        del self.stored[graph_id]
        return count


@dataclass(frozen=True)
class Started:
    execution: GraphExecutionMeta
    stream: Position
    replayed: bool


@dataclass(frozen=True)
class Snapshot:
    execution: GraphExecution
    node_executions: list[NodeExecutionResult]
    stream: Position


@dataclass
class Executions:
    graphs: Graphs
    tapes: Tapes
    stored: dict[str, GraphExecution] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    options: list[StartOptions | None] = field(default_factory=list)

    async def trigger(
        self, user_id: str, graph_id: str, version: int | None, payload: dict[str, Any], **kwargs: Any
    ) -> Started:
        return await self.start(user_id, graph_id, version, payload, **kwargs)

    async def rerun(self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None, **kwargs: Any) -> Started:
        old = self._own(user_id, graph_exec_id, graph_id)
        return await self.start(user_id, old.graph_id, old.graph_version, old.inputs, **kwargs)

    async def retry(
        self,
        user_id: str,
        graph_exec_id: str,
        *,
        graph_id: str | None = None,
        from_node: str | None = None,
        **kwargs: Any,
    ) -> Started:
        if not self._own(user_id, graph_exec_id, graph_id).status.is_terminal:
            raise ConflictError("this execution is not over: stop it first")
        return await self.rerun(user_id, graph_exec_id, graph_id=graph_id, **kwargs)

    async def start(
        self,
        user_id: str,
        graph_id: str,
        version: int | None,
        inputs: dict[str, Any],
        *,
        options: StartOptions | None = None,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started:
        self.options.append(options)
        graph = await self.graphs.get(user_id, graph_id, version)
        if idempotency_key is not None and (known := self.keys.get((user_id, idempotency_key))):
            if known[0] != request_hash:
                raise ConflictError("The idempotency key was used with another request", reason="idempotency")
            return Started(self.stored[known[1]], Position(EPOCH, 1), True)
        self.inputs.append(inputs)
        execution = GraphExecution(
            id=f"e{len(self.stored) + 1}",
            user_id=user_id,
            graph_id=graph_id,
            graph_version=graph.version,
            inputs=inputs,
            status=ExecutionStatus.QUEUED,
        )
        self.stored[execution.id] = execution
        self.tapes.put(tape(execution_tape(execution.id), user_id, graph_id=graph_id, offset=1))
        if idempotency_key is not None:
            self.keys[user_id, idempotency_key] = (request_hash, execution.id)
        return Started(execution, Position(EPOCH, 1), False)

    def _own(self, user_id: str, graph_exec_id: str, graph_id: str | None) -> GraphExecution:
        found = self.stored.get(graph_exec_id)
        if found is None or found.user_id != user_id or graph_id not in {None, found.graph_id}:
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
        return found

    async def get(self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None) -> Snapshot:
        execution = self._own(user_id, graph_exec_id, graph_id)
        node = NodeExecutionResult(
            user_id=user_id,
            graph_id=execution.graph_id,
            graph_version=execution.graph_version,
            graph_exec_id=execution.id,
            node_exec_id="ne1",
            node_id="n1",
            block_id="b1",
            status=ExecutionStatus.RUNNING,
            input_data={"a": [1]},
            output_data={},
            add_time=NOW,
        )
        return Snapshot(execution, [node], Position(EPOCH, 2))

    async def blob(self, user_id: str, graph_exec_id: str, sha256: str) -> bytes:
        self._own(user_id, graph_exec_id, None)
        if sha256 != BLOB:
            raise NotFoundError(f"there is no blob {sha256}")
        return b"[1]"

    async def list(
        self, user_id: str, *, graph_id: str | None = None, page: int = 1, page_size: int = 25
    ) -> tuple[list[tuple[GraphExecutionMeta, Position]], int]:
        own = [e for e in self.stored.values() if e.user_id == user_id and graph_id in {None, e.graph_id}]
        page_of = list(reversed(own))[(page - 1) * page_size : page * page_size]
        return [(execution, Position("e1", 3)) for execution in page_of], len(own)

    async def stop(
        self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None, wait: float = 0
    ) -> GraphExecutionMeta:
        execution = self._own(user_id, graph_exec_id, graph_id)
        self.waits.append(wait)
        stopped = execution.model_copy(update={"status": ExecutionStatus.TERMINATED})
        self.stored[graph_exec_id] = stopped
        return stopped


@dataclass
class Reviews:
    """One review waits, of node execution `ne1`."""

    decided: list[tuple[str, bool, str, Any, bool]] = field(default_factory=list)
    rows: list[ReviewRow] = field(
        default_factory=lambda: [
            ReviewRow(
                "r1", "alice", "g1", "e1", "ne1", 0, b'{"n":1}', "look", True, ReviewStatus.WAITING, NOW, None, None, ""
            )
        ]
    )

    async def waiting(self, user_id: str, *, page: int = 1, page_size: int = 25) -> Sequence[ReviewRow]:
        return [row for row in self.rows if row.user_id == user_id][(page - 1) * page_size : page * page_size]

    async def of_execution(self, user_id: str, graph_exec_id: str) -> Sequence[ReviewRow]:
        if graph_exec_id != "e1":
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
        return await self.waiting(user_id)

    async def decide(
        self,
        user_id: str,
        node_exec_id: str,
        *,
        approved: bool,
        message: str = "",
        edited: Any = None,
        is_edited: bool = False,
    ) -> ReviewRow:
        for row in self.rows:
            if row.node_exec_id == node_exec_id and row.user_id == user_id:
                self.decided.append((node_exec_id, approved, message, edited, is_edited))
                return row
        raise NotFoundError(f"Node execution #{node_exec_id} asks for no review.")


@dataclass
class Queue:
    reason: str | None = None

    async def pause(self, reason: str) -> None:
        self.reason = reason

    async def resume(self) -> None:
        self.reason = None

    async def paused(self) -> str | None:
        return self.reason

    async def figures(self) -> QueueFigures:
        return QueueFigures(3, 1.5)


@dataclass
class Jobs:
    tapes: Tapes
    published: list[tuple[str | None, str, str, Any, str | None, str | None]] = field(default_factory=list)

    async def publish(
        self,
        user_id: str | None,
        job_id: str,
        event_type: str,
        data: Any,
        *,
        timestamp: str | None = None,
        idempotency_key: str | None = None,
        is_admin: bool = False,
    ) -> Recorded:
        name = job_tape(job_id)
        known = self.tapes.tapes.get(name) or tape(name, user_id)
        if user_id is not None and known.owner not in {None, user_id} and not is_admin:
            raise NotFoundError(f"Job #{job_id} not found.")
        owner = known.owner or user_id
        self.tapes.put(replace(known, owner=owner, offset=known.offset + 1, final=event_type == "task_completed"))
        self.published.append((user_id, job_id, event_type, data, timestamp, idempotency_key))
        position = Position(EPOCH, known.offset + 1)
        return Recorded(position, f"{position.offset}-0", 0, mixed=known.mixed)


async def event_streams(request: Request, tape: Tape) -> Response:
    accept = request.headers.get("accept", "")
    for media_type in ("text/event-stream", "application/x-ndjson"):
        if media_type in accept:

            async def chunks() -> Any:
                for _ in range(3):
                    yield b"x" * 60_000
                    await asyncio.sleep(0)

            return StreamingResponse(chunks(), media_type=media_type)
    return JSONResponse({"tape": tape.name, "caller": request.state.principal.user_id})


class Adder(Block["Adder.Input"]):
    id = "b1"
    description = "Adds. " * 10

    class Input(BlockSchema):
        a: int
        secret_word: str = ""

    class Output(BlockSchema):
        result: int

    def run(self, data: Adder.Input, ctx: BlockContext) -> Any:
        yield "result", data.a


class Hidden(Adder):
    id = "b2"
    disabled = True


class Figures:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.counts: list[tuple[str, dict[str, str]]] = []
        self.durations: list[tuple[str, float, dict[str, str]]] = []

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self.counts.append((name, labels))

    def gauge(self, name: str, value: float, **labels: str) -> None:
        raise AssertionError

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        self.durations.append((name, seconds, labels))


class World:
    """One application with everything behind it in reach."""

    def __init__(self, *, dev_user: bool = False, origins: Sequence[str] = (), **kwargs: Any) -> None:
        self.tapes = Tapes()
        self.graphs = Graphs(self.tapes)
        self.executions = Executions(self.graphs, self.tapes)
        self.reviews = Reviews()
        self.queue = Queue()
        self.jobs = Jobs(self.tapes)
        self.figures = Figures()
        self.missing: list[str] = []
        self.degraded: list[str] = []
        options = {name: kwargs.pop(name) for name in list(kwargs) if name in ApiOptions.__dataclass_fields__}
        self.app: FastAPI = create_api(
            ApiOptions(version="1.2.3", **options),
            graphs=self.graphs,
            executions=self.executions,
            reviews=self.reviews,
            queue=self.queue,
            blocks=kwargs.pop("blocks", BlockRegistry([Adder(), Hidden()])),
            log=self.tapes,
            jobs=self.jobs,
            authenticator=Authenticator(
                TokenVerifier(TokenOptions(verify_key=KEY)), dev_user=dev_user, origins=OriginPolicy(origins)
            ),
            event_streams=event_streams,
            readiness=self.ready,
            degraded=lambda: self.degraded,
            metrics=self.figures,
            **kwargs,
        )

    async def ready(self) -> Sequence[str]:
        return self.missing


def graph(name: str = "adder", **extra: Any) -> dict[str, Any]:
    return {"graph": {"name": name, "nodes": [{"id": "n", "block_id": "b1", "input_default": {"a": 1}}], **extra}}
