"""Text that every database can keep. Pure.

PostgreSQL's text has no zero character. Names, descriptions and messages stand in columns of text: what clients send
is refused there, and what blocks give has U+FFFD in its place, on every database alike. Values are kept as bytes of
JSON, zero characters included.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator


def without_zero(text: str) -> str:
    """The same text. Raises ValueError where it has a zero character."""
    if "\0" in text:
        raise ValueError("a zero character (\\u0000) is not allowed here")
    return text


def kept_text(text: str) -> str:
    """The text as a column keeps it."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


Text: TypeAlias = Annotated[str, AfterValidator(without_zero)]
"""A string without zero characters."""
