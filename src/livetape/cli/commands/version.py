"""`livetape version`."""

from __future__ import annotations

import platform

import click

from livetape.cli.facts import package_version, package_versions


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(as_json: bool) -> None:
    """Show the versions of livetape, Python and what it is built on."""
    packages = package_versions()
    if as_json:
        import json

        facts = {"livetape": package_version(), "python": platform.python_version(), "packages": packages}
        click.echo(json.dumps(facts))
        return
    click.echo(f"livetape {package_version()}")
    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, found in packages.items():
        click.echo(f"{name} {found or 'not installed'}")
