"""Shows an execution while it runs: a live tree in a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from livetape.cli.options import App
from livetape.cli.progress import NodeProgress, Progress
from livetape.cli.render import Names, line
from livetape.cli.tape import Push

if TYPE_CHECKING:
    from rich.console import RenderableType

REDRAW_SECONDS = 0.1
MARKS = {
    "INCOMPLETE": ("·", "dim"),
    "QUEUED": ("·", ""),
    "RUNNING": ("▶", "cyan"),
    "REVIEW": ("?", "yellow"),
    "COMPLETED": ("✓", "green"),
    "FAILED": ("✗", "bold red"),
    "TERMINATED": ("■", "yellow"),
}


async def show_lines(pushes: AsyncIterator[Push], names: Names, *, err: bool = False) -> Push | None:
    """One line an event. Returns the final event."""
    last = None
    async for last in pushes:
        click.echo(line(last, names), err=err)
    return last


async def show_tree(pushes: AsyncIterator[Push], names: Names, title: str, app: App) -> Push | None:
    """A tree of nodes, drawn at most ten times a second. Returns the final event."""
    from rich.console import Console
    from rich.live import Live

    progress = Progress(names)
    console = Console(stderr=True, no_color=not app.color(sys.stderr), highlight=False)
    last = None
    with Live(draw(progress, title, time.monotonic()), console=console, auto_refresh=False) as live:

        def redraw() -> None:
            live.update(draw(progress, title, time.monotonic()), refresh=True)

        async def keep_drawing() -> None:
            while True:
                await asyncio.sleep(REDRAW_SECONDS)
                redraw()

        drawing = asyncio.create_task(keep_drawing())
        try:
            async for last in pushes:
                progress.apply(last, time.monotonic())
        finally:
            drawing.cancel()
            with suppress(asyncio.CancelledError):
                await drawing
            redraw()
    return last


def draw(progress: Progress, title: str, now: float) -> RenderableType:
    """The tree as it stands."""
    from rich.text import Text
    from rich.tree import Tree

    mark, style = MARKS.get(progress.status, ("·", ""))
    tree = Tree(Text.assemble((f"{mark} ", style), (title, "bold"), f"  {progress.status}"))
    for node in progress.nodes.values():
        tree.add(_node(node, now))
    return tree


def _node(node: NodeProgress, now: float) -> RenderableType:
    from rich.text import Text

    mark, style = MARKS.get(node.status, ("·", ""))
    text = Text.assemble((f"{mark} ", style), node.name, overflow="ellipsis", no_wrap=True)
    if len(node.runs) > 1:
        text.append(f"  {node.done}/{len(node.runs)}")
    seconds = node.elapsed(now)
    if seconds is not None:
        text.append(f"  {seconds:.1f} s", "dim")
    if node.outputs:
        text.append(f"  {node.outputs} output{'s' if node.outputs > 1 else ''}", "dim")
        text.append(f"  {node.last_output}", "italic")
    return text
