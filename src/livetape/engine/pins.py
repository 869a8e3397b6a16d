"""Pin names with selectors into containers. Pure.

A pin is a base name, then any number of selectors: `_$_0` place in a list, `_#_key` key of a dictionary, `_@_name`
attribute (a declared field of an object; on JSON values, a key). On a link's source they take a value apart, on its
sink they build one. A name with an empty part is malformed and counts as a plain name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from livetape.errors import BlockInputError

MAX_INDEX = 10_000
MAX_SELECTORS = 50
# Empty places that padding may add to all lists of one node's input together: indices multiply when lists nest.
MAX_PADDING = 100_000

_SEPARATOR = re.compile(r"_([$#@])_")
_INTEGER = re.compile(r"-?[0-9]{1,20}")


class Selector(NamedTuple):
    """One step into a container: `kind` is `$`, `#` or `@`."""

    kind: str
    key: str


class _Missing:
    pass


_MISSING: Final = _Missing()


def split_pin(pin: str) -> tuple[str, tuple[Selector, ...]]:
    """The base name and the selectors; the whole name and none if it is plain or malformed."""
    if "_$_" not in pin and "_#_" not in pin and "_@_" not in pin:
        return pin, ()
    base, *rest = _SEPARATOR.split(pin)
    selectors = tuple(Selector(kind, key) for kind, key in zip(rest[::2], rest[1::2], strict=True))
    if not base or any(not selector.key for selector in selectors):
        return pin, ()
    return base, selectors


def base_name(pin: str) -> str:
    """The field of the block that a pin belongs to."""
    return split_pin(pin)[0]


def field_of(value: object, name: str) -> Any:
    """A declared field of an object or a key of a dictionary; None if there is none, or if the name starts with `_`.

    Only fields of pydantic models, dataclasses and named tuples count, so that reading one never runs code.
    """
    if name.startswith("_"):
        return None
    if isinstance(value, Mapping):
        return value.get(name)
    if isinstance(value, BaseModel):
        declared = name in type(value).model_fields
    elif dataclasses.is_dataclass(value):
        declared = any(field.name == name for field in dataclasses.fields(value))
    else:
        declared = isinstance(value, tuple) and name in getattr(value, "_fields", ())
    return getattr(value, name, None) if declared else None


def select_output(name: str, value: Any, source_name: str) -> tuple[bool, Any]:
    """Whether the output `name=value` fires a link from the pin `source_name`, and with which value.

    Equal names fire, with None too. A pin with selectors fires when its base is `name` and the path leads to
    something; an empty place or a missing one does not fire.
    """
    if name == source_name:
        return True, value
    base, selectors = split_pin(source_name)
    if base != name or not selectors:
        return False, None
    for selector in selectors:
        value = _step(value, selector)
        if value is None:
            return False, None
    return True, value


def _step(value: Any, selector: Selector) -> Any:
    if selector.kind == "$":
        if not isinstance(value, list | tuple) or not _INTEGER.fullmatch(selector.key):
            return None
        index = int(selector.key)
        return value[index] if 0 <= index < len(value) else None
    if selector.kind == "#":
        return value.get(selector.key) if isinstance(value, Mapping) else None
    return field_of(value, selector.key)


def merge_inputs(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same input with every pin that has selectors put into its container. The given containers stay untouched.

    A base value is the start (a copy of it), otherwise an empty list or dictionary; lists are padded with None.
    Attributes become keys, since values are JSON.
    """
    merged: dict[str, Any] = {}
    trees: dict[str, _Tree] = {}
    for pin, value in values.items():
        base, selectors = split_pin(pin)
        if not selectors:
            merged[pin] = value
            continue
        if len(selectors) > MAX_SELECTORS:
            raise BlockInputError(f"{base}: more than {MAX_SELECTORS} selectors in one pin name")
        trees.setdefault(base, _Tree()).put(pin, selectors, value)
    budget = _Padding()
    for base, tree in trees.items():
        merged[base] = tree.build(merged.get(base), base, budget)
    return merged


class _Padding:
    """Counts the places that padding adds."""

    def __init__(self) -> None:
        self.left = MAX_PADDING

    def take(self, places: int, base: str) -> None:
        self.left -= places
        if self.left < 0:
            raise BlockInputError(f"{base}: list places too far apart, more than {MAX_PADDING} would stay empty")


class _Tree:
    """What is to be put into one container: children by index or key, a value where a pin name ends."""

    def __init__(self) -> None:
        self.value: Any = _MISSING
        self.children: dict[int | str, _Tree] = {}
        self.is_list = False

    def put(self, pin: str, selectors: tuple[Selector, ...], value: Any) -> None:
        node = self
        for selector in selectors:
            is_list = selector.kind == "$"
            if node.children and node.is_list != is_list:
                raise BlockInputError(f"{pin}: other pins make this a {'list' if node.is_list else 'dictionary'}")
            node.is_list = is_list
            node = node.children.setdefault(_child_key(pin, selector), _Tree())
        node.value = value

    def build(self, base_value: Any, base: str, budget: _Padding) -> Any:
        start = base_value if isinstance(self.value, _Missing) else self.value
        if not self.children:
            return start
        if self.is_list:
            return self._build_list(start, base, budget)
        if start is not None and not isinstance(start, Mapping):
            raise BlockInputError(f"{base}: a key cannot be set in a {type(start).__name__}")
        built = dict(start or {})
        for key, child in self.children.items():
            built[str(key)] = child.build(built.get(str(key)), base, budget)
        return built

    def _build_list(self, start: Any, base: str, budget: _Padding) -> list[Any]:
        if start is not None and not isinstance(start, list | tuple):
            raise BlockInputError(f"{base}: a list place cannot be set in a {type(start).__name__}")
        places = list(start or ())
        children = {int(index): child for index, child in self.children.items()}
        missing = max(children) + 1 - len(places)
        if missing > 0:
            budget.take(missing, base)
            places.extend([None] * missing)
        for index, child in children.items():
            places[index] = child.build(places[index], base, budget)
        return places


def _child_key(pin: str, selector: Selector) -> int | str:
    if selector.kind == "$":
        if not _INTEGER.fullmatch(selector.key):
            raise BlockInputError(f"{pin}: index must be an integer")
        index = int(selector.key)
        if not 0 <= index <= MAX_INDEX:
            raise BlockInputError(f"{pin}: index must be 0 to {MAX_INDEX}")
        return index
    if selector.kind == "@" and selector.key.startswith("_"):
        raise BlockInputError(f"{pin}: attributes that start with an underscore are private")
    return selector.key
