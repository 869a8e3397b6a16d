"""Which server to talk to: `--url`, `LIVETAPE_URL`, or the one that the data folder names."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from livetape.cli.errors import CommandError
from livetape.cli.options import App
from livetape.settings.places import SERVER_FILE, is_loopback


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, who said so, and the token to show it."""

    url: str
    said_by: str
    token: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine; then no proxy is asked."""
        return is_loopback(urlsplit(self.url).hostname or "")


def find_server(app: App, environ: Mapping[str, str]) -> Server | None:
    """The server that was named, or that runs on the data folder; None when there is none."""
    token = app.token or environ.get("LIVETAPE_TOKEN") or None
    if app.url:
        return Server(_checked(app.url, "--url"), "--url", token)
    if environ.get("LIVETAPE_URL"):
        said_by = "LIVETAPE_URL in the environment"
        return Server(_checked(environ["LIVETAPE_URL"], said_by), said_by, token)
    file = app.data_folder() / SERVER_FILE
    running = read_server_file(file)
    if running is None or not is_serving(running):
        return None
    return Server(running.url, str(file), token)


def require_server(app: App, environ: Mapping[str, str]) -> Server:
    """As `find_server`.

    Raises:
        CommandError: there is none.
    """
    server = find_server(app, environ)
    if server is None:
        raise CommandError(
            "no_server",
            "no server is running",
            because=f"no --url, no LIVETAPE_URL, and nothing runs on the data folder {app.data_folder()}",
            fix="start one:  livetape up\nor name one: --url http://127.0.0.1:8420",
        )
    return server


@dataclass(frozen=True, slots=True)
class Running:
    """What `server.json` says."""

    url: str
    pid: int


def read_server_file(file: Path) -> Running | None:
    """What the file says; None when it is absent or not one of ours."""
    try:
        data = json.loads(file.read_bytes())
        return Running(str(data["url"]), int(data["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def server_file(file: Path, url: str, pid: int) -> Iterator[None]:
    """Say where the server is, while it is there. Whoever reads sees a whole file or none."""
    draft = file.with_name(f".{file.name}.{pid}")
    handle = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        json.dump({"url": url, "pid": pid}, out)
    draft.replace(file)
    try:
        yield
    finally:
        found = read_server_file(file)
        if found is not None and found.pid == pid:
            file.unlink(missing_ok=True)


def is_serving(running: Running) -> bool:
    """Whether the process is there and something listens where it said. (Numbers of processes are used again.)"""
    if not is_alive(running.pid):
        return False
    parts = urlsplit(running.url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


def is_alive(pid: int) -> bool:
    """Whether a process with this number exists."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _checked(url: str, said_by: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise CommandError(
            "usage", f"not the address of a server: {url}", set_by=said_by, fix="write http://127.0.0.1:8420"
        )
    return url.rstrip("/")
