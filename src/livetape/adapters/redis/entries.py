"""The fields of a stream's entry: from an event, and back. Pure.

On the tape of a job an entry has exactly the seed's fields, `data` `timestamp` `event_type`, whenever the event is a
JobEvent of that job; its payload is put together again when it is read, byte for byte. Any other event stands whole in
`data`, beside `at` (microseconds since 1970) `event_type` and, on the last one, `final`. Entries of other writers are
read too: `at` tells ours apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from livetape.adapters.redis.commands import Word
from livetape.adapters.redis.keys import FIRST_TIME, is_job_tape, is_number, offset_of
from livetape.events.channel import split_tape
from livetape.events.event import JOB_FINAL_TYPES
from livetape.events.log import Entry, NewEvent

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_STRING: Final = rb'("[^"\\]*"|"(?:[^"\\]|\\.)*")'
_JOB_HEAD: Final = re.compile(
    rb'\{"event_type":' + _STRING + rb',"job_id":' + _STRING + rb',"timestamp":' + _STRING + rb',"data":'
)
# Stands between quotes in JSON as it is.
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f]*')
_JOB_FINAL: Final = frozenset(name.encode() for name in JOB_FINAL_TYPES)

Form = tuple[str, Word, Word] | tuple[str, Word, Word, Word, Word]
"""What the scripts take: letters, event_type, data; in the seed's form also timestamp and what stands before the data.

The letters are `s` for the seed's form or `p` (data is the payload), and `f` when it is final.
"""


def form_of(tape: str, event: NewEvent) -> Form:
    """How the event is written on this tape."""
    if is_job_tape(tape):
        seed = _seed_form(tape, event)
        if seed is not None:
            return seed
    return ("pf" if event.final else "p", event.event_type, event.payload)


def _seed_form(tape: str, event: NewEvent) -> Form | None:
    payload = event.payload
    head = _JOB_HEAD.match(payload)
    if head is None or not payload.endswith(b"}") or event.final != (event.event_type in JOB_FINAL_TYPES):
        return None
    event_type, job_id, timestamp = head.groups()
    raw_type, raw_timestamp = _unquoted(event_type), _unquoted(timestamp)
    if job_id != _job_id(tape) or raw_type != event.event_type.encode() or raw_timestamp is None:
        return None
    return ("sf" if event.final else "s", raw_type, payload[head.end() : -1], raw_timestamp, head[0])


def entries_of(tape: str, rows: Sequence[Any], born_us: int = 0) -> list[Entry]:
    """The entries of an XRANGE reply. `born_us` is the time of entries that have none."""
    page = _Page(tape, born_us)
    made: list[Entry] = []
    add, new, known = made.append, tuple.__new__, page.known
    for entry_id, fields in rows:
        try:
            number = int(entry_id[:-2]) if entry_id[-2:] == b"-0" else -1
            mark, name = fields[2], fields[5]
            head = known.get(name) or page.learn(name)
        except (ValueError, IndexError):
            number, mark = -1, b""
        if mark == b"timestamp" and 0 <= number < FIRST_TIME:
            # We wrote it: nothing of it has to be checked.
            stamp = fields[3]
            at_us = page.time(stamp)
            if at_us is not None:
                payload = b'%b"%b","data":%b}' % (head.opening, stamp, fields[1])
                add(new(Entry, (number, head.event_type, payload, head.final, at_us)))
                continue
        elif mark == b"at" and number >= 0:
            offset = number if number < FIRST_TIME else number << 20
            add(new(Entry, (offset, head.event_type, fields[1], len(fields) > 6, int(fields[3]))))
            continue
        if number >= 0 or not _by_hand(entry_id):
            add(entry_of(tape, entry_id, fields, born_us))
    return made


class _Head(NamedTuple):
    """What the events of one type have in common: text, the payload up to the timestamp, whether a job ends with it."""

    event_type: str
    opening: bytes
    final: bool


class _Page:
    """What the entries of one reply share, found out once."""

    __slots__ = ("_born_us", "_seconds", "_tape", "known")

    def __init__(self, tape: str, born_us: int) -> None:
        self._tape = tape
        self._born_us = born_us
        self._seconds: dict[bytes, int] = {}
        self.known: dict[bytes, _Head] = {}

    def learn(self, name: bytes) -> _Head:
        """Of an event type that comes for the first time."""
        head = self.known[name] = _Head(_text(name), _seed_head(self._tape, name), name in _JOB_FINAL)
        return head

    def time(self, stamp: bytes) -> int | None:
        """Microseconds since 1970; None when the timestamp cannot stand between quotes as it is."""
        micros = stamp[20:26]
        second = self._seconds.get(stamp[:20] + stamp[26:])
        if second is not None and micros.isdigit():
            return second + int(micros)
        if not _PLAIN.fullmatch(stamp):
            return None
        at_us = _time(stamp, self._born_us)
        if len(stamp) == 32 and stamp[19:20] == b"." and stamp[26:] == b"+00:00" and micros.isdigit():
            self._seconds[stamp[:20] + stamp[26:]] = at_us - int(micros)
        return at_us


def entry_of(tape: str, entry_id: bytes, fields: Sequence[bytes], born_us: int = 0) -> Entry:
    """One entry, whoever wrote it."""
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    offset = offset_of(entry_id)
    name = found.get(b"event_type", b"unknown")
    data = found.get(b"data")
    at = found.get(b"at")
    if at is not None and data is not None and at.isdigit():
        return Entry(offset, _text(name), data, b"final" in found, int(at))
    stamp = found.get(b"timestamp", b"")
    if not is_number(entry_id):
        data = _valid(found) if data is None or not _is_json(data) else data
        born_us = int(entry_id.partition(b"-")[0]) * 1000
    elif data is None:
        data = _valid(found)
    job = is_job_tape(tape)
    payload = b'{"event_type":%b%b"timestamp":%b,"data":%b}' % (
        _quoted(name),
        b',"job_id":%b,' % _job_id(tape) if job else b",",
        _quoted(stamp),
        data,
    )
    return Entry(offset, _text(name), payload, job and name in _JOB_FINAL, _time(stamp, born_us))


def _seed_head(tape: str, name: bytes) -> bytes:
    """The payload of a job's event up to its timestamp."""
    return b'{"event_type":%b,"job_id":%b,"timestamp":' % (_quoted(name), _job_id(tape))


def _by_hand(entry_id: bytes) -> bool:
    return int(entry_id.partition(b"-")[0]) < FIRST_TIME


@lru_cache(maxsize=8192)
def _job_id(tape: str) -> bytes:
    return to_json(split_tape(tape)[1])


def _unquoted(token: bytes) -> bytes | None:
    """The text of a JSON string, if `_quoted` makes the same of it again."""
    raw = token[1:-1]
    if _PLAIN.fullmatch(raw):
        return raw
    try:
        raw = str(from_json(token)).encode()
    except ValueError:
        return None
    return raw if _quoted(raw) == token else None


def _quoted(raw: bytes) -> bytes:
    if _PLAIN.fullmatch(raw):
        try:
            raw.decode()
        except UnicodeDecodeError:
            pass
        else:
            return b'"%b"' % raw
    return to_json(_text(raw))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _is_json(data: bytes) -> bool:
    try:
        from_json(data, allow_inf_nan=False)
    except ValueError:
        return False
    return True


def _valid(found: dict[bytes, bytes]) -> bytes:
    """JSON for what somebody wrote who does not write JSON: the text, or all fields when there is no `data`."""
    if b"data" in found:
        return to_json(_text(found[b"data"]))
    return to_json({_text(name): _text(value) for name, value in found.items()})


def _time(stamp: bytes, otherwise: int) -> int:
    if not stamp:
        return otherwise
    try:
        moment = datetime.fromisoformat(stamp.decode())
    except ValueError:
        return otherwise
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _UNIX_EPOCH) // _MICROSECOND
