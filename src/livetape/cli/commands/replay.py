"""`livetape replay`: what happened, at the pace at which it happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from livetape.cli.client import Client, with_client
from livetape.cli.commands.tail import names_of
from livetape.cli.errors import CommandError
from livetape.cli.options import App, app_of, target_options
from livetape.cli.render import line, moment, record
from livetape.cli.tape import METHODS, Push

if TYPE_CHECKING:
    from livetape.cli.render import Names

PAGE_SIZE = 500


class Speed(click.ParamType[float]):
    """`1x`, `10x`, `0.5x`, `max`; as a factor, 0 for no waiting."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        if text == "max":
            return 0.0
        try:
            factor = float(text.removesuffix("x"))
        except ValueError:
            factor = 0.0
        if not 0.001 <= factor <= 1e6:
            self.fail(f"{value!r} is not a speed; write 1x, 10x, 0.5x or max", param, ctx)
        return factor


@click.command("replay")
@click.argument("execution", required=False)
@click.option("--job", metavar="JOB", help="A background job instead of an execution.")
@click.option("--speed", type=Speed(), default="1x", help="1x is as it was; 10x is faster, max does not wait.")
@click.option("--output", type=click.Choice(["text", "jsonl"]), default="text", help="Lines for people, or JSON.")
@target_options
@click.pass_context
def command(ctx: click.Context, execution: str | None, job: str | None, speed: float, output: str) -> None:
    """Print the events of EXECUTION, or of a job, again. What is not there yet is not waited for."""
    if (execution is None) == (job is None):
        raise click.UsageError("give one of EXECUTION, --job JOB", ctx)

    async def work(client: Client) -> None:
        if execution is not None:
            found = await client.find_execution(execution)
            graph_id, execution_id = quote(found["graph_id"], safe=""), quote(found["id"], safe="")
            path = f"/api/graphs/{graph_id}/executions/{execution_id}/events"
        else:
            path = f"/api/jobs/{quote(str(job), safe='')}/events"
        await _replay(app_of(ctx), client, path, speed, output)

    with_client(app_of(ctx), work)


async def _replay(app: App, client: Client, path: str, speed: float, output: str) -> None:
    loop = asyncio.get_running_loop()
    names: Names | None = None
    last: Push | None = None
    begin: tuple[float, datetime] | None = None
    async with aclosing(read_tape(client, path)) as pushes:
        async for push in pushes:
            if push.time is not None and speed:
                begin = begin or (loop.time(), push.time)
                recorded = (push.time - begin[1]).total_seconds() / speed
                await asyncio.sleep(max(0.0, begin[0] + recorded - loop.time()))
            if output == "text" and names is None:
                names = await names_of(client, push)
            click.echo(record(push) if output == "jsonl" else line(push, names))
            last = push
    if last is None:
        app.say("no events yet")
    elif not last.final:
        app.say("it goes on: livetape tail shows what comes")


async def read_tape(client: Client, path: str) -> AsyncGenerator[Push, None]:
    """All events of a tape up to now, page by page."""
    after = 0
    while True:
        page = await client.get(path, after=after, limit=PAGE_SIZE)
        entries = page.get("events") if isinstance(page, dict) else page
        if not isinstance(entries, list):
            raise CommandError("bad_answer", "the page of events has no events", because=f"GET {path}")
        epoch = page.get("epoch") if isinstance(page, dict) else None
        for entry in entries:
            yield _push(entry, epoch)
        if not entries or int(entries[-1]["offset"]) <= after:
            return
        after = int(entries[-1]["offset"])


TIMES = ("ended_at", "end_time", "start_time", "queue_time", "started_at", "add_time", "timestamp")
"""Fields of events that say when; the first that is set tells when the event happened."""


def _push(entry: dict[str, Any], epoch: str | None) -> Push:
    data = entry.get("data")
    fields = data if isinstance(data, dict) else {}
    return Push(
        METHODS.get(str(entry.get("event_type")), "job_event"),
        data,
        int(entry["offset"]),
        entry.get("epoch", epoch),
        bool(entry.get("final")),
        time=moment(entry.get("time")) or next((at for name in TIMES if (at := moment(fields.get(name)))), None),
    )
