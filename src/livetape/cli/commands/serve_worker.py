"""`livetape serve worker`: processes that run executions."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from livetape.cli.app import report
from livetape.cli.errors import EXIT_FAILED, CommandError
from livetape.cli.options import App, app_of, data_dir_option, verbose_option
from livetape.cli.ports import free_port, is_in_use
from livetape.cli.running import Running, loop_factory, settle, shown_url
from livetape.cli.workers import Lifeline, Workers

if TYPE_CHECKING:
    from livetape.runtime.worker_port import WorkerPort
    from livetape.settings import Settings

PREPARES_AFTER_S: Final = 3.0
"""When the workers have started: they need the processor now."""

_LIFELINE: Final = "LIVETAPE_WORKER_LIFELINE"
"""To a process of a worker: its number, what ties it to its parent, and the name of its leases."""

_STATUS: Final = "LIVETAPE_WORKER_STATUS"
"""To the same: where it is asked how it is; not there when nobody asks."""


@click.command("worker")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="How many to run.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    help="Serve /metrics, /livez and /readyz of all of them there, 0 for a free port; default: nowhere.",
)
@data_dir_option
@verbose_option
@click.pass_context
def command(ctx: click.Context, processes: int, metrics_port: int | None) -> int:
    """Start workers: they run what is started anywhere, and go on with what a lost one left.

    Needs LIVETAPE_DATABASE (PostgreSQL) and LIVETAPE_BUS; takes doorbells from LIVETAPE_QUEUE when that is a RabbitMQ.
    """
    from livetape.cli.logs import configure
    from livetape.runtime.shared import check_shared

    app = app_of(ctx)
    inherited, status = os.environ.pop(_LIFELINE, None), os.environ.pop(_STATUS, None)
    settings = app.load(redis=True, log_level="debug" if app.verbose > 1 else None).settings
    check_shared(settings, "livetape serve worker")
    configure(settings)
    if inherited is not None:
        number, parent, said, name = inherited.split(",", 3)
        lifeline = Lifeline(int(number), int(parent), int(said))
        return _work(app, settings, name, lifeline, None if status is None else Path(status))
    return _Supervisor(app, settings, processes, metrics_port).run()


class _Worker(Running):
    """One process that runs executions."""

    async def run(self, settings: Settings, name: str, lifeline: Lifeline, status: Path | None) -> int:
        from livetape.runtime.worker import serve_worker

        def ready() -> None:
            settle()
            lifeline.ready()

        label = None if status is None else str(lifeline.number)
        worker = serve_worker(settings, name=name, on_ready=ready, label=label, status=status)
        return await self.until_signal(worker, parent=lifeline.parent)


def _work(app: App, settings: Settings, name: str, lifeline: Lifeline, status: Path | None) -> int:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_Worker(app, talks=False).run(settings, name, lifeline, status))


class _Supervisor:
    """Spawns the workers, and releases at once what one that is gone was running."""

    def __init__(self, app: App, settings: Settings, processes: int, metrics_port: int | None) -> None:
        from livetape.runtime.process_name import process_name

        self._app = app
        self._settings = settings
        self._processes = processes
        self._metrics_port = metrics_port
        self._port: WorkerPort | None = None
        self._folder: Path | None = None
        self._base = process_name()
        self._started = 0
        self._names: dict[int, str] = {}
        self._releasing: list[threading.Thread] = []

    def run(self) -> int:
        """Until all have ended; see `Workers.run`."""
        with ExitStack() as stack:
            if self._metrics_port is not None:
                self._port = self._listen(self._metrics_port, stack)
            code = self._workers().run()
        for thread in self._releasing:
            thread.join()
        return code

    def _workers(self) -> Workers:
        return Workers(
            self._processes,
            _never,
            drain_s=self._settings.engine.cancel_grace_seconds + 5,
            say=self._app.say,
            ready=self._serve,
            stopping=self._stopping,
            report=lambda error: report(self._app, error),
            start=self._spawn,
            ended=self._release,
            letting="what runs go to other workers",
        )

    def _listen(self, port: int, stack: ExitStack) -> WorkerPort:
        from livetape.runtime.worker_folder import worker_folder
        from livetape.runtime.worker_port import WorkerPort

        host = self._settings.host
        self._folder = stack.enter_context(worker_folder())
        try:
            listening = WorkerPort(
                host, port, self._folder, self._processes, namespace=self._settings.metrics_namespace
            )
        except OSError as exc:
            raise CommandError(
                "port_in_use" if is_in_use(exc) else "config",
                f"cannot listen on {host}:{port} for metrics",
                because=exc.strerror or str(exc),
                set_by="--metrics-port, LIVETAPE_HOST",
                fix=f"livetape serve worker --metrics-port {free_port(host, port)}",
            ) from exc
        stack.callback(listening.close)
        return listening

    def _stopping(self) -> None:
        if self._port is not None:
            self._port.stopping()

    def _spawn(self, lifeline: Lifeline) -> int:
        self._started += 1
        # The comma ends it: no name is the beginning of another.
        name = f"{self._base}-{self._started};"
        told = {_LIFELINE: f"{lifeline.number},{lifeline.parent},{lifeline.said},{name}"}
        if self._folder is not None:
            from livetape.runtime.worker_status import status_path

            told[_STATUS] = str(status_path(self._folder, lifeline.number))
        process = subprocess.Popen(  # noqa: S603 - the program that runs
            [sys.executable, "-m", "livetape", *sys.argv[1:]],
            env=os.environ | told,
            pass_fds=(lifeline.parent, lifeline.said),
            start_new_session=True,  # a terminal sends Ctrl-C to all of a session: the parent passes on what it means
        )
        process.returncode = 0  # whoever looks after it waits for it by its number
        self._names[process.pid] = name
        return process.pid

    def _release(self, pid: int) -> None:
        thread = threading.Thread(target=self._release_now, args=(self._names.pop(pid),), daemon=True)
        self._releasing = [*(one for one in self._releasing if one.is_alive()), thread]
        thread.start()

    def _release_now(self, name: str) -> None:
        from livetape.errors import LivetapeError
        from livetape.runtime.release import release_leases

        try:
            released = asyncio.run(release_leases(self._settings, name, within_s=self._settings.engine.lease_seconds))
        except LivetapeError as error:
            self._app.say(f"leases of a worker that ended were not released: {error}; they end by themselves")
        else:
            if released:
                self._app.say(f"{len(released)} executions of a worker that ended go on elsewhere")

    def _serve(self) -> None:
        self._show()
        prepares = threading.Timer(PREPARES_AFTER_S, self._prepare)
        prepares.daemon = True
        prepares.start()

    @staticmethod
    def _prepare() -> None:
        """Load what a release needs: when a worker is gone, that would take longer than the release itself."""
        for name in ("livetape.runtime.release", "livetape.adapters.sql.postgres.upgrade"):
            with suppress(ImportError):
                importlib.import_module(name)

    def _show(self) -> None:
        from livetape.cli.facts import package_version

        settings = self._settings
        processes = "" if self._processes == 1 else f"  ·  {self._processes} processes"
        lines = [
            f"  livetape {package_version()}  ·  worker{processes}",
            f"  Database   {shown_url(str(settings.postgres_url))}",
            f"  Queue      {shown_url(settings.broker_url) if settings.broker_url else 'the database'}",
            f"  Bus        {shown_url(settings.bus_url)}",
            *([] if self._port is None else [f"  Metrics    {self._port.url}/metrics"]),
            "  Stop       Ctrl-C",
        ]
        click.echo("\n".join(lines))
        sys.stdout.flush()


def _never(_lifeline: Lifeline) -> int:
    return EXIT_FAILED  # every worker is a process of its own
