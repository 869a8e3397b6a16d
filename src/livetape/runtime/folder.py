"""The data folder of one process: made, held alone, and its database opened."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

from livetape.adapters.sql.database import SqliteDatabase
from livetape.adapters.sql.migrate import migrate
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.clock import Clock
from livetape.errors import ConfigError, StoreError
from livetape.observability import Metrics
from livetape.settings import Settings

LOCK_FILE: Final = "lock"
CHECKED_BYTES: Final = 32 * 1024 * 1024
"""A larger database is not checked at every start; `livetape doctor` checks any."""


def make_folders(settings: Settings) -> None:
    """Raises ConfigError when they cannot be written."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.files_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.data_dir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to the data folder {settings.data_dir}",
            because=str(error),
            set_by="data_dir",
            fix="choose another with --data-dir, or make it writable for this user",
        ) from error


@contextmanager
def lock(settings: Settings) -> Iterator[None]:
    """Hold the folder alone. The operating system lets go when the process dies, however it dies."""
    path = settings.data_dir / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another livetape uses the data folder {settings.data_dir}",
                because=_who_holds(settings, handle),
                set_by="data_dir",
                fix="stop it, or choose another folder with --data-dir",
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _who_holds(settings: Settings, handle: int) -> str:
    pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
    with contextlib.suppress(OSError, ValueError):
        return f"process {pid} serves it at {json.loads(settings.server_file.read_text())['url']}"
    return f"process {pid} holds it"


async def open_database(
    stack: AsyncExitStack, settings: Settings, clock: Clock | None = None, *, metrics: Metrics | None = None
) -> tuple[SqliteDatabase, Writer, Readers]:
    """The database of these settings, brought to this version's form.

    Raises:
        StoreError: it is damaged, or was made by a newer version.
    """
    path = settings.database_path
    writer, readers = Writer(path), Readers(path)
    try:
        writer.open()
        stack.callback(readers.close)
        stack.callback(writer.close)
        await writer.run(_check_file)
        database = SqliteDatabase(writer, readers, clock=clock, metrics=metrics)
        await database.write(migrate)
    except Exception as error:
        if isinstance(error, StoreError) and error.__cause__ is None:
            raise
        raise StoreError(
            f"the database {path} cannot be opened: {error.__cause__ or error}",
            path=str(path),
            fix=f"restore it from a copy; or move {path} away and start with an empty one",
        ) from error
    return database, writer, readers


def _check_file(connection: sqlite3.Connection) -> None:
    """Look for damage while that is quick, so that it is found now and not in the middle of an execution."""
    (pages,), (size,) = (
        connection.execute("PRAGMA page_count").fetchone(),
        connection.execute("PRAGMA page_size").fetchone(),
    )
    if pages * size <= CHECKED_BYTES:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
