"""The blocks that come with livetape, and those that other installed packages bring."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from livetape.engine.block import Block
from livetape.observability import get_logger

ENTRY_POINT_GROUP = "livetape.blocks"


def builtin_blocks() -> list[Block[Any]]:
    """A new instance of every block of this package."""
    from livetape.engine.blocks import (  # noqa: PLC0415 (listing the package must not load Jinja2 and the rest)
        agent_inputs,
        agent_output,
        calculator,
        clock_blocks,
        conditions,
        countdown,
        dictionaries,
        files,
        iteration,
        lists,
        stream_text,
        text,
        values,
    )

    modules = (
        agent_inputs,
        agent_output,
        calculator,
        clock_blocks,
        conditions,
        countdown,
        dictionaries,
        files,
        iteration,
        lists,
        stream_text,
        text,
        values,
    )
    return [kind() for module in modules for kind in module.BLOCKS]


def installed_blocks() -> list[Block[Any]]:
    """The blocks of plugins: entry points of the group `livetape.blocks`.

    One names a block class, or a function without arguments that returns blocks. A plugin that cannot be loaded is
    logged and left out, so that it does not keep the others from running.
    """
    found: list[Block[Any]] = []
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        try:
            found.extend(_load(point))
        except Exception:  # a plugin may fail in any way
            get_logger(__name__).exception(
                "plugin %s (%s) brings no blocks: it cannot be loaded",
                point.name,
                point.value,
                extra={"action": "block_plugin_failed", "plugin": point.name},
            )
    return found


def _load(point: EntryPoint) -> list[Block[Any]]:
    made = point.load()()
    blocks = list(made) if isinstance(made, Iterable) else [made]
    for block in blocks:
        if not isinstance(block, Block):
            raise TypeError(f"{block!r} is not a block")
    return blocks
