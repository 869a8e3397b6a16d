"""`livetape run`: start a graph, watch it, print its outputs."""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from livetape.cli.errors import EXIT_INTERRUPTED, CommandError
from livetape.cli.options import App, Duration, app_of, read_json, target_options
from livetape.cli.render import Names, compact, duration, output_lines, reason

if TYPE_CHECKING:
    from livetape.cli.client import Client
    from livetape.cli.tape import Push


@click.command("run")
@click.argument("graph")
@click.option("-i", "--input", "pairs", multiple=True, metavar="NAME=VALUE", help="One input; VALUE is JSON or text.")
@click.option("-f", "--input-file", metavar="FILE", help="Inputs as a JSON object; `-` is standard input.")
@click.option("--watch", is_flag=True, help="Show every step: a live tree in a terminal, lines elsewhere.")
@click.option("--detach", is_flag=True, help="Print the id of the execution and leave.")
@click.option("--timeout", type=Duration(), help="Wait at most so long (90, 10m); the execution goes on.")
@click.option("--idempotency-key", metavar="KEY", help="The same key starts one execution, however often.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", help="How to print the outputs.")
@target_options
@click.pass_context
def command(
    ctx: click.Context,
    graph: str,
    pairs: tuple[str, ...],
    input_file: str | None,
    watch: bool,
    detach: bool,
    timeout: float | None,
    idempotency_key: str | None,
    output: str,
) -> int:
    """Start GRAPH (an id, a name, or a JSON file) and print its outputs.

    Exit code 0 when it ends COMPLETED, 1 when FAILED or TERMINATED. Without a server, one is started in this command.
    """
    if watch and detach:
        raise click.UsageError("--watch and --detach exclude each other", ctx)
    run = Run(app_of(ctx), graph, read_inputs(pairs, input_file), idempotency_key, output)
    try:
        return asyncio.run(run.detached() if detach else run.to_the_end(watch, timeout))
    except KeyboardInterrupt:
        if run.execution_id is None:
            raise
        run.app.say(f"interrupted; {run.what_goes_on()}")
        return EXIT_INTERRUPTED


def read_inputs(pairs: Sequence[str], input_file: str | None) -> dict[str, Any]:
    """The inputs of a file, and over them the `NAME=VALUE` ones."""
    inputs: dict[str, Any] = {}
    if input_file is not None:
        loaded = read_json("-" if input_file == "-" else f"@{input_file}", "--input-file")
        if not isinstance(loaded, dict):
            raise CommandError(
                "bad_input", "the inputs are not a JSON object", set_by="--input-file", fix='write {"name": value}'
            )
        inputs.update(loaded)
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise CommandError("usage", f"not NAME=VALUE: {pair}", set_by="--input", fix="write --input name=value")
        try:
            inputs[name] = json.loads(text)
        except ValueError:
            inputs[name] = text
    return inputs


class Run:
    """One call of `livetape run`."""

    def __init__(self, app: App, graph: str, inputs: dict[str, Any], key: str | None, output: str) -> None:
        self.app = app
        self.graph = graph
        self.inputs = inputs
        self.key = key
        self.output = output
        self.execution_id: str | None = None
        self.is_own_server = False

    async def detached(self) -> int:
        """Start it on a server and print its id."""
        import os

        from livetape.cli.client import open_client
        from livetape.cli.discover import require_server

        async with open_client(require_server(self.app, os.environ)) as client:
            execution, _ = await self._start(client)
        click.echo(execution["id"])
        return 0

    async def to_the_end(self, watch: bool, timeout: float | None) -> int:
        """Start it, wait for its end, print its outputs."""
        from livetape.cli.client import open_client
        from livetape.cli.embedded import server_or_own

        async with server_or_own(self.app) as server, open_client(server) as client:
            self.is_own_server = server.said_by == "the server in this command"
            try:
                async with asyncio.timeout(timeout):
                    execution, graph = await self._start(client)
                    last = await self._wait(client, graph, watch)
                    execution = await client.execution(str(execution["graph_id"]), str(execution["id"]))
            except TimeoutError:
                if self.execution_id is None:
                    raise
                raise CommandError(
                    "timeout", f"not ended after {timeout:g} s: {self.execution_id}", fix=self.what_goes_on()
                ) from None
        return self._finish(execution, last)

    def what_goes_on(self) -> str:
        """What becomes of the execution when this command leaves."""
        if self.is_own_server:
            return "the execution is kept and goes on with the next livetape up"
        return (
            f"the execution goes on\nwatch it: livetape tail {self.execution_id}\n"
            f"stop it:  livetape executions stop {self.execution_id}"
        )

    async def _start(self, client: Client) -> tuple[dict[str, Any], dict[str, Any]]:
        from livetape.cli.graphs import resolve_graph

        graph = await resolve_graph(client, self.graph)
        if self.inputs:
            await self._check_names(client, graph)
        path = f"/api/graphs/{graph['id']}/execute/{graph['version']}"
        execution = await client.post(path, {"inputs": self.inputs}, idempotency_key=self.key)
        self.execution_id = str(execution["id"])
        return execution, graph

    async def _check_names(self, client: Client, graph: dict[str, Any]) -> None:
        """Say which inputs the graph does not have; it ignores them."""
        whole = graph if "input_schema" in graph else await client.graph(graph["id"], graph["version"])
        known = list((whole.get("input_schema") or {}).get("properties") or {})
        for name in self.inputs:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(known) or 'none'}"
                self.app.say(f"warning: {graph['name']} has no input {name}; {hint}")

    async def _wait(self, client: Client, graph: dict[str, Any], watch: bool) -> Push | None:
        from livetape.cli.follow import follow
        from livetape.cli.tape import Topic

        topic = Topic.execution(str(self.execution_id))
        async with aclosing(follow(client.server, topic, notice=self.app.say)) as pushes:
            if not watch:
                return await _last(pushes)
            from livetape.cli.watch import show_lines, show_tree

            names = Names(await client.graph(graph["id"], graph["version"]), await client.get("/api/blocks"))
            if sys.stdout.isatty() and sys.stderr.isatty():
                return await show_tree(pushes, names, f"{graph['name']}  {self.execution_id}", self.app)
            return await show_lines(pushes, names, err=self.output == "json")

    def _finish(self, execution: dict[str, Any], last: Push | None) -> int:
        if self.output == "json":
            click.echo(compact(execution))
        else:
            for text in output_lines(execution.get("outputs") or {}):
                click.echo(text)
        stats = execution.get("stats") or {}
        facts = [
            f"{execution['status']} in {duration(float(stats.get('duration') or 0))}",
            f"{stats.get('node_exec_count', 0)} node executions",
            *([f"{last.offset} events"] if last is not None and last.offset is not None else []),
        ]
        self.app.say(f"{' · '.join(facts)} · {execution['id']}")
        why = reason(execution)
        if execution["status"] != "COMPLETED" and why:
            self.app.say(f"  because   {why}")
        return 0 if execution["status"] == "COMPLETED" else 1


async def _last(pushes: AsyncIterator[Push]) -> Push | None:
    last = None
    async for push in pushes:
        last = push
    return last
