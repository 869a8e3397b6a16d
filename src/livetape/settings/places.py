"""What is known of the settings without building them: where the file and the data folder are. No Pydantic."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from livetape.errors import ConfigError

FILE_NAME: Final = "livetape.toml"
DATA_DIR: Final = ".livetape"
SERVER_FILE: Final = "server.json"
"""In the data folder: where its server answers, while there is one."""

_DATA_VARIABLE: Final = "LIVETAPE_DATA_DIR"


def find_file(config: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The settings file: `config`, else `LIVETAPE_CONFIG`, else `livetape.toml` in `cwd` if it is there.

    Raises:
        ConfigError: the one that was named is not there.
    """
    asked = config or (Path(environ["LIVETAPE_CONFIG"]) if environ.get("LIVETAPE_CONFIG") else None)
    if asked is None:
        default = cwd / FILE_NAME
        return default if default.is_file() else None
    if not (cwd / asked).is_file():
        raise ConfigError(
            f"no settings file {asked}",
            set_by="--config" if config else "LIVETAPE_CONFIG in the environment",
            fix="name a TOML file that exists, or leave it out",
        )
    return cwd / asked


def read_file(file: Path) -> dict[str, Any]:
    """Its tables.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(
            f"cannot read {file.name}", because=str(exc), set_by=str(file), fix="correct the file; it is TOML"
        ) from exc


def data_folder(flag: str | None, environ: Mapping[str, str], cwd: Path, *, config: Path | None = None) -> Path:
    """The data folder that `load_settings` would find with the same arguments, when that finds no fault.

    Raises:
        ConfigError: as `find_file` and `read_file`.
    """
    file = find_file(config, environ, cwd)
    told = read_file(file).get("data_dir") if file else None
    found = told if isinstance(told, str) else DATA_DIR
    for name, text in sorted(environ.items()):
        if name.upper() == _DATA_VARIABLE and text:
            found = text
    return cwd / Path(found if flag is None else flag).expanduser()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
