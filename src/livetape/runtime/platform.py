"""Everything in one process: engine, API, gateway and console."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Final

from fastapi import FastAPI

from livetape.api.app import create_api
from livetape.api.services import ApiOptions
from livetape.auth import LOCAL_HOSTS
from livetape.console import create_console
from livetape.runtime.access import cors, development_user
from livetape.runtime.engine import Engine, open_engine
from livetape.runtime.error_hook import error_hook
from livetape.runtime.first_start import install_examples
from livetape.runtime.server import Server, SocketsFirst, listen, urls_of, uvicorn_config
from livetape.runtime.service import service
from livetape.runtime.sockets import Sockets, open_sockets
from livetape.runtime.stopping import Stopping, drain_time
from livetape.settings import Settings, signing_key

UP_DRAIN_S: Final = 1.0
"""Whoever pressed Ctrl-C waits for it."""


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


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[[ServerInfo], None] | None = None,
    drain_seconds: float = UP_DRAIN_S,
    works: bool = True,
) -> None:
    """Everything in this process, until cancelled; `on_ready` is called when `/readyz` answers 200.

    With a Redis bus the process is ready, and `on_ready` called, also while Redis is away: executions go on, and
    `/readyz` says what is down. `drain_seconds` is what a stop may take for sockets, where the settings do not say.
    Without `works` it runs no executions (see `open_engine`).

    Raises:
        OSError: the address cannot be listened on.
        ConfigError, StoreError: as `open_engine`.
    """
    async with AsyncExitStack() as stack:
        reporter = stack.enter_context(error_hook(settings))
        # The port first: it costs nothing, and is what most often cannot be had.
        listener = stack.enter_context(listen(settings))
        engine = await stack.enter_async_context(open_engine(settings, works=works, reporter=reporter))
        await install_examples(engine, settings)
        sockets = open_sockets(
            settings,
            signing_key(settings) if settings.enable_auth else None,
            bus=engine.bus,
            log=engine.log,
            ephemeral=engine.ephemeral,
            metrics=engine.metrics,
            clock=engine.clock,
        )
        stack.callback(sockets.close)
        gateway = sockets.gateway
        begun = gateway.ready if engine.shared_log is None else asyncio.Event()
        if engine.shared_log is not None:
            begun.set()
        await stack.enter_async_context(service(gateway.run(), begun, "gateway", engine.failed))
        engine.checks["gateway"] = gateway.ready.is_set
        stopping = Stopping(gateway, drain_time(settings, drain_seconds))
        engine.checks["running"] = stopping.is_not
        app = SocketsFirst(_api(settings, engine, sockets), gateway.websocket_endpoint)
        server = Server(uvicorn_config(settings, app, sockets.sender), stopping.drain)
        await stack.enter_async_context(service(server.run_on(listener), server.ready, "server", engine.failed))
        if on_ready is not None:
            on_ready(await _server_info(settings, engine, listener))
        await engine.failed


def _api(settings: Settings, engine: Engine, sockets: Sockets) -> FastAPI:
    origins, pattern = cors(settings)
    local = development_user(settings) or not settings.enable_auth

    return create_api(
        ApiOptions(
            version=package_version("livetape"),
            docs_enabled=settings.show_docs,
            cors_origins=origins,
            cors_origin_regex=pattern,
            # Where being on this machine is enough, a name that somebody else controls must not lead here.
            allowed_hosts=[*LOCAL_HOSTS, *settings.allowed_hosts] if local else None,
            jobs_unowned=settings.gateway.jobs_unowned,
        ),
        graphs=engine.graphs,
        executions=engine.executions,
        reviews=engine.reviews,
        queue=engine.store,
        blocks=engine.blocks,
        log=engine.log,
        jobs=engine.jobs,
        authenticator=sockets.authenticator,
        revocations=sockets.revocations,
        event_streams=sockets.gateway.event_stream,
        readiness=engine.missing,
        degraded=engine.degraded,
        metrics=engine.metrics,
        metrics_text=engine.render_metrics if settings.enable_metrics else None,
        clock=engine.clock,
        console=create_console(),
        routes=sockets.routes,
    )


async def _server_info(settings: Settings, engine: Engine, listener: socket.socket) -> ServerInfo:
    url, ws_url = urls_of(settings, listener)
    return ServerInfo(
        url=url,
        ws_url=ws_url,
        data_dir=settings.data_dir,
        graphs=await engine.graph_store.count(),
        executions=sum((await engine.store.counts()).values()),
        development_user=development_user(settings),
        pid=os.getpid(),
    )
