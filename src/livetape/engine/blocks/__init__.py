"""The blocks that come with livetape, and those that other installed packages bring."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from livetape.engine.block import Block
from livetape.engine.blocks.options import BlockOptions
from livetape.observability import get_logger

ENTRY_POINT_GROUP = "livetape.blocks"


def builtin_blocks(options: BlockOptions | None = None) -> list[Block[Any]]:
    """A new instance of every block of this package, with the options for those that reach other machines."""
    from livetape.engine.blocks import (  # noqa: PLC0415 (listing the package must not load Jinja2 and the rest)
        agent_inputs,
        agent_output,
        calculator,
        clock_blocks,
        code_extraction,
        conditions,
        console,
        countdown,
        delay,
        dictionaries,
        drive_input,
        encoding,
        file_store,
        files,
        http_request,
        iteration,
        language_model,
        list_sets,
        lists,
        memory,
        review,
        sampling,
        spreadsheet,
        stream_text,
        sub_graphs,
        text,
        text_patterns,
        values,
        webhook,
        xml_parser,
    )

    modules = (
        agent_inputs,
        agent_output,
        calculator,
        clock_blocks,
        code_extraction,
        conditions,
        console,
        countdown,
        delay,
        dictionaries,
        drive_input,
        encoding,
        files,
        iteration,
        list_sets,
        lists,
        memory,
        review,
        sampling,
        spreadsheet,
        stream_text,
        sub_graphs,
        text,
        text_patterns,
        values,
        webhook,
        xml_parser,
    )
    options = options or BlockOptions()
    return [
        *(kind() for module in modules for kind in module.BLOCKS),
        http_request.SendWebRequestBlock(options.requests),
        file_store.FileStoreBlock(options.requests),
        language_model.LanguageModelBlock(options.model),
    ]


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
