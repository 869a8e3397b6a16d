"""`livetape db`: look at the database, bring it to this version, copy it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from livetape.cli.options import app_of, data_dir_option, verbose_option

WORDS: Final = {
    "missing": "not there yet: made at the first start",
    "empty": "empty: filled at the first start",
    "behind": "of an older version: livetape db upgrade",
    "ready": "ready",
    "newer": "of a newer version, which this one refuses",
}


@click.group("db")
def command() -> None:
    """Look at the database, upgrade it, copy it."""


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--check", is_flag=True, help="Fail (exit 1) unless it is ready for this version.")
@data_dir_option
@verbose_option
@click.pass_context
def status(ctx: click.Context, as_json: bool, check: bool) -> int:
    """Show where the database is and of which version."""
    from livetape.runtime.maintenance import database_report

    report = asyncio.run(database_report(app_of(ctx).load().settings))
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        click.echo(f"{report.place}  ({report.server}, {report.size / 2**20:.1f} MiB)")
        click.echo(f"revision {report.revision or '-'}, newest {report.newest}: {WORDS[report.state]}")
    return int(check and report.state != "ready")


@command.command("upgrade")
@data_dir_option
@verbose_option
@click.pass_context
def upgrade(ctx: click.Context) -> None:
    """Bring the database to this version. `livetape up` does it by itself; on PostgreSQL one process at a time."""
    from livetape.runtime.maintenance import upgrade_database

    changed = asyncio.run(upgrade_database(app_of(ctx).load().settings))
    app_of(ctx).say("upgraded" if changed else "nothing to do")


@command.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@data_dir_option
@verbose_option
@click.pass_context
def backup(ctx: click.Context, file: Path) -> None:
    """Copy the database to FILE while it is used: a SQLite file, or of PostgreSQL an archive for pg_restore."""
    from livetape.runtime.maintenance import backup_database

    size = backup_database(app_of(ctx).load().settings, file)
    click.echo(str(file))
    app_of(ctx).say(f"{size / 2**20:.1f} MiB")
