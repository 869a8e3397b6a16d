"""The engine of one process on its data folder: store, log, bus, relay and worker, joined and running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.graphs import SqlGraphStore
from livetape.adapters.sql.memory import SqlMemory
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.relay import SqlTapeRelayStore
from livetape.clock import Clock, IdFactory, IdPool, SystemClock
from livetape.engine.announce import Announcer
from livetape.engine.blob_sweep import BlobSweep
from livetape.engine.block import Block, BlockRegistry
from livetape.engine.blocks import builtin_blocks, installed_blocks
from livetape.engine.blocks.options import BlockOptions, ModelOptions, RequestOptions
from livetape.engine.commands import Commands
from livetape.engine.divided_log import DividedLog
from livetape.engine.executor import ExecutorOptions
from livetape.engine.library import Graphs
from livetape.engine.outlets import BusOutlet, CopyOutlet, LiveMessages, Outlet
from livetape.engine.planner import Rules
from livetape.engine.relay import Relay
from livetape.engine.reviewing import Reviews
from livetape.engine.submit import Executions
from livetape.engine.worker import Worker, WorkerOptions
from livetape.errors import LogError
from livetape.events.bus import Bus
from livetape.events.jobs import Jobs
from livetape.events.log import EventLog
from livetape.observability import ErrorReporter, NoReporter
from livetape.runtime.blobs import is_shared, open_blobs
from livetape.runtime.database import open_ports
from livetape.runtime.folder import lock, make_folders
from livetape.runtime.hinting import Hinting
from livetape.runtime.hooks import open_hooks
from livetape.runtime.named import named_function
from livetape.runtime.ports import EventPorts, embedded_ports, link_check, missing_log, redis_ports, shared_ephemeral
from livetape.runtime.process_name import process_name
from livetape.runtime.queue_ports import open_queue
from livetape.runtime.service import service
from livetape.settings import Settings
from livetape.store.ephemeral import Ephemeral
from livetape.store.executions import ClaimLimits


@dataclass(slots=True)
class Engine:
    """Everything behind the API, running. `checks` say what is up, by name; without `broker_up` there is no broker."""

    bus: Bus
    log: EventLog
    blocks: BlockRegistry
    graphs: Graphs
    executions: Executions
    reviews: Reviews
    jobs: Jobs
    store: SqlExecutionStore
    graph_store: SqlGraphStore
    queue: SqlQueue
    worker: Worker | None
    """None: executions are run by other processes."""

    relay: Relay
    metrics: PrometheusMetrics
    clock: Clock
    failed: asyncio.Future[None]
    tapes: EventLog
    """The part of `log` that is in the database."""

    ephemeral: Ephemeral
    shared_log: EventLog | None = None
    """The part of `log` that other processes read; None: there are none."""

    checks: dict[str, Callable[[], bool]] = field(default_factory=dict)
    broker_up: Callable[[], bool] | None = None

    async def missing(self) -> list[str]:
        """What is not up now, by name: nothing when this process can serve."""
        down = [name for name, is_up in self.checks.items() if not is_up()]
        try:
            await self.tapes.describe("readiness")  # any read that touches the database
        except LogError:
            down.append("database")
        if self.shared_log is not None:
            down += await missing_log(self.shared_log)
        return down

    def degraded(self) -> list[str]:
        """What is not up now and keeps nobody from being served: without the broker, executions are accepted and wait
        in the database until it is back."""
        return ["queue"] if self.broker_up is not None and not self.broker_up() else []

    def render_metrics(self) -> tuple[bytes, str]:
        """The text of `/metrics` and its content type."""
        if self.broker_up is not None:
            self.metrics.gauge("queue_up", float(self.broker_up()))
        return self.metrics.render()


@asynccontextmanager
async def open_engine(
    settings: Settings,
    *,
    clock: Clock | None = None,
    ids: IdFactory | None = None,
    extra_blocks: tuple[Block[Any], ...] = (),
    works: bool = True,
    name: str | None = None,
    label: str | None = None,
    reporter: ErrorReporter | None = None,
) -> AsyncIterator[Engine]:
    """The engine on the data folder and its database: store, log, bus, relay and worker, ready.

    Without `works` it runs no executions: other processes on the same PostgreSQL do. `name` is what its leases are held
    under, chosen afresh for each start by default; whoever gives one must do that too. `label` is the label `worker`
    of its metrics; `reporter` is told in whose nodes errors happen (`error_hook`).

    With a Redis bus it publishes there and copies its tapes. Redis may be away, now or later: executions go on, and
    what they tell goes out when it is back.

    Raises:
        ConfigError: the data folder cannot be used, or another process uses it.
        StoreError: the database is damaged, or was made by a newer version.
    """
    clock, ids = clock or SystemClock(), ids or IdPool()
    async with AsyncExitStack() as stack:
        make_folders(settings)
        keeping = open_blobs(settings)
        if settings.postgres_url is None:
            stack.enter_context(lock(settings))
        metrics = PrometheusMetrics(settings.metrics_namespace, worker=label)
        ports_of_database = await open_ports(stack, settings, clock, metrics=metrics)
        database, tapes, sole = ports_of_database.database, ports_of_database.tapes, ports_of_database.sole
        blocks = load_blocks(settings, extra_blocks)
        name = name or process_name()
        queue = SqlQueue(database, poll_s=ports_of_database.poll_s)
        stack.push_async_callback(queue.close)
        notified = ports_of_database.notified
        queue_ports = open_queue(
            stack, settings, queue, hints=notified.hints if notified else None, name=name, metrics=metrics
        )
        hinting = Hinting(None if sole else queue_ports.hints)
        stack.push_async_callback(hinting.close)
        distributed = settings.is_distributed
        ports = redis_ports(stack, settings, metrics) if distributed else embedded_ports(stack, tapes)
        relay = Relay(
            _outlet(ports, tapes, clock, metrics, at_once=1 if sole else 64),
            log=tapes,
            store=SqlTapeRelayStore(database, owner=None if sole else name),
            metrics=metrics,
            shared=not sole,
        )
        log = DividedLog(tapes, ports.log) if distributed else tapes
        announcer = Announcer(ports.log, clock=clock) if distributed else None
        store = SqlExecutionStore(
            database, on_commit=relay.offer, ring=queue.ring, clock=clock, hint=hinting, metrics=metrics
        )
        graph_store = SqlGraphStore(database)
        memory = SqlMemory(database, clock=clock)
        worker = Worker(
            name=name,
            queue=queue_ports.queue,
            store=store,
            graphs=graph_store,
            blocks=blocks,
            clock=clock,
            new_id=ids,
            metrics=metrics,
            options=_worker_options(settings),
            sole=sole,
            hooks=open_hooks(settings, metrics, reporter or NoReporter()),
            memory=memory,
            keeping=keeping,
        )
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if sole:
            await queue.void_takes()
        else:
            await is_shared(settings, memory)
        if notified is not None:
            notified.ring(queue.ring)
            await stack.enter_async_context(service(notified.listen(), notified.ready, "notices", failed))
        # The relay first: it finds what an earlier process left before anything new is written.
        await stack.enter_async_context(service(relay.run(), relay.ready, "relay", failed))
        forwarder = queue_ports.forwarder
        if forwarder is not None:
            await stack.enter_async_context(service(forwarder.run(), forwarder.ready, "doorbells", failed))
        if works:
            hinting.tell_also(worker.hint)
            if not sole:
                hears = asyncio.Event()
                hearing = queue_ports.hints.listen(worker.hint, hears)
                await stack.enter_async_context(service(hearing, hears, "hints", failed))
            await stack.enter_async_context(service(worker.run(), worker.ready, "worker", failed))
            sweep = BlobSweep(keeping.blobs, store, clock=clock, metrics=metrics)
            await stack.enter_async_context(service(sweep.run(), sweep.ready, "large values", failed))
        executions = Executions(
            store,
            graph_store,
            log,
            blocks,
            clock=clock,
            new_id=ids,
            hint=hinting,
            announce=announcer.execution if announcer else _unheard,
            relayed=relay.relayed if distributed else None,
            max_input_bytes=settings.engine.max_input_bytes,
            queue_seconds=settings.engine.queue_seconds,
            rules=_worker_options(settings).executor.rules,
            keeping=keeping,
        )
        commands = Commands(ports.bus, executions, metrics=metrics)
        await stack.enter_async_context(service(commands.run(), commands.ready, "commands", failed))
        yield Engine(
            bus=ports.bus,
            log=log,
            blocks=blocks,
            graphs=Graphs(
                graph_store, blocks, clock=clock, new_id=ids, announce=announcer.graph if announcer else _unheard
            ),
            executions=executions,
            reviews=Reviews(store, keeping),
            jobs=Jobs(ports.recorder, clock=clock),
            store=store,
            graph_store=graph_store,
            queue=queue,
            worker=worker if works else None,
            relay=relay,
            metrics=metrics,
            clock=clock,
            failed=failed,
            tapes=tapes,
            ephemeral=shared_ephemeral(stack, settings.ephemeral_url)
            if settings.ephemeral_url
            else ports_of_database.ephemeral,
            shared_log=ports.log if distributed else None,
            checks={
                "relay": relay.ready.is_set,
                "worker": lambda: (not works or worker.ready.is_set()) and not failed.done(),
                "notices": notified.is_up if notified else _always,
                "bus": link_check(ports.bus),
            },
            broker_up=None if forwarder is None else queue_ports.is_up,
        )


def _outlet(ports: EventPorts, tapes: EventLog, clock: Clock, metrics: PrometheusMetrics, *, at_once: int) -> Outlet:
    if ports.copier is None:
        return BusOutlet(ports.bus, LiveMessages(tapes), tapes_at_once=at_once)
    return CopyOutlet(ports.copier, ports.log, tapes, ports.bus, clock=clock, metrics=metrics)


def _always() -> bool:
    return True


async def _unheard(*_: object) -> None:
    """Tapes are read where they are written: nobody need be told of a new one."""


def load_blocks(settings: Settings, extra: tuple[Block[Any], ...] = ()) -> BlockRegistry:
    """The built-in blocks, those of installed packages, and those that the settings name."""
    named: list[Block[Any]] = []
    for source in settings.blocks:
        named.extend(named_function(source, "the blocks of", setting="blocks")())
    return BlockRegistry([*builtin_blocks(_block_options(settings)), *installed_blocks(), *named, *extra])


def _block_options(settings: Settings) -> BlockOptions:
    requests, model = settings.requests, settings.llm
    return BlockOptions(
        RequestOptions(
            allow=requests.allow,
            max_bytes=requests.max_bytes,
            timeout_s=requests.timeout_seconds,
            max_redirects=requests.max_redirects,
        ),
        ModelOptions(
            base_url=model.base_url,
            api_key=None if model.api_key is None else model.api_key.get_secret_value(),
            model=model.model,
            silence_s=model.silence_seconds,
        ),
    )


def _worker_options(settings: Settings) -> WorkerOptions:
    engine = settings.engine
    return WorkerOptions(
        concurrency=engine.concurrency,
        lease_s=engine.lease_seconds,
        renew_s=engine.renew_seconds,
        sweep_s=engine.sweep_seconds,
        max_depth=engine.max_depth,
        limits=ClaimLimits(
            per_user=engine.user_concurrency,
            per_graph=engine.graph_concurrency,
            run_seconds=engine.execution_seconds,
        ),
        executor=ExecutorOptions(
            rules=Rules(
                parallel_nodes=engine.parallel_nodes,
                step_limit=engine.step_limit,
                node_error_policy=engine.node_error_policy,
            ),
            cancel_grace_s=engine.cancel_grace_seconds,
            files=settings.files_dir.absolute(),
            safe_mode=engine.safe_mode,
            variables=engine.process_environment,
        ),
    )
