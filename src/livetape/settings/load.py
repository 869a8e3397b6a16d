"""Settings from flags, environment and file, each value with where it came from. Flags win, then the environment."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from livetape.errors import ConfigError
from livetape.settings.model import Settings
from livetape.settings.places import find_file, read_file

ENV_PREFIX: Final = "LIVETAPE_"
CLIENT_VARIABLES: Final = frozenset({"LIVETAPE_URL", "LIVETAPE_TOKEN", "LIVETAPE_CONFIG"})
"""Read by the commands that talk to a server; no settings of the server."""

FALLBACKS: Final[Mapping[str, tuple[str, ...]]] = {
    "jwt_verify_key": ("JWT_VERIFY_KEY", "SUPABASE_JWT_SECRET"),
    "jwt_sign_algorithm": ("JWT_SIGN_ALGORITHM",),
    "enable_metrics": ("ENABLE_METRICS",),
    "llm.base_url": ("OPENAI_BASE_URL",),
    "llm.api_key": ("OPENAI_API_KEY",),
}
"""Names of the seed, read when ours are not set."""

SECRET_FIELDS: Final = (
    "jwt_verify_key",
    "database",
    "store",
    "bus",
    "log",
    "ephemeral",
    "queue",
    "sentry_dsn",
    "llm.api_key",
)
"""Fields that may also be given as `<NAME>_FILE`, the path of a mounted secret."""

REDIS_VARIABLES: Final = ("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD")
"""Names of the seed: the Redis of a process that has to have one and was told of none in our names."""

RABBITMQ_VARIABLES: Final = ("RABBITMQ_HOST", "RABBITMQ_PORT", "RABBITMQ_DEFAULT_USER", "RABBITMQ_DEFAULT_PASS")
"""Likewise of RabbitMQ."""

Overrides: TypeAlias = Mapping[str, Any]
Values: TypeAlias = dict[str, tuple[Any, str]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, `{field path: where it was set}` for those that were, and what looks like a mistake."""

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...]


def load_settings(
    flags: Overrides,
    environ: Mapping[str, str],
    cwd: Path,
    *,
    config: Path | None = None,
    strict: bool = False,
    redis: bool = False,
    rabbitmq: bool = False,
) -> Loaded:
    """Build the settings: flags (`{field path: value}`, None: not given) > environment > file > defaults.

    The file is `config`, else `LIVETAPE_CONFIG`, else `livetape.toml` in `cwd`. `strict` refuses unknown names.
    `redis`: the process has to have a Redis; where no URL is set, `REDIS_HOST`, `REDIS_PORT` and `REDIS_PASSWORD` are
    read. `rabbitmq`: it shares its queue with others; where no URL is set, `RABBITMQ_HOST`, `RABBITMQ_PORT`,
    `RABBITMQ_DEFAULT_USER` and `RABBITMQ_DEFAULT_PASS` are.

    Raises:
        ConfigError: with `because`, `set_by` and `fix`.
    """
    known = dict(fields(Settings))
    warnings: list[str] = []
    values: Values = {}
    values.update(_from_file(find_file(config, environ, cwd), known, warnings))
    values.update(_from_environment(environ, known, warnings))
    values.update({path: (value, f"--{path.replace('_', '-')}") for path, value in flags.items() if value is not None})
    if redis and not {"bus", "log"} & values.keys():
        values.update(_seed_redis(environ))
    if rabbitmq and "queue" not in values:
        values.update(_seed_rabbitmq(environ))
    if strict and warnings:
        raise ConfigError(warnings[0], because="unknown settings are refused here", fix="remove or correct the name")
    try:
        settings = Settings.model_validate(_nested(values))
    except ValidationError as exc:
        raise _explain(exc, values) from None
    except ConfigError as exc:
        exc.set_by = ", ".join(values[p][1] if p in values else p for p in (exc.set_by or "").split(", ")) or None
        raise
    settings = settings.model_copy(update={"data_dir": cwd / settings.data_dir.expanduser()})
    return Loaded(settings, {path: source for path, (_, source) in values.items()}, tuple(warnings))


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf as (`section.name`, field)."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from fields(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def variable_of(path: str) -> str:
    """`gateway.max_channels` -> `LIVETAPE_GATEWAY__MAX_CHANNELS`."""
    return ENV_PREFIX + path.replace(".", "__").upper()


def _from_file(file: Path | None, known: Mapping[str, FieldInfo], warnings: list[str]) -> Values:
    if file is None:
        return {}
    values: Values = {}
    for path, value in _leaves(read_file(file), {name.rpartition(".")[0] for name in known}):
        if path in known:
            values[path] = (value, f"{path} in {file}")
        else:
            warnings.append(f"unknown key {path} in {file}{_suggest(path, {name: name for name in known})}")
    return values


def _leaves(tree: Mapping[str, Any], sections: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = prefix + name
        if isinstance(value, Mapping) and (path in sections or value):
            yield from _leaves(value, sections, path + ".")
        else:
            yield path, value


def _from_environment(environ: Mapping[str, str], known: Mapping[str, FieldInfo], warnings: list[str]) -> Values:
    values: Values = {}
    for path, names in FALLBACKS.items():
        for name in names:
            if environ.get(name):
                values[path] = (environ[name], f"{name} in the environment")
                break
    by_variable = {variable_of(path): path for path in known}
    for path in SECRET_FIELDS:
        name = variable_of(path) + "_FILE"
        if environ.get(name):
            values[path] = (_read_secret(Path(environ[name]), name), f"{name} in the environment")
    ours = CLIENT_VARIABLES | {variable_of(path) + "_FILE" for path in SECRET_FIELDS}
    for name, text in sorted(environ.items()):
        if not name.upper().startswith(ENV_PREFIX) or name in ours or not text:
            continue
        found = by_variable.get(name.upper())
        if found is None:
            bare = {variable.removeprefix(ENV_PREFIX): variable for variable in by_variable}
            hint = _suggest(name.upper().removeprefix(ENV_PREFIX), bare)
            warnings.append(f"unknown variable {name} in the environment{hint}")
        else:
            values[found] = (_value(text, known[found]), f"{name} in the environment")
    return values


def _seed_redis(environ: Mapping[str, str]) -> Values:
    host, port, password = (environ.get(name, "") for name in REDIS_VARIABLES)
    if not host and not port:
        return {}
    login = f":{quote(password, safe='')}@" if password else ""
    host = f"[{host}]" if ":" in host else host or "localhost"
    names = ", ".join(name for name in REDIS_VARIABLES if environ.get(name))
    return {"bus": (f"redis://{login}{host}:{port or 6379}/0", f"{names} in the environment")}


def _seed_rabbitmq(environ: Mapping[str, str]) -> Values:
    host, port, user, password = (environ.get(name, "") for name in RABBITMQ_VARIABLES)
    if not host and not port:
        return {}
    login = f"{quote(user or 'guest', safe='')}:{quote(password or 'guest', safe='')}@"
    host = f"[{host}]" if ":" in host else host or "localhost"
    names = ", ".join(name for name in RABBITMQ_VARIABLES if environ.get(name))
    return {"queue": (f"amqp://{login}{host}:{port or 5672}/", f"{names} in the environment")}


def _read_secret(file: Path, variable: str) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"cannot read the secret file {file}",
            because=str(exc),
            set_by=f"{variable} in the environment",
            fix="name a file that this user may read",
        ) from exc


def _value(text: str, field: FieldInfo) -> Any:
    """Lists are comma-separated or JSON; everything else is left to the model."""
    if "tuple" not in str(field.annotation):
        return text
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return [part.strip() for part in text.split(",") if part.strip()]


def _suggest(name: str, known: Mapping[str, str]) -> str:
    """`known`: what it is compared with -> what is suggested."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {known[close[0]]}?" if close else ""


def _nested(values: Values) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, (value, _) in values.items():
        section, _, name = path.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree


def _explain(error: ValidationError, values: Values) -> ConfigError:
    """One error for all that is wrong; the first names itself."""
    problems = []
    for issue in error.errors(include_url=False, include_context=False, include_input=False):
        if issue["type"] == "default_factory_not_called":
            continue  # only because another field is wrong
        path = ".".join(str(part) for part in issue["loc"] if isinstance(part, str))
        reason = issue["msg"].removeprefix("Value error, ")
        within = [source for name, (_, source) in values.items() if name == path or name.startswith(f"{path}.")]
        problems.append((path, reason, ", ".join(within) or path))
    path, reason, source = problems[0]
    others = "".join(f"; {name}: {why} ({where})" for name, why, where in problems[1:])
    return ConfigError(
        f"{path} cannot be used",
        because=reason + others,
        set_by=source,
        fix=f"correct or remove it; docs/reference/settings.md says what {path} means",
    )
