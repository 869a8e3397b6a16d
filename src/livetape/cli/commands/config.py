"""`livetape config`: the settings and where they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from livetape.cli.options import app_of, data_dir_option, verbose_option
from livetape.cli.render import table
from livetape.settings import Settings
from livetape.settings.load import fields

_PASSWORD = re.compile(r"(://[^/@:]*:)[^@/]*@")


@click.group("config")
def command() -> None:
    """Show the settings."""


@command.command("show")
@click.option("--show-defaults", is_flag=True, help="Also what was not set.")
@click.option("--show-sources", is_flag=True, help="Also where each value was set.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@data_dir_option
@verbose_option
@click.pass_context
def show(ctx: click.Context, show_defaults: bool, show_sources: bool, as_json: bool) -> None:
    """Show what is set; with --show-defaults every setting. Secrets are masked."""
    loaded = app_of(ctx).load()
    values = {
        path: plain(value_of(loaded.settings, path))
        for path, _ in fields(Settings)
        if show_defaults or path in loaded.sources
    }
    if as_json:
        shown: dict[str, Any] = values
        if show_sources:
            shown = {path: {"value": v, "source": loaded.sources.get(path, "default")} for path, v in values.items()}
        click.echo(json.dumps(shown, indent=2))
        return
    if not values:
        app_of(ctx).say("everything is at its default; livetape config show --show-defaults lists it")
        return
    rows = [
        (path, json.dumps(value), *([loaded.sources.get(path, "default")] if show_sources else []))
        for path, value in values.items()
    ]
    for line in table(("SETTING", "VALUE", *(["SOURCE"] if show_sources else [])), rows):
        click.echo(line)


def value_of(settings: Settings, path: str) -> object:
    """The value at `section.name`."""
    value: object = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def plain(value: object) -> Any:
    """As JSON can hold it; a secret as stars."""
    if isinstance(value, SecretStr):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return _PASSWORD.sub(r"\1**********@", value)
    return list(value) if isinstance(value, tuple) else value
