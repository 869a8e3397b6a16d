"""A gateway alone: sockets and event streams over a Redis that others fill. No store, no engine, no state."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Final

from starlette.applications import Starlette

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.api.middleware import HttpOptions
from livetape.api.watch import Watching, WatchOptions, create_watch_api
from livetape.auth import LOCAL_HOSTS
from livetape.clock import Clock, SystemClock
from livetape.errors import ConfigError
from livetape.events.jobs import Jobs
from livetape.runtime.access import cors, development_user
from livetape.runtime.error_hook import error_hook
from livetape.runtime.ports import EventPorts, link_check, missing_log, redis_ports, shared_ephemeral
from livetape.runtime.server import Server, SocketsFirst, listen, urls_of, uvicorn_config
from livetape.runtime.service import service
from livetape.runtime.sockets import Sockets, open_sockets
from livetape.runtime.stopping import Stopping, drain_time
from livetape.settings import Settings
from livetape.settings.secret import SECRET_FILE, read_secret

DRAIN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class GatewayInfo:
    """Where a gateway answers."""

    url: str
    ws_url: str
    pid: int


async def serve_gateway(
    settings: Settings,
    key: str | None,
    *,
    listener: socket.socket | None = None,
    worker: str | None = None,
    on_ready: Callable[[GatewayInfo], None] | None = None,
) -> None:
    """A gateway in this process, until cancelled; then it drains. `on_ready` is called when it answers.

    It answers also while Redis is away: `/livez` is 200 then, and `/readyz` names what is down. `key` is from
    `token_key`. `listener`: a socket that listens already, of several workers; it stays open. `worker`: its name
    among them.

    Raises:
        OSError: the address cannot be listened on.
        ConfigError: as `check_gateway`.
    """
    check_gateway(settings)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        stack.enter_context(error_hook(settings))
        if listener is None:
            listener = stack.enter_context(listen(settings))
        metrics = PrometheusMetrics(settings.metrics_namespace, worker=worker)
        ports = redis_ports(stack, settings, metrics)
        ephemeral = shared_ephemeral(stack, settings.ephemeral_url or settings.bus_url)
        sockets = open_sockets(
            settings, key, bus=ports.bus, log=ports.log, ephemeral=ephemeral, metrics=metrics, clock=clock
        )
        stack.callback(sockets.close)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begun = asyncio.Event()
        begun.set()  # it need not have reached Redis
        await stack.enter_async_context(service(sockets.gateway.run(), begun, "gateway", failed))
        stopping = Stopping(sockets.gateway, drain_time(settings, DRAIN_S))
        api = _app(settings, ports, sockets, stopping, metrics, clock)
        app = SocketsFirst(api, sockets.gateway.websocket_endpoint)
        server = Server(uvicorn_config(settings, app, sockets.sender), stopping.drain)
        await stack.enter_async_context(service(server.run_on(listener), server.ready, "server", failed))
        if on_ready is not None:
            url, ws_url = urls_of(settings, listener)
            on_ready(GatewayInfo(url, ws_url, os.getpid()))
        await failed


def check_gateway(settings: Settings) -> None:
    """Refuse what cannot keep the promises of a gateway.

    Raises:
        ConfigError: no Redis bus.
    """
    if not settings.is_distributed:
        raise ConfigError(
            "a gateway alone needs a Redis bus",
            because="memory:// is inside one process: it would never hear of an event",
            set_by="bus",
            fix="set LIVETAPE_BUS=redis://HOST:6379/0; or run everything in one process: livetape up",
        )


def token_key(settings: Settings, *, data_dir_given: bool) -> str | None:
    """What a gateway checks tokens with; None with auth off.

    The key that is set, else that of the data folder if one was named: a gateway never makes a key, because nobody
    would sign with it.

    Raises:
        ConfigError: there is none.
    """
    if not settings.enable_auth:
        return None
    if settings.jwt_verify_key is not None:
        return settings.jwt_verify_key.get_secret_value()
    if data_dir_given and (settings.data_dir / SECRET_FILE).exists():
        return read_secret(settings.data_dir)
    raise ConfigError(
        "a gateway needs the key that tokens are checked with",
        because="it makes none of its own: nobody would sign with it",
        set_by="jwt_verify_key",
        fix="set LIVETAPE_JWT_VERIFY_KEY (or JWT_VERIFY_KEY) to the key of the API; "
        "on the machine of the API, --data-dir with its data folder does",
    )


def _app(
    settings: Settings,
    ports: EventPorts,
    sockets: Sockets,
    stopping: Stopping,
    metrics: PrometheusMetrics,
    clock: Clock,
) -> Starlette:
    origins, pattern = cors(settings)
    local = development_user(settings) or not settings.enable_auth
    bus_works = link_check(ports.bus)

    async def missing() -> list[str]:
        down = [] if stopping.is_not() else ["running"]
        if not (sockets.gateway.ready.is_set() and bus_works()):
            down.append("bus")
        return down + await missing_log(ports.log)

    watching = Watching(
        WatchOptions(
            version=package_version("livetape"),
            http=HttpOptions(
                cors_origins=origins,
                cors_origin_regex=pattern,
                allowed_hosts=[*LOCAL_HOSTS, *settings.allowed_hosts] if local else None,
            ),
            jobs_unowned=settings.gateway.jobs_unowned,
        ),
        log=ports.log,
        jobs=Jobs(ports.recorder, clock=clock),
        authenticator=sockets.authenticator,
        revocations=sockets.revocations,
        event_streams=sockets.gateway.event_stream,
        readiness=missing,
        metrics_text=metrics.render if settings.enable_metrics else None,
    )
    return create_watch_api(watching, metrics=metrics, clock=clock, routes=sockets.routes)
