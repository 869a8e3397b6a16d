"""`sqlite:///folder/file.db`: tapes, recorder and consumer groups in one file, and a bus of this process."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from livetape.adapters.sqlite.arrivals import Arrivals
from livetape.adapters.sqlite.groups import SqliteGroups, create_group_schema
from livetape.adapters.sqlite.log import SqliteEventLog, create_schema
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.recorder import SqliteRecorder
from livetape.adapters.sqlite.writer import Durability, Writer
from livetape.clock import Clock
from livetape.errors import ConfigError
from livetape.events.bus import Bus
from livetape.events.open import Backend
from livetape.observability import Metrics

_DURABILITY: Final[dict[str, Durability]] = {"normal": "NORMAL", "full": "FULL"}


def from_url(url: str, *, bus: Bus, metrics: Metrics, clock: Clock | None = None) -> Backend:
    """Opener of `livetape.events.open`. Nothing is opened before the first use; a file that is not there is made.

    `sqlite:///a/b.db` is `a/b.db` in the present folder, `sqlite:////a/b.db` is `/a/b.db`; the folder must exist.
    `?durability=full` waits for the disk at each commit.

    Several processes may use one file: the tapes, their numbers and the groups are common to all. `bus` reaches this
    process alone: who listens in another one reads the tape.

    Raises:
        ConfigError: not such a URL.
    """
    path, durability = _parse(url)
    writer = Writer(path, durability=durability, prepare=_prepare)
    readers = Readers(path)
    arrivals = Arrivals()
    log = SqliteEventLog(writer, readers, clock=clock, arrivals=arrivals)
    groups = SqliteGroups(writer, readers, clock=clock, arrivals=arrivals)
    recorder = SqliteRecorder(log.appender, bus, metrics=metrics)

    async def close() -> None:
        await recorder.close()
        readers.close()
        writer.close()

    return Backend(bus, log, recorder, groups, on_close=[close])


def _prepare(connection: sqlite3.Connection) -> None:
    create_schema(connection)
    create_group_schema(connection)


def _parse(url: str) -> tuple[Path, Durability]:
    parts = urlsplit(url)
    name = unquote(parts.path).removeprefix("/")
    if parts.netloc or not name or name == ":memory:" or name.endswith("/") or parts.fragment:
        raise ConfigError(
            "this is not the URL of a SQLite file", url=url, fix="sqlite:///relative.db or sqlite:////absolute/file.db"
        )
    durability: Durability = "NORMAL"
    for option, value in parse_qsl(parts.query, keep_blank_values=True):
        if option != "durability" or value.lower() not in _DURABILITY:
            raise ConfigError(
                f"a SQLite URL has no option {option}={value}", url=url, fix="?durability=normal or ?durability=full"
            )
        durability = _DURABILITY[value.lower()]
    path = Path(name).absolute()
    if not path.parent.is_dir():
        raise ConfigError(f"the folder of {path} is not there", url=url, fix=f"make it first: mkdir -p '{path.parent}'")
    return path, durability
