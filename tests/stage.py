"""The engine on a database file under a clock that the test moves: executions run when the test says so."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from sqlalchemy import select

from databases import postgres_database, sqlite_database
from livetape.adapters.folder.blobs import FolderBlobs
from livetape.adapters.sql.database import Database
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.graphs import SqlGraphStore
from livetape.adapters.sql.log import SqlEventLog
from livetape.adapters.sql.memory import SqlMemory
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.tables import doorbell
from livetape.engine.block import Block, BlockRegistry
from livetape.engine.blocks import builtin_blocks
from livetape.engine.children import ChildMaker
from livetape.engine.executor import Executor, ExecutorOptions
from livetape.engine.graph import Graph, Link, Node
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.hooks import Hooks
from livetape.engine.large_values import BlobLimits, Keeping
from livetape.engine.submit import Executions
from livetape.events.executions import ExecutionStatus
from livetape.events.log import Entry
from livetape.observability import NoMetrics
from livetape.store.executions import ClaimLimits, Committed, ExecutionRow, NodeRow
from livetape.store.graphs import GraphRow

START = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
LEASE_S = 15.0
POSTGRES_URL = "postgres.url"


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return (self.moment - START).total_seconds()

    def go(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Stage:
    """Store, queue and use cases on one file; `work` is a worker that never waits."""

    def __init__(
        self,
        database: Database,
        clock: ManualClock,
        folder: Path,
        blocks: tuple[Block[Any], ...],
        limits: BlobLimits | None = None,
    ) -> None:
        self.clock = clock
        self.folder = folder
        self.database = database
        self.committed: list[Committed] = []
        self.hints: list[str] = []
        self.log = SqlEventLog(database, clock=clock)
        self.queue = SqlQueue(self.database, clock=self.clock)
        self.store = SqlExecutionStore(
            self.database,
            on_commit=self._told,
            ring=self.queue.ring,
            clock=self.clock,
            hint=self.hints.append,
        )
        self.graphs = SqlGraphStore(self.database)
        self.memory = SqlMemory(self.database, clock=self.clock)
        self.blocks = BlockRegistry([*builtin_blocks(), *blocks])
        self.options = ExecutorOptions(cancel_grace_s=1, files=folder)
        self.limits = ClaimLimits()
        self.hooks = Hooks()
        self.max_depth = 4
        self.threads = ThreadPoolExecutor(2)
        self.executors: list[Executor] = []
        self.blobs = FolderBlobs(folder / "blobs")
        self.keeping = Keeping(self.blobs, limits or BlobLimits())
        ids = itertools.count(1)
        self.new_id: Callable[[], str] = lambda: f"id{next(ids):05}"
        self.executions = Executions(
            self.store,
            self.graphs,
            self.log,
            self.blocks,
            clock=self.clock,
            new_id=self.new_id,
            hint=self.hints.append,
            keeping=self.keeping,
        )

    def _told(self, committed: Committed) -> None:
        self.committed.append(committed)

    async def graph(self, name: str, nodes: dict[str, Any], *links: str, user: str = "u") -> str:
        """Store a graph. Nodes by id: a block id, or (block id, defaults). Links: `x.out>y.a`, `=>` for static ones."""
        made = []
        for node_id, of in nodes.items():
            block, defaults = (of, {}) if isinstance(of, str) else of
            made.append(Node(id=node_id, block_id=block, input_default=defaults))
        parsed = []
        for text in links:
            (source, pin), (sink, to) = (end.split(".") for end in text.replace("=>", ">").split(">"))
            parsed.append(Link(source_id=source, source_name=pin, sink_id=sink, sink_name=to, is_static="=>" in text))
        graph = Graph(id=name, name=name, nodes=made, links=parsed)
        body = graph.model_dump_json().encode()
        await self.graphs.create(GraphRow(name, 1, user, name, "", True, body, self.clock.now()))
        return name

    async def start(self, graph_id: str, user: str = "u", **inputs: Any) -> str:
        return (await self.executions.start(user, graph_id, None, inputs)).execution.id

    async def claim(self, execution_id: str, owner: str = "w") -> ExecutionRow | None:
        return await self.store.claim(execution_id, owner=owner, lease_seconds=LEASE_S, limits=self.limits)

    async def executor(self, row: ExecutionRow) -> Executor:
        stored = await self.graphs.get(row.user_id, row.graph_id, row.graph_version)
        left = None
        if row.deadline_at is not None and row.lease_until is not None:
            left = (row.deadline_at - row.lease_until).total_seconds() + LEASE_S
        executor = Executor(
            row,
            GraphPlan(Graph.model_validate_json(stored.body), self.blocks),
            store=self.store,
            blocks=self.blocks,
            threads=self.threads,
            clock=self.clock,
            new_id=self.new_id,
            metrics=NoMetrics(),
            options=self.options,
            make_child=ChildMaker(
                self.graphs, self.blocks, clock=self.clock, max_depth=self.max_depth, keeping=self.keeping
            ),
            hooks=self.hooks,
            memory=self.memory,
            values=self.keeping.of(row.user_id, row.id),
            seconds_left=left,
        )
        self.executors.append(executor)
        return executor

    async def bells(self) -> list[str]:
        """Executions whose doorbell is due."""
        query = select(doorbell.c.graph_exec_id).where(doorbell.c.due_at <= self.clock.now()).order_by(doorbell.c.id)
        return list(await self.database.read(lambda db: db.execute(query).scalars().all()))

    async def lose_bells(self) -> None:
        await self.database.write(lambda db: db.execute(doorbell.delete()))

    async def work(self) -> list[str]:
        """Run everything that is rung and due, until nothing is. Returns what was run, in order."""
        ran: list[str] = []
        while await self.bells():
            for delivery in await self.queue.take(10):
                row = await self.claim(delivery.doorbell.graph_exec_id)
                await self.queue.ack(delivery)
                if row is not None:
                    ran.append(row.id)
                    await (await self.executor(row)).run()
        return ran

    async def row(self, execution_id: str) -> ExecutionRow:
        return await self.store.get(execution_id)

    async def status(self, execution_id: str) -> tuple[str, str | None]:
        row = await self.row(execution_id)
        return row.status.value, row.status_reason

    async def outputs(self, execution_id: str) -> dict[str, list[Any]]:
        return (await self.executions.get((await self.row(execution_id)).user_id, execution_id)).execution.outputs

    async def node(self, execution_id: str, node_id: str, which: int = 0) -> NodeRow:
        return [node for node in await self.store.nodes(execution_id) if node.node_id == node_id][which]

    async def agree(self, execution_id: str) -> None:
        """Numbers without gap, everything told was committed, and the last events are the rows (invariant 4)."""
        entries: list[Entry] = []
        while page := await self.log.read(f"execution_events:{execution_id}", len(entries)):
            entries.extend(page)
        assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
        told = sorted(  # two commits at once may be offered in another order than they were made
            (c.first + i, event.payload)
            for c in self.committed
            if c.execution_id == execution_id
            for i, event in enumerate(c.events)
        )
        assert told == [(entry.offset, entry.payload) for entry in entries]
        snapshot = await self.executions.get((await self.row(execution_id)).user_id, execution_id)
        nodes: dict[str, Any] = {}
        last: Any = None
        for entry in entries:
            event = from_json(entry.payload)
            if entry.event_type == "node_execution_update":
                nodes[event["node_exec_id"]] = event
            elif entry.event_type == "graph_execution_update":
                last = event
        for result in snapshot.node_executions:
            if result.status is not ExecutionStatus.INCOMPLETE:
                expected = result.model_dump(mode="json")
                assert {key: nodes[result.node_exec_id][key] for key in expected} == expected
        expected = snapshot.execution.model_dump(mode="json", exclude={"stats"})
        assert {key: last[key] for key in expected} == expected
        finals = [entry.final for entry in entries]
        assert finals == [False] * (len(entries) - 1) + [snapshot.execution.status.is_terminal]


@asynccontextmanager
async def on_stage(
    folder: Path, *blocks: Block[Any], blob_limits: BlobLimits | None = None, **options: Any
) -> AsyncIterator[Stage]:
    """An empty stage, on PostgreSQL when the folder has a file that names one. `options` are those of executors."""
    clock, named = ManualClock(), folder / POSTGRES_URL
    database = (
        postgres_database(named.read_text(), clock=clock)
        if named.exists()
        else sqlite_database(folder / "a.db", clock=clock)
    )
    async with database as opened:
        stage = Stage(opened, clock, folder, blocks, blob_limits)
        stage.options = replace(stage.options, **options)
        yield stage
        stage.threads.shutdown(wait=False)
