"""`livetape doctor`: is this machine ready, is the data folder sound, and does every execution move?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from livetape.cli.checks import Check, all_checks
from livetape.cli.errors import EXIT_FAILED
from livetape.cli.options import app_of, data_dir_option, verbose_option

if TYPE_CHECKING:
    from livetape.engine.diagnosis import Finding

COLORS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "bright_black"}


@click.group("doctor", invoke_without_command=True)
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to look at; default that of the settings.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@data_dir_option
@verbose_option
@click.pass_context
def command(ctx: click.Context, port: int | None, as_json: bool) -> int:
    """Check this machine, the settings, the data folder and the server. Exit code 1 when a check fails."""
    if ctx.invoked_subcommand is not None:
        return 0
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


@command.command("executions")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@data_dir_option
@verbose_option
@click.pass_context
def executions(ctx: click.Context, as_json: bool) -> int:
    """Say of every execution that does not move why. Exit code 1 when one should."""
    import asyncio

    from livetape.runtime.diagnose import diagnose

    app = app_of(ctx)
    found = asyncio.run(diagnose(app.load(warn=False).settings))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2, default=str))
    else:
        for finding in found:
            for text in _told(finding):
                click.echo(text, color=app.color(sys.stdout))
        if not found:
            click.echo("nothing stands still")
    return EXIT_FAILED if any(finding.is_fault for finding in found) else 0


def _told(finding: Finding) -> list[str]:
    status = click.style("fail" if finding.is_fault else "wait", fg=COLORS["fail" if finding.is_fault else "skip"])
    since = f"{finding.since:%Y-%m-%d %H:%M:%S}"
    lines = [f"{status}  {finding.execution_id}  {finding.status}  {finding.kind} since {since} UTC: {finding.why}"]
    if finding.fix:
        lines.append(f"      fix: {finding.fix}")
    return lines


def _lines(check: Check, width: int) -> list[str]:
    status = click.style(f"{check.status:<4}", fg=COLORS[check.status])
    lines = [f"{status}  {check.name:<{width}}  {check.found}"]
    if check.remedy:
        lines.append(f"{'':<4}  {'':<{width}}  fix: {check.remedy}")
    return lines
