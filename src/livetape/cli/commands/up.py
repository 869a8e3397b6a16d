"""`livetape up`: everything in one process."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from livetape.cli.discover import is_serving, read_server_file, server_file
from livetape.cli.errors import CommandError
from livetape.cli.options import App, app_of, data_dir_option, verbose_option
from livetape.cli.ports import free_port, holder_of, is_in_use, problem_with
from livetape.cli.running import Running, loop_factory, settle, shown_url

if TYPE_CHECKING:
    from livetape.runtime import ServerInfo
    from livetape.settings import Settings


@click.command("up")
@click.option("--host", metavar="ADDRESS", help="Address to listen on; default 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on, 0 for a free one; default 8420.")
@data_dir_option
@click.option("--open", "open_browser", is_flag=True, help="Open the console in a browser.")
@verbose_option
@click.pass_context
def command(ctx: click.Context, host: str | None, port: int | None, open_browser: bool) -> int:
    """Start everything in one process: API, gateway, worker and console. State is kept in the data folder."""
    app = app_of(ctx)
    log_level = "debug" if app.verbose > 1 else None
    settings = app.load(host=host, port=port, log_level=log_level).settings
    return start(app, settings, open_browser=open_browser)


def start(
    app: App,
    settings: Settings,
    *,
    open_browser: bool = False,
    command: str = "livetape up",
    drain_seconds: float | None = None,
    works: bool = True,
) -> int:
    """Everything with these settings, until a signal; the exit code."""
    check_data_dir(settings)
    check_port(settings, command)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(Up(app, settings, open_browser, drain_seconds=drain_seconds, works=works).run())
    except OSError as exc:
        if is_in_use(exc):
            raise port_in_use(settings, command) from exc
        raise


class Up(Running):
    """One server with everything, from its start to its end."""

    def __init__(
        self, app: App, settings: Settings, open_browser: bool, *, drain_seconds: float | None, works: bool
    ) -> None:
        super().__init__(app)
        self.settings = settings
        self.open_browser = open_browser
        self._drain_seconds = drain_seconds
        self._works = works

    async def run(self) -> int:
        """Serve until a signal; 0 when it asked for the end and all was drained."""
        # Importing makes many objects that live on; collecting among them meanwhile is an eighth of the start.
        gc.disable()
        from livetape.cli.logs import configure
        from livetape.runtime import serve

        configure(self.settings)
        if self._drain_seconds is None:
            server = serve(self.settings, on_ready=self._ready)
        else:
            server = serve(self.settings, on_ready=self._ready, drain_seconds=self._drain_seconds, works=self._works)
        return await self.until_signal(server)

    def _ready(self, info: ServerInfo) -> None:
        settle()
        self.said.enter_context(server_file(self.settings.server_file, info.url, os.getpid()))
        pretty = sys.stdout.isatty()
        click.echo(banner(info, self.settings, pretty=pretty), color=pretty and self.app.color(sys.stdout))
        if self.open_browser:
            click.launch(info.url)


def banner(info: ServerInfo, settings: Settings, *, pretty: bool) -> str:
    """Where everything is, for a newcomer."""
    from livetape.cli.facts import package_version

    def bold(text: str) -> str:
        return click.style(text, bold=True) if pretty else text

    mode = {"local": "development mode, not for production", "dev": "development", "prod": "production"}
    docs = f"    docs at {info.url}/docs" if settings.show_docs else ""
    trial = "run alice --watch" if info.graphs else "graphs import FILE"
    lines = [
        f"  {bold('livetape')} {package_version()}  ·  {mode[settings.app_env]}",
        "",
        f"  Console    {bold(info.url + '/')}{'    (signed in as dev)' if info.development_user else ''}",
        f"  REST API   {info.url}/api{docs}",
        f"  Live       {info.ws_url}",
        *([f"  Metrics    {info.url}/metrics"] if settings.enable_metrics else []),
        f"  State      {_state(settings)}  ·  bus: {_bus(settings)}",
        f"  Found      {_count(info.graphs, 'graph')}, {_count(info.executions, 'execution')}",
        "",
        f"  Try it     {program()} {trial}    (in another terminal)",
        "  Stop       Ctrl-C",
    ]
    return "\n".join(["", *lines, ""]) if pretty else "\n".join(line for line in lines if line)


def _state(settings: Settings) -> str:
    if settings.postgres_url is not None:
        return shown_url(settings.postgres_url)
    return f"{shorten(settings.database_path)} (SQLite, kept)"


def program() -> str:
    """What to type for `livetape` here."""
    if shutil.which("livetape"):
        return "livetape"
    path = Path(sys.argv[0])
    return shorten(path.absolute()) if path.name == "livetape" else "livetape"


def _bus(settings: Settings) -> str:
    return shown_url(settings.bus_url) if settings.is_distributed else "in-process"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(path: Path) -> str:
    """The path from here, where that is shorter."""
    try:
        return f"./{path.relative_to(Path.cwd())}"
    except ValueError:
        return str(path)


def check_data_dir(settings: Settings) -> None:
    """Refuse a folder that another server uses, or that cannot be written, before anything is imported."""
    running = read_server_file(settings.server_file)
    if running is not None and running.pid != os.getpid() and is_serving(running):
        raise CommandError(
            "data_dir_in_use",
            f"another livetape runs on {shorten(settings.data_dir)}",
            because=f"process {running.pid} serves it at {running.url}",
            set_by=str(settings.server_file),
            fix=f"use it:         livetape graphs list, or open {running.url}\n"
            f"or stop it:     kill {running.pid}\n"
            f"or another one: livetape up --data-dir .livetape2 --port {free_port(settings.host, settings.port)}",
        )
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise _not_writable(settings, exc) from exc
    if not os.access(settings.data_dir, os.W_OK | os.X_OK):
        raise _not_writable(settings, None)


def _not_writable(settings: Settings, cause: OSError | None) -> CommandError:
    return CommandError(
        "data_dir",
        f"cannot write to the data folder {settings.data_dir}",
        because=(cause.strerror or str(cause)) if cause else "permission denied",
        set_by="--data-dir, LIVETAPE_DATA_DIR or the default .livetape",
        fix=f"make it writable for user {os.getuid()}, or choose another: livetape up --data-dir DIR",
    )


def check_port(settings: Settings, command: str = "livetape up") -> None:
    """Refuse an address that cannot be listened on, with the exact command that works."""
    problem = problem_with(settings.host, settings.port)
    if problem is None:
        return
    if is_in_use(problem):
        raise port_in_use(settings, command)
    raise CommandError(
        "config",
        f"cannot listen on {settings.host}:{settings.port}",
        because=problem.strerror or str(problem),
        set_by="--host, --port or their settings",
        fix=f"{command} --host 127.0.0.1 --port 8420",
    )


def port_in_use(settings: Settings, command: str = "livetape up") -> CommandError:
    """The error that names who has the port and what to type instead."""
    holder = holder_of(settings.port)
    words = [command]
    if settings.host != "127.0.0.1":
        words.append(f"--host {settings.host}")
    words.append(f"--port {free_port(settings.host, settings.port)}")
    if settings.data_dir != Path.cwd() / ".livetape":
        words.append(f"--data-dir {settings.data_dir}")
    return CommandError(
        "port_in_use",
        f"port {settings.port} of {settings.host} is taken",
        because=f"{holder} listens there" if holder else "another process listens there",
        set_by="--port, LIVETAPE_PORT or the default 8420",
        fix=" ".join(words),
    )
