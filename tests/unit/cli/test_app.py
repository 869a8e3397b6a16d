"""The command group: what it loads, how it fails."""

from __future__ import annotations

import builtins
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import pytest

from livetape import errors
from livetape.cli import main
from livetape.cli.app import COMMANDS, cli
from livetape.cli.errors import EXIT_CODES, TABLE, CommandError, describe, row_of
from unit.cli.fake import Result

Call = Callable[..., Result]

HEAVY = {
    "alembic",
    "asyncio",
    "fastapi",
    "httpx2",
    "jwt",
    "pydantic",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "websockets",
}


def classes() -> list[type[errors.LivetapeError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [cls for cls in found if issubclass(cls, errors.LivetapeError)]


def test_help_is_quick_and_loads_no_command() -> None:
    code = (
        "import sys; from livetape.cli import main; main(['--help']); print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took = time.monotonic() - begin
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert loaded & HEAVY == set()
    assert not any(name.startswith("livetape.cli.commands") for name in done.stderr.split())
    for name, text in COMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout
    assert took < 5, "loose: the figure is 0.2 s on a quiet machine"


def test_the_version_needs_no_click() -> None:
    code = "import sys; from livetape.cli import main; main(['--version']); sys.exit('click' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("livetape ")


def test_module_and_group_answer_alike(call: Call) -> None:
    done = subprocess.run([sys.executable, "-m", "livetape", "-V"], capture_output=True, text=True, check=True)
    assert done.stdout == call("--version").out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(call: Call, name: str) -> None:
    result = call(name, "--help")
    assert result.code == 0
    assert "Usage: livetape" in result.out
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name


def test_every_option_is_explained() -> None:
    def check(command: click.Command) -> None:
        for param in command.params:
            if isinstance(param, click.Option) and param.opts != ["--output"]:
                assert param.help, f"{command.name} {param.opts}"
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                check(child)

    check(cli)


def test_without_click_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def no_click(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "click":
            raise ModuleNotFoundError("No module named 'click'", name="click")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_click)
    assert main(["up"]) == 2
    assert 'pip install "livetape[platform]"' in capsys.readouterr().err


def test_a_missing_part_is_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    monkeypatch.delitem(sys.modules, "livetape.auth", raising=False)
    monkeypatch.delitem(sys.modules, "livetape.cli.commands.token", raising=False)
    result = call("token", "create", "--user", "u")
    assert result.code == 2
    assert "error[LT-E202]" in result.err
    assert "jwt" in result.err
    assert "livetape[platform]" in result.err


def test_a_mistyped_command_gets_a_suggestion(call: Call) -> None:
    result = call("tial", "x")
    assert result.code == 2
    assert result.err == "error[LT-E201]: No such command 'tial'. Did you mean tail?\n  fix       livetape --help\n"


def test_no_command_shows_the_help(call: Call) -> None:
    result = call()
    assert result.code == 2
    assert result.err.startswith("Usage: livetape")


def test_wrong_options_are_usage_errors(call: Call) -> None:
    assert call("tail").code == 2
    assert call("up", "--port", "x").code == 2
    result = call("run", "g", "--watch", "--detach")
    assert (result.code, result.out) == (2, "")
    assert "fix       livetape run --help" in result.err


def test_a_configuration_error_has_all_four_parts(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETAPE_FILES", "s3://bucket")
    result = call("config", "show")
    assert result.code == 3
    assert result.out == ""
    assert result.err == (
        "error[LT-E300]: files: s3:// is not there yet\n"
        "  because   files has file:// in this version\n"
        "  set by    LIVETAPE_FILES in the environment\n"
        "  fix       unset LIVETAPE_FILES: the embedded one is then used\n"
    )


def test_unforeseen_errors_show_a_traceback_only_on_request(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetape.cli.commands.version.package_versions", lambda: 1 / 0)
    plain = call("version")
    assert plain.code == 1
    assert plain.err.startswith("error[LT-E101]: internal error\n  because   ZeroDivisionError")
    assert "Traceback" not in plain.err
    assert "-v" in plain.err
    assert "Traceback" in call("-v", "version").err


def test_colours_are_off_for_pipes_and_no_color(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in call("nope").err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31m" in call("nope").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in call("nope").err


def test_the_table_of_errors_is_sound() -> None:
    assert len({row.code for row in TABLE}) == len(TABLE)
    assert len({row.key for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row.exit in EXIT_CODES
        assert row.exit != 0
        assert row.what.endswith(".")
        assert row.fix


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_error_class_has_its_own_line(cls: type[errors.LivetapeError]) -> None:
    row = row_of(cls())
    assert row.key == cls.code, "add a line to livetape.cli.errors.TABLE"
    assert describe(cls()).startswith(f"error[{row.code}]: ")


def test_an_unknown_subclass_has_the_line_of_its_ancestor() -> None:
    class NewError(errors.NotFoundError):
        code = "brand_new"

    assert row_of(NewError("x")).key == "not_found"
    assert row_of(OSError("x")).key == "internal"
    assert row_of(CommandError("no such key", "x")).key == "error"


def test_causes_and_node_errors_are_shown() -> None:
    damaged = errors.StoreError("the database is damaged")
    damaged.__cause__ = ValueError("file is not a database")
    assert "  because   file is not a database" in describe(damaged)
    text = describe(errors.GraphValidationError("2 issues", node_errors={"n": {"a": "missing", "b": "wrong"}}))
    assert text.splitlines()[1:3] == ["  because   n: a: missing", "            n: b: wrong"]


def test_interruption_is_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("livetape.cli.commands.version.package_versions", interrupt)
    assert call("version").code == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{shlex.quote(sys.executable)} -m livetape config show --show-defaults | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith("SETTING")
    assert done.stdout.splitlines()[1] == "0"
