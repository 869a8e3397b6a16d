"""The one place that joins settings, adapters and components into a running process.

Nothing else picks an adapter, and nothing here knows how a component works. What is opened is closed in the reverse
order; a service that ends by itself takes the process with it, because a half-running server is a lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import json
import os
import secrets
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.adapters.sql.database import SqliteDatabase
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.graphs import SqlGraphStore
from livetape.adapters.sql.migrate import migrate
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.relay import SqlTapeRelayStore
from livetape.adapters.sqlite.log import SqliteEventLog
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.api.app import create_api
from livetape.api.services import ApiOptions
from livetape.auth import DEFAULT_USER_ID, LOCAL_HOSTS, Authenticator, OriginPolicy, TokenOptions, TokenVerifier
from livetape.clock import Clock, IdFactory, IdPool, SystemClock
from livetape.console import create_console
from livetape.engine.block import Block, BlockRegistry
from livetape.engine.blocks import builtin_blocks, installed_blocks
from livetape.engine.executor import ExecutorOptions
from livetape.engine.graph import Graph
from livetape.engine.library import Graphs
from livetape.engine.planner import Rules
from livetape.engine.relay import Relay
from livetape.engine.submit import Executions
from livetape.engine.worker import Worker, WorkerOptions
from livetape.errors import ConfigError, LogError, StoreError
from livetape.events.jobs import Jobs
from livetape.events.recorder import LogRecorder
from livetape.examples import example_files, example_graphs
from livetape.gateway.app import Gateway, create_gateway
from livetape.gateway.options import GatewayOptions
from livetape.gateway.transports.uvicorn import JoinedWritesProtocol
from livetape.observability import get_logger
from livetape.settings import Settings, is_loopback, signing_key

logger = get_logger(__name__)

LOCK_FILE: Final = "lock"
CHECKED_BYTES: Final = 32 * 1024 * 1024
"""A larger database is not checked at every start; `livetape doctor` checks any."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What `up` tells a newcomer."""

    url: str
    ws_url: str
    data_dir: Path
    graphs: int
    executions: int
    development_user: bool
    pid: int


@dataclass(slots=True)
class Engine:
    """Everything behind the API, running. `checks` say what is up, by name."""

    bus: MemoryBus
    log: SqliteEventLog
    blocks: BlockRegistry
    graphs: Graphs
    executions: Executions
    jobs: Jobs
    store: SqlExecutionStore
    graph_store: SqlGraphStore
    queue: SqlQueue
    worker: Worker
    relay: Relay
    metrics: PrometheusMetrics
    clock: Clock
    failed: asyncio.Future[None]
    checks: dict[str, Callable[[], bool]] = field(default_factory=dict)


@asynccontextmanager
async def open_engine(
    settings: Settings,
    *,
    clock: Clock | None = None,
    ids: IdFactory | None = None,
    extra_blocks: tuple[Block[Any], ...] = (),
) -> AsyncIterator[Engine]:
    """The embedded engine on the data folder: store, log, bus, relay and worker, ready.

    Raises:
        ConfigError: the data folder cannot be used, or another process uses it.
        StoreError: the database is damaged, or was made by a newer version.
    """
    clock, ids = clock or SystemClock(), ids or IdPool()
    async with AsyncExitStack() as stack:
        _make_folders(settings)
        stack.enter_context(_lock(settings))
        database, writer, readers = await _open_database(stack, settings)
        blocks = load_blocks(settings, extra_blocks)
        metrics = PrometheusMetrics(settings.metrics_namespace)
        bus = MemoryBus()
        stack.push_async_callback(bus.close)
        log = SqliteEventLog(writer, readers, clock=clock)
        queue = SqlQueue(database, clock=clock)
        relay = Relay(bus=bus, log=log, store=SqlTapeRelayStore(database), metrics=metrics)
        store = SqlExecutionStore(database, on_commit=relay.offer, ring=queue.ring, clock=clock)
        graph_store = SqlGraphStore(database)
        worker = Worker(
            name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            queue=queue,
            store=store,
            graphs=graph_store,
            blocks=blocks,
            clock=clock,
            new_id=ids,
            metrics=metrics,
            options=_worker_options(settings),
            sole=True,
        )
        await queue.void_takes()
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The relay first: it finds what an earlier process left before anything new is written.
        await stack.enter_async_context(_service(relay.run(), relay.ready, "relay", failed))
        await stack.enter_async_context(_service(worker.run(), worker.ready, "worker", failed))
        yield Engine(
            bus=bus,
            log=log,
            blocks=blocks,
            graphs=Graphs(graph_store, blocks, clock=clock, new_id=ids),
            executions=Executions(
                store,
                graph_store,
                log,
                blocks,
                clock=clock,
                new_id=ids,
                hint=worker.cancel,
                max_input_bytes=settings.engine.max_input_bytes,
            ),
            jobs=Jobs(LogRecorder(log, bus), clock=clock),
            store=store,
            graph_store=graph_store,
            queue=queue,
            worker=worker,
            relay=relay,
            metrics=metrics,
            clock=clock,
            failed=failed,
            checks={
                "relay": relay.ready.is_set,
                "worker": lambda: worker.ready.is_set() and not failed.done(),
            },
        )


def load_blocks(settings: Settings, extra: tuple[Block[Any], ...] = ()) -> BlockRegistry:
    """The built-in blocks, those of installed packages, and those that the settings name."""
    named: list[Block[Any]] = []
    for source in settings.blocks:
        module, _, function = source.partition(":")
        try:
            named.extend(getattr(importlib.import_module(module), function)())
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"cannot load the blocks of {source}",
                because=str(error),
                set_by="blocks",
                fix="correct LIVETAPE_BLOCKS",
            ) from error
    return BlockRegistry([*builtin_blocks(), *installed_blocks(), *named, *extra])


async def install_examples(engine: Engine, settings: Settings) -> None:
    """At the first start: the graphs and files that come with the program, owned by the development user."""
    if await engine.graph_store.count():
        return
    for name, content in example_files().items():
        path = settings.files_dir / name
        if not path.exists():
            path.write_bytes(content)
    for graph in example_graphs():
        await engine.graphs.install(DEFAULT_USER_ID, Graph.model_validate(graph))


def _worker_options(settings: Settings) -> WorkerOptions:
    engine = settings.engine
    return WorkerOptions(
        concurrency=engine.concurrency,
        lease_s=engine.lease_seconds,
        renew_s=engine.renew_seconds,
        sweep_s=engine.sweep_seconds,
        executor=ExecutorOptions(
            rules=Rules(
                parallel_nodes=engine.parallel_nodes,
                step_limit=engine.step_limit,
                node_error_policy=engine.node_error_policy,
            ),
            cancel_grace_s=engine.cancel_grace_seconds,
            files=settings.files_dir.absolute(),
        ),
    )


def _make_folders(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.files_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.data_dir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to the data folder {settings.data_dir}",
            because=str(error),
            set_by="data_dir",
            fix="choose another with --data-dir, or make it writable for this user",
        ) from error


@contextmanager
def _lock(settings: Settings) -> Iterator[None]:
    """Hold the folder alone. The operating system lets go when the process dies, however it dies."""
    path = settings.data_dir / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another livetape uses the data folder {settings.data_dir}",
                because=_who_holds(settings, handle),
                set_by="data_dir",
                fix="stop it, or choose another folder with --data-dir",
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _who_holds(settings: Settings, handle: int) -> str:
    pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
    with contextlib.suppress(OSError, ValueError):
        return f"process {pid} serves it at {json.loads(settings.server_file.read_text())['url']}"
    return f"process {pid} holds it"


async def _open_database(stack: AsyncExitStack, settings: Settings) -> tuple[SqliteDatabase, Writer, Readers]:
    path = settings.database_path
    writer, readers = Writer(path), Readers(path)
    try:
        writer.open()
        stack.callback(readers.close)
        stack.callback(writer.close)
        await writer.run(_check_file)
        database = SqliteDatabase(writer, readers)
        await database.write(migrate)
    except Exception as error:
        if isinstance(error, StoreError) and error.__cause__ is None:
            raise
        raise StoreError(
            f"the database {path} cannot be opened: {error.__cause__ or error}",
            path=str(path),
            fix=f"restore it from a copy; or move {path} away and start with an empty one",
        ) from error
    return database, writer, readers


def _check_file(connection: sqlite3.Connection) -> None:
    """Look for damage while that is quick, so that it is found now and not in the middle of an execution."""
    (pages,), (size,) = (
        connection.execute("PRAGMA page_count").fetchone(),
        connection.execute("PRAGMA page_size").fetchone(),
    )
    if pages * size <= CHECKED_BYTES:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)


@asynccontextmanager
async def _service(
    work: Coroutine[Any, Any, None], ready: asyncio.Event, name: str, failed: asyncio.Future[None]
) -> AsyncIterator[None]:
    """Run it beside the body, from when it is ready. If it ends by itself, `failed` says why."""
    task = asyncio.create_task(work, name=name)

    def ended(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and not failed.done():
            failed.set_exception(done.exception() or RuntimeError(f"the {name} ended by itself"))

    task.add_done_callback(ended)
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.wait({task, waiting})
        if failed.done() and not failed.cancelled():
            failed.exception()  # seen: whoever waits for it has it, and nobody else need be told


def development_user(settings: Settings) -> bool:
    """Whether callers of this machine without a token are the development user."""
    return settings.enable_auth and settings.app_env == "local" and is_loopback(settings.host)


# ---- serving -------------------------------------------------------------------------------------------------------


async def serve(settings: Settings, *, on_ready: Callable[[ServerInfo], None] | None = None) -> None:
    """Everything in this process, until cancelled; `on_ready` is called when `/readyz` answers 200.

    Raises:
        OSError: the address cannot be listened on.
        ConfigError, StoreError: as `open_engine`.
    """
    async with AsyncExitStack() as stack:
        # The port first: it costs nothing, and is what most often cannot be had.
        listener = stack.enter_context(_listen(settings))
        engine = await stack.enter_async_context(open_engine(settings))
        await install_examples(engine, settings)
        gateway = create_gateway(
            _gateway_options(settings),
            engine.bus,
            engine.log,
            _authenticator(settings),
            metrics=engine.metrics,
            clock=engine.clock,
        )
        await stack.enter_async_context(_service(gateway.run(), gateway.ready, "gateway", engine.failed))
        engine.checks["gateway"] = gateway.ready.is_set
        engine.metrics.gauge("websocket_connections_total", 0)
        server = _Server(_uvicorn_config(settings, _api(settings, engine, gateway)), gateway.drain)
        serving = _service(server.run_on(listener), server.ready, "server", engine.failed)
        await stack.enter_async_context(serving)
        if on_ready is not None:
            on_ready(await _server_info(settings, engine, listener))
        await engine.failed


def _api(settings: Settings, engine: Engine, gateway: Gateway) -> FastAPI:
    exact = [origin for origin in settings.allowed_origins if not origin.startswith("regex:")]
    patterns = [origin.removeprefix("regex:") for origin in settings.allowed_origins if origin.startswith("regex:")]
    local = development_user(settings) or not settings.enable_auth

    async def missing() -> list[str]:
        down = [name for name, is_up in engine.checks.items() if not is_up()]
        try:
            await engine.log.describe("readiness")  # any read that touches the file
        except LogError:
            down.append("database")
        return down

    return create_api(
        ApiOptions(
            version=package_version("livetape"),
            docs_enabled=settings.show_docs,
            cors_origins=exact,
            cors_origin_regex="|".join(f"(?:{pattern})" for pattern in patterns) or None,
            # Where being on this machine is enough, a name that somebody else controls must not lead here.
            allowed_hosts=[*LOCAL_HOSTS, *settings.allowed_hosts] if local else None,
            jobs_unowned=settings.gateway.jobs_unowned,
        ),
        graphs=engine.graphs,
        executions=engine.executions,
        blocks=engine.blocks,
        log=engine.log,
        jobs=engine.jobs,
        authenticator=_authenticator(settings),
        event_streams=gateway.event_stream,
        readiness=missing,
        metrics=engine.metrics,
        metrics_text=engine.metrics.render if settings.enable_metrics else None,
        clock=engine.clock,
        console=create_console(),
        routes=gateway.routes(),
    )


def _authenticator(settings: Settings) -> Authenticator:
    verifier: TokenVerifier | None = None
    if settings.enable_auth:
        verifier = TokenVerifier(TokenOptions(verify_key=signing_key(settings), algorithm=settings.jwt_sign_algorithm))
    return Authenticator(
        verifier,
        enable_auth=settings.enable_auth,
        dev_user=development_user(settings),
        allowed_hosts=settings.allowed_hosts,
        origins=OriginPolicy(settings.allowed_origins),
    )


def _gateway_options(settings: Settings) -> GatewayOptions:
    known = settings.gateway.model_dump(include=set(GatewayOptions.model_fields))
    return GatewayOptions(**known)


def _uvicorn_config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ws=JoinedWritesProtocol,
        ws_max_size=settings.gateway.max_message_bytes,
        ws_ping_interval=settings.gateway.ping_interval_seconds,
        ws_ping_timeout=settings.gateway.ping_timeout_seconds,
        ws_per_message_deflate=False,
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )


class _Server(uvicorn.Server):
    """uvicorn as one service among others: signals are not its business, and sockets are told before it stops."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self.ready = asyncio.Event()

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until cancelled; then let requests end, as `shutdown` says."""
        serving = asyncio.create_task(self.serve(sockets=[listener]), name="http")
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self.should_exit = True
            await serving
            raise

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain()
        await super().shutdown(sockets)


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=2048) as listener:
        yield listener


async def _server_info(settings: Settings, engine: Engine, listener: socket.socket) -> ServerInfo:
    port = listener.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - only shown
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return ServerInfo(
        url=f"http://{host}:{port}",
        ws_url=f"ws://{host}:{port}/ws",
        data_dir=settings.data_dir,
        graphs=await engine.graph_store.count(),
        executions=sum((await engine.store.counts()).values()),
        development_user=development_user(settings),
        pid=os.getpid(),
    )
