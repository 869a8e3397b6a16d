"""`livetape token`: make and look at access tokens."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from livetape.auth import TokenOptions, TokenVerifier, issue_token
from livetape.cli.errors import EXIT_AUTH, CommandError
from livetape.cli.options import Duration, app_of, data_dir_option, verbose_option
from livetape.clock import SystemClock
from livetape.errors import AuthError
from livetape.settings import signing_key


@click.group("token")
def command() -> None:
    """Make and look at access tokens."""


@command.command("create")
@click.option("--user", required=True, metavar="USER", help="Id of the user (claim `sub`).")
@click.option("--role", default="user", metavar="ROLE", help="`user` or `admin` (claim `role`).")
@click.option("--ttl", type=Duration(), default="1h", help="How long it is valid: seconds, or 30m, 1h, 7d; default 1h.")
@data_dir_option
@verbose_option
@click.pass_context
def create(ctx: click.Context, user: str, role: str, ttl: float) -> None:
    """Print a token, and nothing else. The key is LIVETAPE_JWT_VERIFY_KEY, else the data folder's secret."""
    settings = app_of(ctx).load().settings
    if not user.strip():
        raise CommandError("usage", "the user has no name", set_by="--user")
    token = issue_token(
        signing_key(settings),
        user_id=user,
        role=role,
        now=SystemClock().now(),
        ttl=timedelta(seconds=ttl),
        algorithm=settings.jwt_sign_algorithm,
    )
    click.echo(token)


@command.command("inspect")
@click.argument("token")
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@verbose_option
@click.pass_context
def inspect(ctx: click.Context, token: str, as_json: bool) -> int:
    """Show what TOKEN (`-`: standard input) says and whether this server takes it. Exit code 5 when not."""
    import jwt

    text = (sys.stdin.read() if token == "-" else token).strip()  # noqa: S105 - a dash is no token
    try:
        parsed = jwt.decode_complete(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as exc:
        raise CommandError("bad_token", "this is no token", because=str(exc)) from None
    settings = app_of(ctx).load().settings
    options = TokenOptions(verify_key=signing_key(settings), algorithm=settings.jwt_sign_algorithm)
    problem = None
    try:
        TokenVerifier(options).verify(text)
    except AuthError as exc:
        problem = exc.message
    claims: dict[str, Any] = parsed["payload"]
    if as_json:
        found = {"valid": problem is None, "problem": problem, "header": parsed["header"], "claims": claims}
        click.echo(json.dumps(found))
    else:
        for name, value in claims.items():
            click.echo(f"{name:<6} {value}{_moment(name, value)}")
        click.echo(f"{'valid':<6} {'yes' if problem is None else f'no: {problem}'}")
    return EXIT_AUTH if problem else 0


def _moment(name: str, value: object) -> str:
    if name not in {"exp", "iat", "nbf"} or not isinstance(value, int | float):
        return ""
    try:
        moment = datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    seconds = round((moment - SystemClock().now()).total_seconds())
    return f"  ({moment:%Y-%m-%d %H:%M:%S} UTC, {f'in {seconds} s' if seconds >= 0 else f'{-seconds} s ago'})"
