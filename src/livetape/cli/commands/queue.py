"""`livetape queue`: what waits, and whether anything is begun."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click

from livetape.cli.client import Client, with_client
from livetape.cli.options import app_of, target_options
from livetape.cli.render import compact, duration, preview

OUTPUT = click.Choice(["text", "json"])


@click.group("queue")
def command() -> None:
    """Look at the queue of executions, pause it and let it go on. For administrators."""


@command.command("show")
@click.option("--output", type=OUTPUT, default="text")
@target_options
@click.pass_context
def show(ctx: click.Context, output: str) -> None:
    """Show how much waits to be begun, for how long, and whether the queue is paused."""
    _state(ctx, output, lambda client: client.get("/api/queue"))


@command.command("pause")
@click.argument("reason")
@click.option("--output", type=OUTPUT, default="text")
@target_options
@click.pass_context
def pause(ctx: click.Context, reason: str, output: str) -> None:
    """Begin no more executions, and say why: REASON. What runs goes on."""
    _state(ctx, output, lambda client: client.put("/api/queue/pause", {"reason": reason}))


@command.command("resume")
@click.option("--output", type=OUTPUT, default="text")
@target_options
@click.pass_context
def resume(ctx: click.Context, output: str) -> None:
    """Begin executions again."""
    _state(ctx, output, lambda client: client.delete("/api/queue/pause"))


def _state(ctx: click.Context, output: str, work: Callable[[Client], Awaitable[Any]]) -> None:
    state = with_client(app_of(ctx), work)
    if output == "json":
        click.echo(compact(state))
        return
    is_paused = state["paused"] is not None
    click.echo(f"paused: {preview(state['paused'])}" if is_paused else "open")
    oldest = f", the oldest for {duration(state['oldest_seconds'])}" if state["depth"] else ""
    click.echo(f"{state['depth']} due and not begun{oldest}")
