"""Who has a TCP port of this machine, and which is free."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LISTEN_STATE = "0A"
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"


def problem_with(host: str, port: int) -> OSError | None:
    """Why this address cannot be listened on; None when it can."""
    if port == 0:
        return None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as exc:
        return exc
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as exc:
            return exc
    return None


def is_in_use(problem: OSError) -> bool:
    """Whether another process has the port."""
    return problem.errno == errno.EADDRINUSE


def free_port(host: str, after: int) -> int:
    """A port near this one on which one can listen now."""
    for port in range(after + 1, min(after + 100, 65_535)):
        if problem_with(host, port) is None:
            return port
    return 0


def holder_of(port: int) -> Holder | None:
    """The process that listens on the port; None when it cannot be known."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not sockets:
        return None
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):
            for handle in (folder / "fd").iterdir():
                with suppress(OSError):
                    if os.readlink(handle) in sockets:
                        return Holder(int(folder.name), _command(folder))
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / name).read_text("ascii").splitlines()[1:]
        except (OSError, UnicodeDecodeError):
            continue
        for text in lines:
            columns = text.split()
            if len(columns) > 9 and columns[3] == LISTEN_STATE and int(columns[1].rpartition(":")[2], 16) == port:
                yield columns[9]


def _command(folder: Path) -> str:
    with suppress(OSError):
        parts = (folder / "cmdline").read_bytes().split(b"\0")
        text = b" ".join(parts).decode("utf-8", "replace").strip()
        return text if len(text) <= 80 else f"{text[:79]}…"
    return ""
