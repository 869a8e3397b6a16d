"""`livetape tail`: follow a tape live."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from livetape.cli.errors import CommandError
from livetape.cli.options import App, Duration, app_of, target_options
from livetape.cli.render import Names, line, record

if TYPE_CHECKING:
    from livetape.cli.client import Client
    from livetape.cli.tape import Push, Topic


@click.command("tail")
@click.argument("execution", required=False)
@click.option("--graph", metavar="GRAPH", help="All executions of a graph, an id or a name: graph events only.")
@click.option("--job", metavar="JOB", help="A background job.")
@click.option(
    "--since",
    metavar="WHERE",
    help="earliest, latest, a position <epoch>-<offset>, or 5m (the last minutes). Default earliest; graphs latest.",
)
@click.option("--timeout", type=Duration(), help="Follow at most so long (90, 10m).")
@click.option("--output", type=click.Choice(["text", "jsonl"]), default="text", help="Lines for people, or JSON.")
@target_options
@click.pass_context
def command(
    ctx: click.Context,
    execution: str | None,
    graph: str | None,
    job: str | None,
    since: str | None,
    timeout: float | None,
    output: str,
) -> None:
    """Follow EXECUTION, a graph or a job until it ends. Connects again by itself; nothing is shown twice."""
    if sum(1 for given in (execution, graph, job) if given) != 1:
        raise click.UsageError("give one of EXECUTION, --graph GRAPH, --job JOB", ctx)
    where = parse_since(since or ("latest" if graph else "earliest"))
    try:
        asyncio.run(_tail(app_of(ctx), execution, graph, job, where, timeout, output))
    except TimeoutError:
        raise CommandError("timeout", f"not ended after {timeout:g} s") from None


def parse_since(text: str) -> Any:
    """The `since` of the protocol."""
    if text in {"earliest", "latest"}:
        return text
    epoch, dash, digits = text.rpartition("-")
    if dash and epoch and digits.isascii() and digits.isdigit():
        return {"epoch": epoch, "offset": int(digits)}
    try:
        return {"seconds": Duration().convert(text, None, None)}
    except click.BadParameter:
        raise CommandError(
            "usage",
            f"not a place on a tape: {text}",
            set_by="--since",
            fix="write earliest, latest, a position like 3k9x2m1a-17, or a time like 5m",
        ) from None


async def _tail(
    app: App,
    execution: str | None,
    graph: str | None,
    job: str | None,
    since: Any,
    timeout: float | None,
    output: str,
) -> None:
    from livetape.cli.client import open_client
    from livetape.cli.discover import require_server
    from livetape.cli.follow import follow
    from livetape.cli.graphs import find_graph
    from livetape.cli.tape import Topic

    async with asyncio.timeout(timeout), open_client(require_server(app, os.environ)) as client:
        topic: Topic
        if execution is not None:
            topic = Topic.execution(execution)
        elif graph is not None:
            topic = Topic.graph(str((await find_graph(client, graph))["id"]))
        else:
            topic = Topic.job(str(job))
        names: Names | None = None
        async with aclosing(follow(client.server, topic, since=since, notice=app.say)) as pushes:
            async for push in pushes:
                if output == "text" and names is None and execution is not None:
                    names = await names_of(client, push)
                click.echo(record(push) if output == "jsonl" else line(push, names))


async def names_of(client: Client, push: Push) -> Names:
    """Names of the nodes of the graph that this event is about; without them ids are shown."""
    data = push.data if isinstance(push.data, dict) else {}
    if not data.get("graph_id"):
        return Names({}, ())
    try:
        graph = await client.graph(str(data["graph_id"]), data.get("graph_version"))
        return Names(graph, await client.get("/api/blocks"))
    except CommandError:
        return Names({}, ())
