"""Reading connections to a SQLite file: a few threads, each with its own connection, never the writer's."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from livetape.adapters.sqlite.writer import connect

T = TypeVar("T")


class Readers:
    """Runs read-only functions of a connection in threads, so that a long read holds up no event loop."""

    def __init__(self, path: Path, *, threads: int = 3) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="livetape-sqlite-reader")

    async def run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `read`, which sees one consistent state of the file if it makes a single statement."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, read)

    def _run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self._path, read_only=True)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return read(connection)

    def close(self) -> None:
        """Wait for reads that run, then close. Idempotent."""
        self._pool.shutdown(wait=True)
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
