"""Names of the Redis keys of a tape, and offsets as entry ids. Pure.

The stream has the tape's own name, as the seed's publisher names it. What stands beside it wraps the whole name in
braces, so that all keys of a tape share a cluster slot.

Entries that the log numbers have the id `<offset>-0`. Others write with the server's own ids (`<milliseconds>-<n>`);
there an offset is `milliseconds << 20 | n`. Both kinds may stand on one tape: numbers come before times, as entries
and as offsets. An id that is neither (typed by hand, say `5-3`) is before the time of this library; entries with
such ids are passed over.
"""

from __future__ import annotations

from typing import Final

from livetape.errors import LogError
from livetape.events.channel import job_tape

FIRST_TIME: Final = 1 << 40
"""Milliseconds since 1970: ids from here on are times (November 2004), smaller ones are numbers of the log."""

_SEQUENCE_BITS: Final = 20
_FIRST_TIME_OFFSET: Final = FIRST_TIME << _SEQUENCE_BITS
_SCORE_SEQUENCE_BITS: Final = 11
_JOB_PREFIX: Final = job_tape("x")[:-1]
_META_MARK: Final = ("{", "}:meta")


def keys_of(tape: str) -> tuple[str, str, str, str]:
    """The keys of a tape: stream, meta, keys, times.

    `meta` is a hash of the tape's metadata; `keys` a sorted set of idempotency keys by offset; `times` a sorted set
    of some offsets by the time at which they were the newest.

    Raises:
        LogError: a name that would not keep its keys in one cluster slot.
    """
    if "{" in tape or "}" in tape or not tape:
        raise LogError("the name of a tape has no braces and is not empty", tape=tape[:200])
    return tape, f"{{{tape}}}:meta", f"{{{tape}}}:keys", f"{{{tape}}}:times"


def writer_key(tape: str, writer: str) -> str:
    """Where the outcome of a writer's last batch stands."""
    return f"{{{tape}}}:w:{writer}"


def is_job_tape(tape: str) -> bool:
    """Whether its entries have the seed's fields."""
    return tape.startswith(_JOB_PREFIX)


def meta_pattern(prefix: str) -> str:
    """Matches the metadata of the tapes that begin so."""
    return f"{{{escaped(prefix)}*}}:meta"


def tape_of_meta(key: str) -> str:
    """The tape whose metadata this is."""
    begin, end = _META_MARK
    return key[len(begin) : -len(end)]


def escaped(text: str) -> str:
    """Matches only itself in a Redis glob pattern."""
    return "".join("\\" + character if character in "*?[]^\\" else character for character in text)


def offset_of(entry_id: str | bytes) -> int:
    """The offset of an entry."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    high, _, low = text.partition("-")
    first = int(high)
    return first if first < FIRST_TIME else first << _SEQUENCE_BITS | int(low)


def id_of(offset: int) -> str:
    """The id of the entry with this offset."""
    if offset < FIRST_TIME:
        return f"{offset}-0"
    return f"{offset >> _SEQUENCE_BITS}-{offset & ((1 << _SEQUENCE_BITS) - 1)}"


def id_after(offset: int) -> str:
    """The smallest id of an entry after this offset."""
    if offset < 0:
        return "0-1"
    if offset < FIRST_TIME:
        return f"{offset + 1}-0"
    if offset < _FIRST_TIME_OFFSET:  # the offset of no entry
        return f"{FIRST_TIME}-0"
    return id_of(offset + 1)


def is_number(entry_id: bytes) -> bool:
    """Whether the log numbered this entry."""
    high, _, low = entry_id.partition(b"-")
    return low == b"0" and int(high) < FIRST_TIME


def is_time(offset: int) -> bool:
    """Whether the server gave the id of the entry with this offset."""
    return offset >= _FIRST_TIME_OFFSET


def score_of(offset: int) -> int:
    """The offset as a score that a sorted set keeps exactly (until 2109, and up to 2,048 entries a millisecond).

    The script that appends makes the same.
    """
    if offset < FIRST_TIME:
        return offset
    high, low = offset >> _SEQUENCE_BITS, offset & ((1 << _SEQUENCE_BITS) - 1)
    return (high << _SCORE_SEQUENCE_BITS) + min(low, (1 << _SCORE_SEQUENCE_BITS) - 1)
