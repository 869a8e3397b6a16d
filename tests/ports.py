"""Ports for servers of tests: nobody else gets one while the test process lives, not even while its server is down."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FIRST: Final = 10_000
LAST: Final = 32_767
"""Above are the ports that systems give to connections: one of those may be taken at any time."""

BLOCK: Final = 50


class Ports:
    """Hands out ports of 127.0.0.1, each once as long as there are enough.

    Processes share the range by blocks: who holds a block holds a lock on its file, which ends with the process.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"livetape-test-ports-{os.getuid()}"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._locks: list[int] = []
        self._ports = self._all()

    def take(self) -> int:
        """One that nobody listens on."""
        for port in self._ports:
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
                try:
                    listener.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
        raise AssertionError("every port is taken")

    def close(self) -> None:
        """Let others have the blocks."""
        locks, self._locks = self._locks, []
        for lock in locks:
            os.close(lock)

    def _all(self) -> Iterator[int]:
        for first in range(FIRST, LAST - BLOCK + 2, BLOCK):
            lock = os.open(self._folder / str(first), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._locks.append(lock)
            yield from range(first, first + BLOCK)
