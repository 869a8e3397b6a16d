"""Drives the load client (c/load.c): one process for one measurement."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
BUILD = CACHE / "livetape-bench-gateway"
"""The C tools and the peers, outside the tree: they bring files that are not ours."""
SERVER_CORE, CLIENT_CORE = 0, 1
LONGEST_S = 300


class NoFiguresError(Exception):
    """This measurement gave no figures; the text says why."""


def settle(pid: int, core: int, nice: int = 0) -> None:
    """A processor of its own and precedence, so far as the system lets us."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, {core})
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)


def allow_many_files() -> None:
    """For us and for all that we start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Dialogue:
    """How a client of some server is made. Texts are templates (events.py)."""

    port: int
    path: str
    script: tuple[str, ...] = ()
    """`--say TEXT` and `--wait TEXT`, in turn."""
    header: str = ""
    tokens: tuple[str, ...] = ()
    contains: str = ""
    """Must stand in every event that arrives."""


@dataclass(frozen=True)
class Publishing:
    """Where an event goes, and its bytes there."""

    port: int
    event: bytes
    hello: bytes = b""


class Load:
    """Connected sockets, ready to be measured."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any]) -> None:
        self._process = process
        self.ready = ready

    def measure(self) -> dict[str, Any]:
        """Publish and count, until all that was published has arrived.

        Raises:
            NoFiguresError: the client ended without figures.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return _line(self._process)


@contextlib.contextmanager
def load(
    folder: Path, dialogue: Dialogue, publishing: Publishing | None, *, nice: int = 0, **options: float
) -> Iterator[Load]:
    """Connect; yields when every socket has said its script. `options` are those of load.c."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [str(BUILD / "load"), "--port", str(dialogue.port), "--path", dialogue.path, *dialogue.script]
    if dialogue.header:
        words += ["--header", dialogue.header]
    if dialogue.contains:
        words += ["--contains", dialogue.contains]
    if dialogue.tokens:
        (folder / "tokens").write_text("\n".join(dialogue.tokens) + "\n")
        words += ["--tokens", str(folder / "tokens")]
    if publishing:
        (folder / "event").write_bytes(publishing.event)
        words += ["--publish", str(publishing.port), "--event", str(folder / "event")]
        if publishing.hello:
            (folder / "hello").write_bytes(publishing.hello)
            words += ["--hello", str(folder / "hello")]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    settle(process.pid, CLIENT_CORE, nice)
    watchdog = threading.Timer(LONGEST_S, process.kill)
    watchdog.start()
    try:
        ready = _line(process)
        if ready["ready"] != options.get("sockets", 1):
            raise NoFiguresError(f"only {ready['ready']} sockets became ready")
        yield Load(process, ready)
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        process.communicate()


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line else {"failed": 1}
    if answer.get("failed"):
        process.terminate()
        raise NoFiguresError(process.stderr.read().strip()[-500:] or f"the load client ended: {line}")
    return answer
