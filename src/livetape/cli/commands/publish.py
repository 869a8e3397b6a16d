"""`livetape publish`: one event on the tape of a job."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from livetape.cli.client import Client, with_client
from livetape.cli.options import app_of, read_json, target_options


@click.command("publish")
@click.argument("job")
@click.argument("event_type", metavar="TYPE")
@click.option("--data", "data_text", metavar="JSON", default="null", help="JSON, `-` (standard input) or `@file`.")
@click.option("--timestamp", metavar="ISO", help="When it happened; default now, by the server's clock.")
@click.option("--idempotency-key", metavar="KEY", help="The same key adds one event, however often.")
@target_options
@click.pass_context
def command(
    ctx: click.Context,
    job: str,
    event_type: str,
    data_text: str,
    timestamp: str | None,
    idempotency_key: str | None,
) -> None:
    """Put an event of TYPE on the tape of JOB and print its position, `<epoch>-<offset>`."""
    body: dict[str, Any] = {"event_type": event_type, "data": read_json(data_text, "--data")}
    if timestamp is not None:
        body["timestamp"] = timestamp
    if idempotency_key is not None:
        body["idempotency_key"] = idempotency_key

    async def work(client: Client) -> Any:
        return await client.post(f"/api/jobs/{quote(job, safe='')}/events", body)

    position = with_client(app_of(ctx), work)
    click.echo(f"{position['epoch']}-{position['offset']}")
