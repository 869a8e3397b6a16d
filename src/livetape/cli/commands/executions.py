"""`livetape executions`: list, show, stop, retry, rerun."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import uuid4

import click

from livetape.cli.client import Client, with_client
from livetape.cli.errors import CommandError
from livetape.cli.graphs import find_graph
from livetape.cli.options import Duration, app_of, target_options
from livetape.cli.render import compact, duration, output_lines, preview, reason, table


@click.group("executions")
def command() -> None:
    """List, show, stop and repeat executions."""


@command.command("list")
@click.option("--graph", metavar="GRAPH", help="Only those of this graph, an id or a name.")
@click.option("--limit", type=click.IntRange(1, 100), default=25, help="How many, the newest first.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@target_options
@click.pass_context
def list_executions(ctx: click.Context, graph: str | None, limit: int, output: str) -> None:
    """List executions, the newest first."""

    async def work(client: Client) -> tuple[list[dict[str, Any]], dict[str, str]]:
        if graph is None:
            items = list(await client.get("/api/executions"))[:limit]
        else:
            found = await find_graph(client, graph)
            path = f"/api/graphs/{quote(found['id'], safe='')}/executions"
            items = list((await client.get(path, page=1, page_size=limit))["executions"])
        names = {str(known["id"]): str(known["name"]) for known in await client.get("/api/graphs")}
        return items, names

    items, names = with_client(app_of(ctx), work)
    if output == "json":
        click.echo(compact(items))
        return
    rows = []
    for item in items:
        seconds = (item.get("stats") or {}).get("duration")
        rows.append(
            (
                item["id"],
                item["status"],
                str(item.get("started_at") or "-")[:19].replace("T", " "),
                duration(seconds) if seconds else "-",
                preview(names.get(item["graph_id"], item["graph_id"]), 40),
            )
        )
    for text in table(("ID", "STATUS", "STARTED (UTC)", "TOOK", "GRAPH"), rows):
        click.echo(text)


@command.command("show")
@click.argument("execution")
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
@target_options
@click.pass_context
def show(ctx: click.Context, execution: str, output: str) -> None:
    """Show EXECUTION: its status and outputs."""

    async def work(client: Client) -> Any:
        found = await client.find_execution(execution)
        return await client.execution(found["graph_id"], found["id"])

    item = with_client(app_of(ctx), work)
    if output == "json":
        click.echo(compact(item))
        return
    app_of(ctx).say(f"{item['status']}  {item['id']}  graph {item['graph_id']}  {reason(item)}".rstrip())
    for text in output_lines(item.get("outputs") or {}):
        click.echo(text)


@command.command("stop")
@click.argument("execution")
@click.option("--wait", type=Duration(), default=10.0, help="Wait so long (15 s at most) for its end.")
@target_options
@click.pass_context
def stop(ctx: click.Context, execution: str, wait: float) -> None:
    """Stop EXECUTION and print its status."""

    async def work(client: Client) -> Any:
        found = await client.find_execution(execution)
        path = f"/api/graphs/{quote(found['graph_id'], safe='')}/executions/{quote(found['id'], safe='')}/stop"
        return await client.post(f"{path}?wait={min(wait, 15.0):g}")

    item = with_client(app_of(ctx), work)
    if not item:
        raise CommandError("conflict", "nothing to stop: it has ended", fix="livetape executions show")
    click.echo(item["status"])


@command.command("retry")
@click.argument("execution")
@click.option("--from", "from_node", metavar="NODE", help="Run this node and everything downstream of it in any case.")
@click.option("--idempotency-key", metavar="KEY", help="The same key starts one execution, however often.")
@target_options
@click.pass_context
def retry(ctx: click.Context, execution: str, from_node: str | None, idempotency_key: str | None) -> None:
    """Go on where EXECUTION failed or was stopped, as a new execution, and print its id.

    What completed is taken over and not run again. Follow it with livetape tail.
    """
    _repeat(ctx, execution, "retry", {"from_node": from_node}, idempotency_key)


@command.command("rerun")
@click.argument("execution")
@click.option("--idempotency-key", metavar="KEY", help="The same key starts one execution, however often.")
@target_options
@click.pass_context
def rerun(ctx: click.Context, execution: str, idempotency_key: str | None) -> None:
    """Start the graph of EXECUTION once more, in the same version with the same inputs, and print the new id."""
    _repeat(ctx, execution, "rerun", None, idempotency_key)


def _repeat(ctx: click.Context, execution: str, how: str, body: dict[str, Any] | None, key: str | None) -> None:
    async def work(client: Client) -> Any:
        found = await client.find_execution(execution)
        path = f"/api/graphs/{quote(found['graph_id'], safe='')}/executions/{quote(found['id'], safe='')}/{how}"
        # A key of its own, so that a connection that fails can be tried again.
        return await client.post(path, body, idempotency_key=key or uuid4().hex)

    click.echo(with_client(app_of(ctx), work)["id"])
