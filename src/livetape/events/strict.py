"""JSON from outside, read strictly: what is taken can be given again, by every parser. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from pydantic_core import from_json

from livetape.errors import CodecError
from livetape.events.codec import encode_payload

MAX_DEPTH: Final = 200
"""Levels of nesting: the limit of the parser, and below that of the serialiser, so that what is taken can be given."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# only a number with so many digits can be beyond the range of a float
_LARGE_NUMBER = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{300}")


def parse_json(raw: bytes) -> Any:
    """The value of this JSON text.

    Not taken: NaN and infinities, numbers beyond the range of a float, more than 200 levels. A lone surrogate becomes
    literal backslash text, as everywhere in livetape: it never costs the event.

    Raises:
        CodecError: what is wrong, and where.
    """
    try:
        try:
            value = from_json(raw, allow_inf_nan=False)
        except ValueError:
            if not _SURROGATE.search(raw):
                raise
            text, _ = encode_payload({"value": json.loads(raw, parse_constant=_refuse)})
            value = from_json(text, allow_inf_nan=False)["value"]
        if _LARGE_NUMBER.search(raw) and _has_infinity(value):
            raise ValueError("number out of range")
    except (ValueError, RecursionError, CodecError) as error:
        reason = str(error)
        if isinstance(error, RecursionError) or "recursion limit" in reason:
            reason = f"nested more than {MAX_DEPTH} levels deep"
        raise CodecError(reason) from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _has_infinity(value: Any) -> bool:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
        elif isinstance(item, float) and not math.isfinite(item):
            return True
    return False
