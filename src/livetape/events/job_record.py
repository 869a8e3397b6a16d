"""The events of a job as they are read: decoded, and matched. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic_core import from_json

from livetape.events.log import Entry, Position
from livetape.events.stream_info import entry_id

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class JobRecord(NamedTuple):
    """An event of a job.

    `data` is what was published (the whole `event_data` of `publish_event`); `timestamp` is what the publisher said,
    "" when nothing; `at_us` is when the log took it, in microseconds since 1970. `final`: the job was over with it.
    """

    offset: int
    epoch: str
    event_type: str
    timestamp: str
    data: Any
    final: bool
    at_us: int

    @property
    def position(self) -> Position:
        """Where it stands: what `after` takes."""
        return Position(self.epoch, self.offset)

    @property
    def id(self) -> str:
        """Its id as a plain Redis client sees it."""
        return entry_id(self.offset)

    @property
    def time(self) -> datetime:
        """`at_us` as a date, in UTC."""
        return _UNIX_EPOCH + timedelta(microseconds=self.at_us)


Where: TypeAlias = Mapping[str, Any] | Callable[[JobRecord], bool]
"""Which events: `{"result.title": "…", "nodes.0": 1}`, paths into the data and the values there; or a function."""


def decode(entries: Iterable[Entry], epoch: str) -> list[JobRecord]:
    """The events of a page. What is no JSON is given as text."""
    new, records = tuple.__new__, []
    for offset, event_type, payload, final, at_us in entries:
        try:
            event = from_json(payload)
            fields = (offset, epoch, event_type, event["timestamp"], event["data"], final, at_us)
        except (ValueError, TypeError, KeyError):
            fields = _unusual(Entry(offset, event_type, payload, final, at_us), epoch)
        records.append(new(JobRecord, fields))
    return records


def _unusual(entry: Entry, epoch: str) -> tuple[Any, ...]:
    """An event of another form."""
    try:
        event = json.loads(entry.payload)
    except (ValueError, RecursionError):
        event = entry.payload.decode("utf-8", "replace")
    timestamp = ""
    if isinstance(event, dict):
        timestamp = str(event.get("timestamp", ""))
        event = event.get("data", event)
    return (entry.offset, epoch, entry.event_type, timestamp, event, entry.final, entry.at_us)


class Matcher:
    """Which events are wanted. Without any condition all are."""

    def __init__(
        self, types: Collection[str] | None = None, where: Where | None = None, text: str | None = None
    ) -> None:
        self._types = None if types is None else frozenset([types] if isinstance(types, str) else types)
        self._function = where if callable(where) else None
        self._paths = [] if where is None or callable(where) else [(p.split("."), v) for p, v in where.items()]
        self._text = None if text is None else text.casefold()
        self.is_open = types is None and where is None and text is None
        """Whether it lets everything through."""

    def may(self, entry: Entry) -> bool:
        """Whether it is worth decoding."""
        return self._types is None or entry.event_type in self._types

    def __call__(self, record: JobRecord) -> bool:
        if self._types is not None and record.event_type not in self._types:
            return False
        if any(_at(record.data, path) != value for path, value in self._paths):
            return False
        if self._text is not None and not _says(record.data, self._text):
            return False
        return self._function is None or bool(self._function(record))


_NOTHING: Final = object()


def _at(value: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(value, dict):
            value = value.get(name, _NOTHING)
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return _NOTHING
    return value


def _says(value: Any, text: str) -> bool:
    """Whether any string in it has this text, whatever the case."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            if text in item.casefold():
                return True
        elif isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
    return False
