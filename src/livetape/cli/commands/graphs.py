"""`livetape graphs`: import, list, show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from livetape.cli.client import Client, with_client
from livetape.cli.graphs import find_graph, import_graph
from livetape.cli.options import app_of, target_options
from livetape.cli.render import Names, compact, preview, table


@click.group("graphs")
def command() -> None:
    """Import, list and show graphs."""


@command.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@target_options
@click.pass_context
def import_files(ctx: click.Context, files: tuple[str, ...]) -> None:
    """Store graphs from JSON files and print their ids. A graph that is there already is not stored again."""

    async def work(client: Client) -> None:
        for file in files:
            graph, is_new = await import_graph(client, Path(file))
            click.echo(graph["id"])
            app_of(ctx).say(f"{'imported' if is_new else 'unchanged'}  {graph['name']}  version {graph['version']}")

    with_client(app_of(ctx), work)


@command.command("list")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@target_options
@click.pass_context
def list_graphs(ctx: click.Context, output: str) -> None:
    """List the graphs of this user."""
    graphs: list[dict[str, Any]] = with_client(app_of(ctx), lambda client: client.get("/api/graphs"))
    if output == "json":
        click.echo(compact(graphs))
        return
    rows = [(g["id"], str(g["version"]), preview(g["name"], 40), preview(g["description"], 60)) for g in graphs]
    for text in table(("ID", "VERSION", "NAME", "DESCRIPTION"), rows):
        click.echo(text)


@command.command("show")
@click.argument("graph")
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
@target_options
@click.pass_context
def show(ctx: click.Context, graph: str, output: str) -> None:
    """Show GRAPH, an id or a name."""

    async def work(client: Client) -> tuple[Any, Any]:
        found = await find_graph(client, graph)
        return await client.graph(found["id"]), await client.get("/api/blocks")

    shown, blocks = with_client(app_of(ctx), work)
    if output == "json":
        click.echo(compact(shown))
        return
    names = Names(shown, blocks)
    click.echo(f"{shown['name']}  version {shown['version']}\n{shown['id']}")
    if shown.get("description"):
        click.echo(shown["description"])
    inputs = (shown.get("input_schema") or {}).get("properties") or {}
    required = set((shown.get("input_schema") or {}).get("required") or ())
    for name, schema in inputs.items():
        extra = "required" if name in required else f"default {preview(schema.get('default'))}"
        click.echo(f"  input   {name}  ({schema.get('type', 'any')}, {extra})")
    for name in (shown.get("output_schema") or {}).get("properties") or {}:
        click.echo(f"  output  {name}")
    for node_id, name in names.all().items():
        targets = [link for link in shown["links"] if link["source_id"] == node_id]
        click.echo(f"  node    {name}")
        for link in targets:
            click.echo(f"            {link['source_name']} -> {names.of(link['sink_id'])}.{link['sink_name']}")
