"""`livetape doctor`: is this machine ready, and is the data folder sound?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from livetape.cli.checks import Check, all_checks
from livetape.cli.errors import EXIT_FAILED
from livetape.cli.options import app_of, data_dir_option, verbose_option

COLORS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "bright_black"}


@click.command("doctor")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to look at; default that of the settings.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@data_dir_option
@verbose_option
@click.pass_context
def command(ctx: click.Context, port: int | None, as_json: bool) -> int:
    """Check this machine, the settings, the data folder and the server. Exit code 1 when a check fails."""
    app = app_of(ctx)
    checks = all_checks(lambda: app.load(warn=False, port=port))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            for text in _lines(check, width):
                click.echo(text, color=app.color(sys.stdout))
    return EXIT_FAILED if any(check.status == "fail" for check in checks) else 0


def _lines(check: Check, width: int) -> list[str]:
    status = click.style(f"{check.status:<4}", fg=COLORS[check.status])
    lines = [f"{status}  {check.name:<{width}}  {check.found}"]
    if check.remedy:
        lines.append(f"{'':<4}  {'':<{width}}  fix: {check.remedy}")
    return lines
