"""The text of values inside JSON text, exactly as it was sent: to compare bytes, not what they mean."""

from __future__ import annotations

import json
import re

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _value_end(text: str, at: int) -> int:
    return _DECODER.raw_decode(text, at)[1]


def members(text: str) -> dict[str, str]:
    """The raw text of each value of a JSON object, in its order.

    Raises:
        ValueError: not one JSON object, or a key stands in it twice.
    """
    found: dict[str, str] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise ValueError(f"not an object: {text[:80]!r}")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":" or key in found:
            raise ValueError(f"bad or doubled key {key!r}")
        at = _skip(text, at + 1)
        end = _value_end(text, at)
        found[key] = text[at:end]
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
    if text[_skip(text, at + 1) :]:
        raise ValueError("something follows the object")
    return found


def elements(text: str) -> list[str]:
    """The raw text of each element of a JSON array."""
    found: list[str] = []
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError(f"not an array: {text[:80]!r}")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        end = _value_end(text, at)
        found.append(text[at:end])
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
    return found
