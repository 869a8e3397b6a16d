"""Cuts the values of an execution event so that its copy for the bus stays within the size limit. Pure.

The log keeps the whole event. What was cut says so where it was cut: `… (omitted 12 chars)…` inside a text,
`… (omitted 3 items)…` as an item of a list. Keys of objects stay, all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from livetape.events.codec import encode_payload

FIELDS: Final = ("inputs", "outputs", "input_data", "output_data")
"""The fields that may be shortened; every other field says what happened and stays."""

VALUE_FIELDS: Final = (*FIELDS, "data", "value")
"""The same of any event on a tape: `data` is what a job's event tells, `value` what a node gave."""

_ITEMS: Final = (4096, 1024, 256, 64, 16, 4, 1)
_FEW_CHARS: Final = 64
_LEAST_CHARS: Final = 8

M = TypeVar("M", bound=BaseModel)


def shorten_event(event: M, size: int, limit: int) -> M | None:
    """The event with its values cut, each field to half of `limit` bytes, and less if that is not enough.

    `size` is that of the whole event's JSON in bytes. None when there is nothing that can be cut, or when it stays
    too large even then.
    """
    sizes: dict[str, int] = {}
    for name in FIELDS:
        value = getattr(event, name, None)
        if isinstance(value, Mapping) and value:
            sizes[name] = _size(value)
    room = limit - (size - sum(sizes.values()))
    if not sizes or room <= 0:
        return None
    shares = _shares({name: min(own, limit // 2) for name, own in sizes.items()}, room)
    cut: dict[str, Any] = {}
    for name, share in shares.items():
        if sizes[name] > share:
            value = shorten_value(getattr(event, name), share)
            if _size(value) > share:
                return None
            cut[name] = value
    return event.model_copy(update=cut) if cut else None


def shorten_payload(payload: bytes, limit: int) -> bytes | None:
    """An event's JSON of at most `limit` bytes: its values cut, and every key as it was.

    Takes time in proportion to the payload, some tenths of a second for 30 MB: nothing for an event loop. None when
    this is no event, when there is nothing that can be cut (an encrypted event, say), or when it stays too large.
    """
    try:
        event = from_json(payload)
    except ValueError:
        return None
    if not isinstance(event, dict) or "encrypted" in event:
        return None
    sizes = {name: _size(event[name]) for name in VALUE_FIELDS if isinstance(event.get(name), dict | list | str)}
    rest = {**event, **dict.fromkeys(sizes)}
    room = limit - (_size(rest) - sum(len(b"null") for _ in sizes))
    if not sizes or room <= 0:
        return None
    for name, share in _shares({name: min(own, max(limit // 2, 1)) for name, own in sizes.items()}, room).items():
        if sizes[name] > share:
            event[name] = shorten_value(event[name], share)
    cut = encode_payload(event)[0]
    return cut if len(cut) <= limit else None


def shorten_value(value: Any, budget: int) -> Any:
    """The JSON value cut so that its JSON takes at most `budget` bytes, if cutting texts and lists can do that."""
    if _size(value) <= budget:
        return value
    plain = from_json(encode_payload({"": value})[0])[""]
    least = _cut(plain, _ITEMS[-1], _LEAST_CHARS)
    if _size(least) > budget:
        return least
    for items in _ITEMS:
        chars = _LEAST_CHARS if items == _ITEMS[-1] else _FEW_CHARS
        best = _cut(plain, items, chars)
        if _size(best) > budget:
            continue
        low, high = chars, budget  # the longest texts that fit, to within 2 %
        while high - low > max(1, low // 50):
            middle = (low + high) // 2
            longer = _cut(plain, items, middle)
            if _size(longer) <= budget:
                low, best = middle, longer
            else:
                high = middle
        return best
    return least


def _shares(wanted: dict[str, int], room: int) -> dict[str, int]:
    """Divides the room: small ones get what they want, the others the same part of the rest."""
    shares: dict[str, int] = {}
    for number, (name, size) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        shares[name] = min(size, room // (len(wanted) - number))
        room -= shares[name]
    return shares


def _cut(value: Any, items: int, chars: int) -> Any:
    if isinstance(value, str):
        if len(value) <= chars:
            return value
        head = (chars + 1) // 2
        tail = chars - head
        return f"{value[:head]}… (omitted {len(value) - chars} chars)…{value[len(value) - tail :]}"
    if isinstance(value, list):
        if len(value) <= items:
            return [_cut(item, items, chars) for item in value]
        head = (items + 1) // 2
        tail = items - head
        return [
            *(_cut(item, items, chars) for item in value[:head]),
            f"… (omitted {len(value) - items} items)…",
            *(_cut(item, items, chars) for item in value[len(value) - tail :]),
        ]
    if isinstance(value, dict):
        return {key: _cut(item, items, chars) for key, item in value.items()}
    return value


def _size(value: Any) -> int:
    return len(encode_payload({"": value})[0]) - len(b'{"":}')
