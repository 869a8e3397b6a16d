"""Messages of the socket beside its AsyncAPI document: which message of the document is one that was heard or said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from jsonschema import Draft202012Validator

Direction = Literal["in", "out"]


@dataclass
class Recording:
    """Everything that went over some sockets, each message checked as it is recorded."""

    document: dict[str, Any]
    heard: dict[str, set[str]] = field(default_factory=dict)

    @cached_property
    def _validators(self) -> dict[str, Draft202012Validator]:
        components = self.document["components"]
        return {
            name: Draft202012Validator({**message["payload"], "components": {"schemas": components["schemas"]}})
            for name, message in components["messages"].items()
        }

    def matching(self, direction: Direction, body: Any) -> list[str]:
        """The names of the document's messages that this may be."""
        return [
            name
            for name, validator in self._validators.items()
            if name.endswith(".request") == (direction == "in") and validator.is_valid(body)
        ]

    def add(self, direction: Direction, text: str) -> dict[str, Any]:
        """One message that must be described by exactly one of the document's, that of its method."""
        body: dict[str, Any] = json.loads(text)
        (name,) = self.matching(direction, body) or [self._why(direction, body)]
        message = self.document["components"]["messages"][name]
        assert message["name"] == body["method"]
        if direction == "out":
            assert list(body) == [key for key in self._keys(message) if key in body], f"{name}: another order"
        self.heard.setdefault(name, set()).update(body)
        return body

    def missing(self) -> list[str]:
        """What the document describes and nobody has said: messages, and keys of what the server sends."""
        found = set(self._validators.keys() - self.heard.keys())
        for name, heard in self.heard.items():
            if not name.endswith(".request"):
                keys = self._keys(self.document["components"]["messages"][name])
                found.update(f"{name} {key}" for key in keys if key not in heard)
        return sorted(found)

    def _keys(self, message: dict[str, Any]) -> list[str]:
        name = message["payload"]["$ref"].rpartition("/")[2]
        return list(self.document["components"]["schemas"][name]["properties"])

    def _why(self, direction: Direction, body: dict[str, Any]) -> str:
        faults = {
            name: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]
            for name, validator in self._validators.items()
            if self.document["components"]["messages"][name]["name"] == body.get("method")
            and name.endswith(".request") == (direction == "in")
        }
        raise AssertionError(f"not described: {body}\n{faults}")
