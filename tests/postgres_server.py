"""A real PostgreSQL for tests: a private folder, a free port, ended and removed by who started it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import support

PATIENCE_S = 30.0
USER = "postgres"


class PostgresServer:
    """One server process. It survives `kill` and `start` with its port, its data and its settings.

    PostgreSQL refuses to run as root: there it runs as the user of the distribution's package. Nothing waits for the
    disk. Settings of the server are given as `max_connections=20`.
    """

    def __init__(self, *, port: int | None = None, **options: str | int) -> None:
        found = support.services()["postgres"].path
        assert found is not None, "mark the test with @pytest.mark.needs('postgres')"
        self._programs = Path(found).resolve().parent
        self.port = support.free_port() if port is None else port
        # Not in the folder of the test: its parents are closed to the other user.
        self.folder = Path(tempfile.mkdtemp(prefix="livetape-postgres-"))
        self.options: dict[str, str | int] = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": 200,
            **options,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    @property
    def _as_user(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        return {"user": USER, "group": USER, "extra_groups": []}

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        return f"postgresql://{USER}@127.0.0.1:{port or self.port}/{database}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it takes connections. The data is made at the first start."""
        if not self._data.exists():
            if os.geteuid() == 0:
                shutil.chown(self.folder, USER, USER)
            how = ["-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
            subprocess.run(
                [self._programs / "initdb", "-D", self._data, "-U", USER, *how],
                check=True,
                capture_output=True,
                cwd=self.folder,
                **self._as_user,
            )
        words = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        for name, value in self.options.items():
            words += ["-c", f"{name}={value}"]
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                words,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
                **self._as_user,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._says_ready():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                text = (self.folder / "output.log").read_text(errors="replace")
                raise AssertionError(f"postgres did not start (exit {ended}):\n{text[-2000:]}")
            time.sleep(0.01)

    def _says_ready(self) -> bool:
        """Its pid file ends with how far it is."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def stop(self, *, immediate: bool = False) -> None:
        """As its administrator does: sessions are ended. `immediate`: without writing anything down. Idempotent."""
        if self.is_running:
            self._signal(signal.SIGQUIT if immediate else signal.SIGINT)
            self._ended()

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """As a power cut for all of its processes: SIGKILL."""
        self._signal(signal.SIGSTOP)  # else it might start another one meanwhile
        self._until(lambda: _state(self.pid) in "TZX", "the server to stand still")
        sessions = self._sessions()
        for pid in [*sessions, self.pid]:
            _send(pid, signal.SIGKILL)
        self._ended()
        # As long as one of them lives, the memory that they share is in use and no other server starts.
        self._until(lambda: all(_state(pid) in "ZX" for pid in sessions), "its sessions to end")

    def pause(self) -> None:
        """It keeps its connections and answers nothing, until `resume`."""
        for pid in [self.pid, *self._sessions()]:
            _send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in [self.pid, *self._sessions()]:
            _send(pid, signal.SIGCONT)

    def remove(self) -> None:
        """Stop, and forget its data."""
        if self.is_running:
            self.resume()
        self.stop(immediate=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, statement: str, *, database: str = "postgres") -> str:
        """What a statement answers, typed by hand so to speak: for looking at what adapters wrote."""
        done = subprocess.run(
            [self._programs / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def end_sessions(self, database: str) -> None:
        """End every session of a database but our own, as an administrator or a failing network may."""
        self.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )

    def _sessions(self) -> list[int]:
        """Its child processes."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, f"waited for {what}"
            time.sleep(0.002)

    def _signal(self, number: signal.Signals) -> None:
        _send(self.pid, number)

    def _ended(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _state(pid: int) -> str:
    """The letter that `ps` shows; `X` of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def running(server: PostgresServer) -> Iterator[PostgresServer]:
    try:
        server.start()
        yield server
    finally:
        server.remove()
