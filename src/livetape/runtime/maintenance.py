"""What an operator does to the database of a data folder or to the PostgreSQL of the settings: look, upgrade, copy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from livetape.adapters.sql.migrate import HEAD
from livetape.errors import ConfigError, StoreError, StoreUnavailableError
from livetape.runtime.folder import lock, make_folders, open_database
from livetape.settings import Settings

BUSY_S: Final = 5.0
PAGES_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class DatabaseReport:
    """`place` has no password. `revision` is None for an empty database, or one that is not there yet.

    `state`: "missing" (made at the first start), "empty", "behind" (`upgrade` is due), "ready", or "newer" (made by a
    newer version, which this one refuses). `size` is in bytes.
    """

    kind: str
    place: str
    server: str
    state: str
    revision: str | None
    newest: str
    size: int


async def database_report(settings: Settings) -> DatabaseReport:
    """Look, and change nothing.

    Raises:
        StoreUnavailableError: the server cannot be reached.
        StoreError: it is not a database, or is damaged.
    """
    url = settings.postgres_url
    if url is None:
        return _file_report(settings.database_path)
    from livetape.adapters.sql.postgres.upgrade import state_of

    found = await state_of(url)
    state = _state(found.revision)
    return DatabaseReport(
        "postgresql", without_password(url), f"PostgreSQL {found.server}", state, found.revision, HEAD, found.size
    )


async def upgrade_database(settings: Settings) -> bool:
    """Bring it to this version; returns whether there was anything to do.

    A SQLite file must not be in use. On PostgreSQL one process at a time does it, in one transaction; `pre` migrations
    keep processes of the version before working.

    Raises:
        ConfigError: another process uses the data folder.
        StoreError: as `open_engine`.
    """
    if settings.postgres_url is not None:
        from livetape.adapters.sql.postgres.upgrade import upgrade

        return await upgrade(settings.postgres_url)
    before = _file_report(settings.database_path).revision
    async with AsyncExitStack() as stack:
        make_folders(settings)
        stack.enter_context(lock(settings))
        await open_database(stack, settings)
    return before != HEAD


def backup_database(settings: Settings, target: Path) -> int:
    """Copy the database to a new file, as of one moment; returns its bytes. Whatever uses it goes on meanwhile. Blocks.

    Of a SQLite file the copy is again one; of PostgreSQL it is an archive for `pg_restore`.

    Raises:
        ConfigError: the file is there already, cannot be written, or `pg_dump` is not installed.
        StoreError: the database cannot be read.
    """
    if target.exists():
        raise ConfigError(f"{target} is there already", fix="name a new file")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"the folder of {target} is not there", fix=f"mkdir -p {target.absolute().parent}")
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        # Nobody else may read it: it has everything that users ever sent.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if settings.postgres_url is None:
            _copy_file(settings.database_path, part)
        else:
            _dump(settings.postgres_url, part)
        part.rename(target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}", because=str(error)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return target.stat().st_size


def without_password(url: str) -> str:
    """For people, logs and command lines."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}"))


def _state(revision: str | None) -> str:
    if revision is None:
        return "empty"
    if revision == HEAD:
        return "ready"
    return "behind" if revision < HEAD else "newer"


def _file_report(path: Path) -> DatabaseReport:
    server = f"SQLite {sqlite3.sqlite_version}"
    if not path.exists():
        return DatabaseReport("sqlite", str(path), server, "missing", None, HEAD, 0)
    try:
        with closing(_reading(path)) as db:
            known = db.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            row = db.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
    except sqlite3.Error as error:
        raise StoreError(f"the database {path} cannot be read: {error}", fix="restore it from a copy") from error
    revision = None if row is None else str(row[0])
    return DatabaseReport("sqlite", str(path), server, _state(revision), revision, HEAD, path.stat().st_size)


def _reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)


def _copy_file(path: Path, target: Path) -> None:
    if not path.exists():
        raise StoreError(f"there is no database {path}")
    try:
        with closing(_reading(path)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy, pages=PAGES_AT_ONCE)
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
    except sqlite3.Error as error:
        raise StoreError(f"the database {path} cannot be copied: {error}") from error
    if found != "ok":
        raise StoreError(f"the database {path} is damaged: {found}")


def _dump(url: str, target: Path) -> None:
    program = shutil.which("pg_dump")
    if program is None:
        raise ConfigError(
            "pg_dump is not installed",
            because="it copies a PostgreSQL database",
            fix="apt-get install postgresql-client",
        )
    environment = dict(os.environ)
    password = urlsplit(url).password
    if password is not None:
        environment["PGPASSWORD"] = unquote(password)  # on the command line everybody on this machine could read it
    words = [program, "--format=custom", "--no-password", f"--file={target}", f"--dbname={without_password(url)}"]
    done = subprocess.run(words, env=environment, capture_output=True, check=False)  # noqa: S603 - our own words
    if done.returncode:
        raise StoreUnavailableError(f"pg_dump failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
