"""What a block gives, made what the tape can hold. Pure."""

from __future__ import annotations

import math
from typing import Any, Final

from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.engine.block import PinValue
from livetape.errors import BlockExecutionError, CodecError
from livetape.events.codec import encode_payload

MAX_OUTPUT: Final = 50 * 1024 * 1024
"""Bytes of JSON that one output may have."""

_SMALL: Final = 8

MAX_MESSAGE: Final = 10_000
"""Characters of an error that are kept."""


def checked_output(name: Any, value: Any) -> PinValue:
    """The output as it goes on. Raises as `sized_output`."""
    return sized_output(name, value)[:2]


def sized_output(name: Any, value: Any) -> tuple[str, Any, int]:
    """The output as it goes on, and about how many bytes of JSON its value has.

    Raises:
        BlockExecutionError: it is no output, too large, not JSON, or the block says `error`.
    """
    if not isinstance(name, str) or not name:
        raise BlockExecutionError("an output needs a pin name")
    if "\0" in name:
        raise BlockExecutionError("a pin name has a zero character")
    if name == "error":
        raise BlockExecutionError(str(value))
    return name, *_sized(value)


def as_json(value: Any) -> Any:
    """The value as it will be read back: what goes on to other nodes is what the tape holds.

    Infinity and NaN become None, which JSON has no words for; lone surrogates become backslash text.

    Raises:
        BlockExecutionError: it is not JSON, nested too deep for it, or longer than MAX_OUTPUT.
    """
    return _sized(value)[0]


def _sized(value: Any) -> tuple[Any, int]:
    if value is None or isinstance(value, bool | int):
        return value, _SMALL
    if isinstance(value, float):
        return value if math.isfinite(value) else None, _SMALL
    if isinstance(value, str | bytes) and len(value) > MAX_OUTPUT:
        raise _too_large()
    text = _encoded(value)
    if len(text) > MAX_OUTPUT:
        raise _too_large()
    try:
        return from_json(text), len(text)
    except ValueError as error:  # deeper than a reader of JSON goes
        raise BlockExecutionError(f"an output of type {type(value).__name__} is not JSON") from error


def _encoded(value: Any) -> bytes:
    try:
        return to_json(value, inf_nan_mode="null")
    except (PydanticSerializationError, UnicodeError, ValueError):
        try:
            encoded = encode_payload({"value": value})[0]
        except (CodecError, RecursionError, UnicodeError, ValueError, TypeError) as error:
            raise BlockExecutionError(f"an output of type {type(value).__name__} is not JSON") from error
        return encoded.removeprefix(b'{"value":').removesuffix(b"}")


def _too_large() -> BlockExecutionError:
    return BlockExecutionError(f"an output is larger than {MAX_OUTPUT // (1024 * 1024)} MiB")


def error_text(error: BaseException) -> str:
    """What an exception says, or its name if it says nothing; never fails."""
    try:
        text = str(error)
    except Exception:  # an exception that cannot tell its text
        text = ""
    return (text or type(error).__name__)[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()
