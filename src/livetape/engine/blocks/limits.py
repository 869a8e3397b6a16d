"""What blocks take and give at most."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from livetape.errors import BlockExecutionError

MAX_ITEMS = 10_000
MAX_TEXT = 1024 * 1024

Items: TypeAlias = Annotated[list[Any], Field(max_length=MAX_ITEMS)]
Entries: TypeAlias = Annotated[dict[str, Any], Field(max_length=MAX_ITEMS)]
# Keys as they come: text on the wire, other kinds when a block in the same process made the dictionary.
AnyEntries: TypeAlias = Annotated[dict[Any, Any], Field(max_length=MAX_ITEMS)]


def check_count(count: int, what: str) -> None:
    if count > MAX_ITEMS:
        raise BlockExecutionError(f"{what}: {count} items, at most {MAX_ITEMS} are allowed")


def check_size(characters: int, what: str) -> None:
    if characters > MAX_TEXT:
        raise BlockExecutionError(f"{what}: {characters} characters, at most {MAX_TEXT} are allowed")


def unescaped(delimiter: str) -> str:
    r"""A delimiter as people type it in a form: `\n`, `\r` and `\t` in two characters mean the one."""
    return delimiter.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")
