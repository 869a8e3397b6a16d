"""`livetape serve`: a gateway alone, or everything, beside a Redis that several processes share."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from typing import TYPE_CHECKING

import click

from livetape.cli.app import report
from livetape.cli.commands import serve_worker
from livetape.cli.options import App, app_of, data_dir_option, verbose_option
from livetape.cli.running import Running, loop_factory, settle, shown_url
from livetape.cli.workers import Lifeline, Workers

if TYPE_CHECKING:
    from livetape.runtime.gateway import GatewayInfo
    from livetape.settings import Settings

ALL_DRAIN_S = 20.0


@click.group("serve")
def command() -> None:
    """Start a part of livetape, or all of it, on a Redis that several processes share."""


@command.command("all")
@click.option("--host", metavar="ADDRESS", help="Address to listen on; default 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on, 0 for a free one; default 8420.")
@data_dir_option
@verbose_option
@click.pass_context
def serve_all(ctx: click.Context, host: str | None, port: int | None) -> int:
    """Start everything in one process, and copy what it tells to Redis, where gateways elsewhere see it.

    Needs LIVETAPE_BUS (or REDIS_HOST). State is kept in the data folder.
    """
    from livetape.cli.commands.up import start
    from livetape.runtime.shared import check_shared

    app = app_of(ctx)
    settings = _load(app, host, port)
    check_shared(settings, "livetape serve all", database=False)
    return start(app, settings, command="livetape serve all", drain_seconds=ALL_DRAIN_S)


@command.command("gateway")
@click.option("--host", metavar="ADDRESS", help="Address to listen on; default 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on, 0 for a free one; default 8420.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes on the port.")
@data_dir_option
@verbose_option
@click.pass_context
def serve_gateway(ctx: click.Context, host: str | None, port: int | None, workers: int) -> int:
    """Start a gateway: sockets and event streams over the Redis that others fill. It keeps no state.

    Needs LIVETAPE_BUS (or REDIS_HOST), and LIVETAPE_JWT_VERIFY_KEY or the --data-dir of the API.
    """
    from livetape.cli.commands.up import check_port
    from livetape.cli.logs import configure
    from livetape.runtime.gateway import DRAIN_S, check_gateway, token_key
    from livetape.runtime.server import listen
    from livetape.runtime.stopping import drain_time

    app = app_of(ctx)
    settings = _load(app, host, port)
    check_gateway(settings)
    key = token_key(settings, data_dir_given="data_dir" in app.sources)
    configure(settings)
    check_port(settings, "livetape serve gateway")
    listener = listen(settings)
    shown = _Shown(app, settings, workers, listener)

    def serve(lifeline: Lifeline | None) -> int:
        running = _Gateway(app, talks=lifeline is None)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(running.run(settings, key, listener, lifeline, shown))

    with listener:
        if workers == 1:
            return serve(None)
        gc.collect()
        gc.freeze()  # what is there now is shared by all, as long as nobody touches it
        return Workers(
            workers,
            serve,
            drain_s=drain_time(settings, DRAIN_S),
            say=app.say,
            ready=shown.show,
            stopping=listener.close,  # what waits to be accepted is refused when the last worker goes
            report=lambda error: report(app, error),
        ).run()


@command.command("api")
@click.option("--host", metavar="ADDRESS", help="Address to listen on; default 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on, 0 for a free one; default 8420.")
@data_dir_option
@verbose_option
@click.pass_context
def serve_api(ctx: click.Context, host: str | None, port: int | None) -> int:
    """Start the API, with console and sockets, on a PostgreSQL that workers share. It runs no executions.

    Needs LIVETAPE_DATABASE (PostgreSQL) and LIVETAPE_BUS.
    """
    from livetape.cli.commands.up import start
    from livetape.runtime.shared import check_shared

    app = app_of(ctx)
    settings = _load(app, host, port)
    check_shared(settings, "livetape serve api")
    return start(app, settings, command="livetape serve api", drain_seconds=ALL_DRAIN_S, works=False)


command.add_command(serve_worker.command)


class _Gateway(Running):
    """One process of a gateway."""

    stops = "stopping: letting sockets go elsewhere (again to stop at once)"
    stops_at_once = "stopped at once"

    async def run(
        self, settings: Settings, key: str | None, listener: socket.socket, lifeline: Lifeline | None, shown: _Shown
    ) -> int:
        from livetape.runtime.gateway import serve_gateway

        def ready(_info: GatewayInfo) -> None:
            settle()
            shown.show() if lifeline is None else lifeline.ready()

        worker = None if lifeline is None else str(lifeline.number)
        gateway = serve_gateway(settings, key, listener=listener, worker=worker, on_ready=ready)
        return await self.until_signal(gateway, parent=None if lifeline is None else lifeline.parent)


class _Shown:
    """What is told when it serves."""

    def __init__(self, app: App, settings: Settings, workers: int, listener: socket.socket) -> None:
        self._app = app
        self._settings = settings
        self._workers = workers
        self._listener = listener

    def show(self) -> None:
        from livetape.cli.facts import package_version
        from livetape.runtime.server import urls_of

        url, ws_url = urls_of(self._settings, self._listener)
        processes = "" if self._workers == 1 else f"  ·  {self._workers} workers"
        lines = [
            f"  livetape {package_version()}  ·  gateway{processes}",
            f"  Live       {ws_url}",
            f"  Ready      {url}/readyz",
            *([f"  Metrics    {url}/metrics"] if self._settings.enable_metrics else []),
            f"  Bus        {shown_url(self._settings.bus_url)}",
            "  Stop       Ctrl-C",
        ]
        click.echo("\n".join(lines))
        sys.stdout.flush()


def _load(app: App, host: str | None, port: int | None) -> Settings:
    log_level = "debug" if app.verbose > 1 else None
    return app.load(redis=True, host=host, port=port, log_level=log_level).settings
