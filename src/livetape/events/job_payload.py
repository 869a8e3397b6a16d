"""The JSON of a job's event, built around its data as bytes. Pure."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final

from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.errors import CodecError
from livetape.events.codec import encode_payload

_BOXED: Final = b'{"data":'


def job_payload(job_id: str, event_type: str, timestamp: str, data: Any) -> tuple[bytes, bool]:
    """`{"event_type":…,"job_id":…,"timestamp":…,"data":…}`, and whether characters were replaced (lone surrogates).

    Dates, UUIDs, enums, sets and models are written as Pydantic writes them in JSON.

    Raises:
        CodecError: a value that JSON cannot carry: an unknown class, bytes that are no text, NaN, an infinity.
    """
    body, lossy = _body(data)
    head, more = _text(event_type)
    stamp, still_more = _text(timestamp)
    payload = b'{"event_type":%b,"job_id":%b,"timestamp":%b,"data":%b}' % (head, _job_id(job_id), stamp, body)
    return payload, lossy or more or still_more


def _body(data: Any) -> tuple[bytes, bool]:
    lossy = False
    try:
        body = to_json(data, inf_nan_mode="constants")
    except (PydanticSerializationError, UnicodeError, ValueError):
        boxed, lossy = encode_payload({"data": data})
        body = boxed[len(_BOXED) : -1]
        _refuse_no_numbers(data)
    if b"NaN" in body or b"Infinity" in body:
        try:
            from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise CodecError(f"this event cannot be written as JSON: {error}") from error
    return body, lossy


def _refuse_no_numbers(data: Any) -> None:
    """For what was encoded in a way that would turn NaN into null."""
    try:
        json.dumps(data, allow_nan=False, default=str, skipkeys=True)
    except ValueError as error:
        raise CodecError(f"this event cannot be written as JSON: {error}") from error


def _text(text: str) -> tuple[bytes, bool]:
    try:
        return to_json(text), False
    except (PydanticSerializationError, UnicodeError):
        return to_json(text.encode("utf-8", "backslashreplace").decode()), True


@lru_cache(maxsize=1024)
def _job_id(job_id: str) -> bytes:
    return _text(job_id)[0]
