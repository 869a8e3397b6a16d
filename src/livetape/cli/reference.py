"""Writes pages of docs/reference from the code: `python -m livetape.cli.reference [FOLDER]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import Enum
from inspect import cleandoc
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from livetape.cli.app import cli
from livetape.cli.errors import EXIT_CODES, TABLE
from livetape.engine.block import BlockType
from livetape.engine.blocks import builtin_blocks
from livetape.figures import FIGURES, PARTS
from livetape.settings import Settings
from livetape.settings.load import FALLBACKS, SECRET_FIELDS, fields, variable_of

PIPE = "\\|"
NOTE = "<!-- Made by `python -m livetape.cli.reference`; a test fails when it is not fresh. -->"


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {
        "blocks.md": blocks_page(),
        "cli.md": cli_page(),
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
    }


def blocks_page() -> str:
    """Every block with its pins."""
    blocks = sorted(builtin_blocks(), key=lambda block: block.name.lower())
    lines = [
        "# Blocks",
        NOTE,
        "",
        "The blocks that come with livetape. A pin in bold must have a value, by a link or as an input default; the",
        "others show their default. `→` marks outputs; every block also has the output `error`: what went wrong.",
        "*pure*: a result may be used again. *reads*: it changes nothing anywhere. *static*: its last value is kept",
        "for later executions of what is downstream. [How to write a block](../howto/blocks.md).",
        "",
    ]
    for block in blocks:
        said = [f"`{block.id}`", ", ".join(category.name.lower() for category in block.categories)]
        said += [f"type {block.block_type.value}"] if block.block_type is not BlockType.STANDARD else []
        said += [word for word, is_so in (("pure", block.pure), ("reads", block.read_only)) if is_so]
        said += [word for word, is_so in (("static", block.static_output), ("disabled", block.disabled)) if is_so]
        said += [f"at most {block.timeout:g} s"] if block.timeout is not None else []
        said += [f"{block.retries.attempts} attempts"] if block.retries is not None else []
        lines += [f"## {block.name}", "", block.description, "", "; ".join(said), ""]
        lines += ["| pin | type | default |", "| --- | --- | --- |"]
        lines += [_input_pin(name, field) for name, field in block.Input.model_fields.items()]
        lines += [
            f"| → `{name}` | {_type(field)} | |" for name, field in block.Output.model_fields.items() if name != "error"
        ]
        lines.append("")
    lines.pop()
    return "\n".join(lines) + "\n"


def _input_pin(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return f"| **`{name}`** | {_type(field)} | |"
    default = field.get_default(call_default_factory=True, validated_data={})
    value = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    return f"| `{name}` | {_type(field)} | `{json.dumps(value, ensure_ascii=False)}` |"


def _type(field: FieldInfo) -> str:
    return _type_name(field.annotation).replace("|", PIPE)


def _type_name(kind: Any) -> str:
    """As people write it: without limits, models by their names, options by their values."""
    if kind is Any:
        return "any"
    if kind is None or kind is type(None):
        return "null"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(f"`{option}`" for option in arguments)
    if origin is Union or origin is UnionType:
        return " | ".join(map(_type_name, arguments))
    if origin is not None:
        inner = [_type_name(part) for part in arguments]
        return f"{origin.__name__} of {inner[-1]}" if set(inner) - {"any"} else origin.__name__
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(f"`{option.value}`" for option in kind)
    return str(kind.__name__)


def cli_page() -> str:
    """Every command with its arguments and options."""
    context = click.Context(cli, info_name="livetape", **cli.context_settings)
    lines = ["# Command line", NOTE, "", str(cli.help), ""]
    lines += [
        "Data goes to standard output, everything else to standard error. `NO_COLOR` turns colours off.",
        "The server is found by `--url`, else `LIVETAPE_URL`, else the `server.json` of the data folder; the token by",
        "`--token`, else `LIVETAPE_TOKEN`. On a loopback address no token is needed on the same machine.",
        "",
        *_options(cli, context),
    ]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        lines += _command(command, click.Context(command, info_name=name, parent=context), 2)
    lines += ["## Exit codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Every setting."""
    lines = [
        "# Settings",
        NOTE,
        "",
        "A setting comes from a flag, else the environment, else the file `livetape.toml` of the working folder",
        "(another by `--config` or `LIVETAPE_CONFIG`), else its default. In the file, sections are tables:",
        "`[gateway]`. Lists in the environment are divided by commas. An empty variable counts as not set.",
        "`livetape config show --show-sources` says where each value came from. A name that is not known is reported",
        "with the nearest one.",
        "",
    ]
    for section, group in groupby(fields(Settings), lambda item: item[0].rpartition(".")[0]):
        title = f"`[{section}]`: {Settings.model_fields[section].description}" if section else "General"
        lines += [f"## {title}", "", "| setting | variable | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_setting(path, field) for path, field in group]
        lines.append("")
    lines.pop()
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Every error code with its remedy."""
    lines = [
        "# Errors of the command line",
        NOTE,
        "",
        "Every error has a stable code, says what happened, because of what, where it was set, and what to do.",
        "`-v` adds the traceback. Where the REST interface has the same error, its `code` is the second column.",
        "",
        "| code | name | exit code | what | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f'| <a id="{row.code.lower()}"></a>{row.code} | `{row.key}` | {row.exit} | {row.what} | {row.fix} |'
        for row in TABLE
    ]
    lines += ["", "## Exit codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Every figure of `/metrics`."""
    lines = [
        "# Metrics",
        NOTE,
        "",
        "What `/metrics` shows, and what is given to whatever is passed as `metrics=`. On `/metrics` each name has the",
        "namespace before it (`livetape_`, another by `LIVETAPE_METRICS_NAMESPACE`), except for those that begin with",
        "`execution_manager_`. With `--workers` or `--metrics-port` each figure has the label `worker`, too. A figure",
        "is there once there was something to count. What the fan-out counts, it counts once for all recipients.",
        "",
    ]
    for part in PARTS:
        lines += [f"## {part.title}", "", "| name | type | labels | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{figure.name}` | {figure.kind} | {', '.join(f'`{label}`' for label in figure.labels)} "
            f"| {figure.meaning} |"
            for figure in part.figures
        ]
        lines.append("")
    lines += ["## Buckets", ""]
    for buckets in dict.fromkeys(figure.buckets for figure in FIGURES.values() if figure.buckets):
        names = ", ".join(f"`{figure.name}`" for figure in FIGURES.values() if figure.buckets == buckets)
        lines += [f"{names}: up to {', '.join(f'{bucket:g}' for bucket in buckets)} seconds, and more.", ""]
    lines.pop()
    return "\n".join(lines) + "\n"


def _setting(path: str, field: FieldInfo) -> str:
    default = "" if field.default_factory else f"`{_default(field.default)}`"
    also = [*FALLBACKS.get(path, ()), *([f"{variable_of(path)}_FILE"] if path in SECRET_FIELDS else [])]
    extra = f" Also read: {', '.join(f'`{name}`' for name in also)}." if also else ""
    return f"| `{path}` | `{variable_of(path)}` | {default} | {field.description}{extra} |"


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    arguments = [piece for param in command.get_params(context) for piece in param.get_usage_pieces(context)]
    yield f"{'#' * level} `{' '.join([context.command_path, *arguments])}`"
    yield ""
    yield cleandoc(command.help or "")
    yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _command(child, click.Context(child, info_name=name, parent=context), level + 1)
        return
    yield from _options(command, context)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    yield "| option | meaning |"
    yield "| --- | --- |"
    for option in sorted(options, key=lambda option: option.name == "help"):
        name, meaning = option.get_help_record(context) or ("", "")
        yield (
            f"| `{name}` | {meaning} |".replace("[", "\\[")
            .replace("|", "\\|")
            .replace("\\| ", "| ")
            .replace(" \\|", " |")
        )
    yield ""


def _default(value: Any) -> str:
    if value is None or isinstance(value, SecretStr):
        return "None"
    if isinstance(value, tuple):
        return ",".join(value) or "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def main(folder: str = "docs/reference") -> None:
    """Write the pages."""
    for name, text in pages().items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
