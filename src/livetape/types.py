"""Shared aliases for ids and JSON values. Ids are opaque strings on the wire; version-7 UUIDs inside."""

from __future__ import annotations

from typing import NewType, TypeAlias

UserId = NewType("UserId", str)
GraphId = NewType("GraphId", str)
ExecutionId = NewType("ExecutionId", str)
NodeExecutionId = NewType("NodeExecutionId", str)

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
