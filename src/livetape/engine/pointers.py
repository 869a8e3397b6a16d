"""What stands in a row or an event where a value is kept as a blob. Pure.

A pointer is the JSON object `{"$livetape.blob": {"sha256": …, "size": …}}`, in the place of the whole value of a pin.
A value that has this key anywhere in it is itself kept as a blob, however small: so no pointer is ever made by a user,
and what a pointer stands for is what the user gave.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

RESERVED: Final = "$livetape.blob"

_MARK: Final = b'"$livetape.blob"'
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_POINTER: Final = re.compile(rb'\{"\$livetape\.blob":\{"sha256":"([0-9a-f]{64})","size":([0-9]+)\}\}')
_WORST_ESCAPE: Final = 6
"""Bytes of JSON that one character may take."""


class Pointer(NamedTuple):
    """The SHA-256 of a value's JSON, and how many bytes that has."""

    sha256: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in place of the value."""
        return {RESERVED: {"sha256": self.sha256, "size": self.size}}


def pointer_of(value: Any) -> Pointer | None:
    """The pointer that this is; None for any other value."""
    if type(value) is not dict or len(value) != 1 or RESERVED not in value:
        return None
    inner = value[RESERVED]
    if not isinstance(inner, dict) or inner.keys() != {"sha256", "size"}:
        return None
    sha256, size = inner["sha256"], inner["size"]
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256) or type(size) is not int:
        return None
    return Pointer(sha256, size)


def is_digest(text: str) -> bool:
    """Whether this can be a SHA-256."""
    return _DIGEST.fullmatch(text) is not None


def to_be_moved(value: Any, inline_bytes: int) -> bytes | None:
    """The JSON of a value that is too large to stand where it is, or could be taken for a pointer; else None."""
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, str):
        if len(value) * _WORST_ESCAPE + 2 <= inline_bytes:
            return None
        text = to_json(value)
        return text if len(text) > inline_bytes else None
    text = to_json(value)
    return text if len(text) > inline_bytes or _MARK in text else None


def pointers_in(texts: Iterable[bytes | None]) -> set[str]:
    """The hashes of all pointers in these pieces of JSON, as the engine wrote them."""
    return {found[1].decode() for text in texts if text for found in _POINTER.finditer(text)}


def whole_size(text: bytes) -> int:
    """Bytes of a piece of JSON that the engine wrote, with the values that its pointers lead to in their place."""
    if _MARK not in text:
        return len(text)
    return len(text) + sum(int(found[2]) - len(found[0]) for found in _POINTER.finditer(text))
