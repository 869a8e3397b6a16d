"""Options that several commands share, and what one run of the command line knows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from livetape.settings import Loaded

F = TypeVar("F", bound=Callable[..., Any])


class App:
    """What is known of this call of the program."""

    def __init__(self) -> None:
        self.verbose = 0
        self.config_file: str | None = None
        self.url: str | None = None
        self.token: str | None = None
        self.data_dir: str | None = None
        self.sources: Mapping[str, str] = {}

    def color(self, stream: IO[str]) -> bool:
        """Whether to colour what goes there."""
        if os.environ.get("NO_COLOR"):
            return False
        return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()

    def say(self, text: str) -> None:
        """Talk: to standard error, so that standard output holds data only."""
        click.echo(text, err=True, color=self.color(sys.stderr))

    def load(self, *, warn: bool = True, redis: bool = False, **flags: Any) -> Loaded:
        """The settings of this call. `redis`: it is a process among others; see `load_settings`, `rabbitmq` too."""
        from livetape.settings import load_settings

        config = Path(self.config_file) if self.config_file else None
        loaded = load_settings(
            {"data_dir": self.data_dir, **flags},
            os.environ,
            Path.cwd(),
            config=config,
            redis=redis,
            rabbitmq=redis,
        )
        self.sources = loaded.sources
        for warning in loaded.warnings if warn else ():
            self.say(f"warning: {warning}")
        return loaded

    def data_folder(self) -> Path:
        """Where the server of this machine says that it is. No more of the settings is looked at, and none built."""
        from livetape.settings.places import data_folder

        config = Path(self.config_file) if self.config_file else None
        return data_folder(self.data_dir, os.environ, Path.cwd(), config=config)


def app_of(ctx: click.Context) -> App:
    """The App of this call."""
    app = ctx.find_root().obj
    if not isinstance(app, App):  # a command called by itself, as tests do
        app = ctx.find_root().obj = App()
    return app


def _set_verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    app_of(ctx).verbose = max(app_of(ctx).verbose, value)


def verbose_option(command: F) -> F:
    """`-v`: tracebacks and more talk."""
    return click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_set_verbose, help="Say more; show tracebacks."
    )(command)


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and param.name:
        setattr(app_of(ctx), param.name, value)


def _kept(name: str, **attributes: Any) -> Callable[[F], F]:
    return click.option(name, expose_value=False, callback=_keep, **attributes)


def data_dir_option(command: F) -> F:
    """`--data-dir`."""
    return _kept("--data-dir", metavar="DIR", help="Data folder; default .livetape.")(command)


def target_options(command: F) -> F:
    """`--url`, `--token`, `--data-dir` and `-v`, kept in the App."""
    for option in (
        verbose_option,
        data_dir_option,
        _kept("--token", metavar="JWT", help="Access token; default LIVETAPE_TOKEN, else none."),
        _kept("--url", metavar="URL", help="Server; default LIVETAPE_URL, else that of the data folder."),
    ):
        command = option(command)
    return command


UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Duration(click.ParamType[float]):
    """Seconds: `90`, `1.5s`, `10m`, `1h`, `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip().lower()
        unit = next((u for u in ("ms", "s", "m", "h", "d") if text.endswith(u)), "")
        try:
            seconds = float(text.removesuffix(unit)) * UNITS.get(unit, 1.0)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 1e10:
            self.fail(f"{value!r} is not a duration; write 90, 1.5s, 10m, 1h or 7d", param, ctx)
        return seconds


def read_json(text: str, what: str) -> Any:
    """JSON given as `-` (standard input), `@file` or text."""
    import json

    from livetape.cli.errors import CommandError

    source = what
    try:
        if text == "-":
            source = "standard input"
            text = sys.stdin.read()
        elif text.startswith("@"):
            source = text[1:]
            text = Path(source).read_text("utf-8")
        return json.loads(text)
    except OSError as exc:
        raise CommandError("bad_input", f"cannot read {source}", because=exc.strerror or str(exc), set_by=what) from exc
    except ValueError as exc:
        raise CommandError(
            "bad_input", f"{source} is not JSON", because=str(exc), set_by=what, fix="a text needs quotes: '\"text\"'"
        ) from exc
