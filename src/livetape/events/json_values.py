"""Values that a serializer writes without a word and no reader takes: found after the writing, where it is cheap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from livetape.errors import CodecError

DEEP_BYTES: Final = 398
"""Shorter than 200 brackets and their counterparts."""
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def check_values(event: object, payload: bytes, read: Callable[[bytes], object]) -> None:
    """Refuses what would be published and read by nobody.

    Raises:
        CodecError: a number that JSON does not have became a null that the model does not take, or more levels than a
            parser takes.
    """
    if b"null" in payload and _finds_no_number([event]):
        try:
            read(payload)  # what the model takes (a field of any kind, one that may be None) is its affair
        except ValidationError:
            raise CodecError("this event cannot be written as JSON: it has no NaN and no infinity") from None
    if len(payload) > DEEP_BYTES and _is_deep(payload):
        raise CodecError("this event cannot be written as JSON: nested more than 200 levels deep")


def _is_deep(payload: bytes) -> bool:
    # Level by level from the inside, on the brackets alone: a small part of the cost of a parser, which has the last
    # word because brackets also stand in texts.
    brackets = payload.translate(None, _NO_BRACKETS)
    for _ in range(198):
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not fewer:
            return False
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    try:
        from_json(b'{"payload":' + payload + b"}")
    except ValueError as error:
        return "recursion limit" in str(error)
    return False


def _finds_no_number(left: list[object]) -> bool:
    """Whether there is a NaN or an infinity."""
    while left:
        item = left.pop()
        if isinstance(item, float):
            if not isfinite(item):
                return True
        elif isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            left.extend(item)
        elif isinstance(item, BaseModel):
            left.extend(item.__dict__.values())
            left.extend((item.__pydantic_extra__ or {}).values())
        elif is_dataclass(item) and not isinstance(item, type):
            left.extend(getattr(item, field.name) for field in fields(item))
    return False
