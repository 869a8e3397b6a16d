"""The command group. A command's module is imported when it is used; `--help` needs none of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

import click

from livetape.cli.options import App, app_of, verbose_option

if TYPE_CHECKING:
    from livetape.cli.errors import CommandError

COMMANDS: Final[dict[str, str]] = {
    "up": "Start everything in one process.",
    "serve": "Start a gateway, an API, workers, or everything.",
    "run": "Start a graph and print its outputs.",
    "tail": "Follow an execution, a graph or a job live.",
    "replay": "Print what happened, at the pace at which it happened.",
    "graphs": "Import, list and show graphs.",
    "executions": "List, show, stop and repeat executions.",
    "queue": "Look at the queue, pause it, let it go on.",
    "publish": "Put one event on the tape of a job.",
    "token": "Make and look at access tokens.",
    "config": "Show the settings and where they come from.",
    "db": "Look at the database, upgrade it, copy it.",
    "doctor": "Check this machine, the data folder and the server.",
    "version": "Show versions.",
}
"""Name -> one line of help. Each is `livetape.cli.commands.<name>:command`."""


class LazyGroup(click.Group):
    """Knows its commands by name; imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"livetape.cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from livetape.cli.facts import package_version

        click.echo(f"livetape {package_version()}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Data goes to standard output, talk to standard error. Exit codes and errors: docs/reference/errors.md.",
)
@click.option("--config", "config_file", metavar="FILE", help="Settings file; default livetape.toml here, if any.")
@click.option(
    "-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
@verbose_option
@click.pass_context
def cli(ctx: click.Context, config_file: str | None) -> None:
    """Run graphs of blocks and background jobs, and keep every step on a tape."""
    app_of(ctx).config_file = config_file


def run(argv: Sequence[str]) -> int:
    """Run a command; show what goes wrong as the table of errors says."""
    app = App()
    try:
        result = cli.main(list(argv), prog_name="livetape", standalone_mode=False, obj=app)
    except SystemExit:
        # Only click's answer when the reader of our output has had enough (`livetape tail ... | head`): no error.
        return 0
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return exc.exit_code
    except (Exception, KeyboardInterrupt) as exc:
        return report(app, exc)
    return result if isinstance(result, int) else 0


def report(app: App, exc: BaseException) -> int:
    """Show what went wrong; the exit code that belongs to it."""
    return _report(app, _known(single(exc)))


def _known(exc: BaseException) -> BaseException:
    """What others raise as an error of our table, where it has a line there."""
    from livetape.cli.errors import CommandError

    match exc:
        case click.UsageError():
            name = exc.ctx.command_path if exc.ctx else "livetape"
            return CommandError("usage", exc.format_message(), fix=f"{name} --help")
        case click.ClickException():
            return CommandError("bad_input", exc.format_message())
        case click.Abort() | KeyboardInterrupt():
            return CommandError("interrupted", "interrupted")
        case ModuleNotFoundError():
            return _missing(exc) or exc
        case _:
            return exc


def single(error: BaseException) -> BaseException:
    """What is inside a group that holds one error only."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _missing(exc: ModuleNotFoundError) -> CommandError | None:
    module = (exc.name or "").partition(".")[0]
    if not module or module == "livetape":
        return None
    from livetape.cli.errors import CommandError

    return CommandError(
        "missing_extra", "this command needs a part that is not installed", because=f"no module named {module}"
    )


def _report(app: App, error: BaseException) -> int:
    from livetape.cli.errors import CommandError, describe, row_of
    from livetape.errors import ConfigError

    if isinstance(error, ConfigError) and error.set_by is not None and error.set_by in app.sources:
        error.set_by = app.sources[error.set_by]  # whoever raised it knows the setting, not where it was set
    if app.verbose and not isinstance(error, CommandError):
        import traceback

        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    head, _, rest = describe(error).partition("\n")
    if app.color(sys.stderr):
        mark, _, what = head.partition(": ")
        head = f"{click.style(mark, fg='red', bold=True)}: {click.style(what, bold=True)}"
    click.echo(f"{head}\n{rest}" if rest else head, err=True, color=app.color(sys.stderr))
    return row_of(error).exit
