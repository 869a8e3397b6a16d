"""The data folder's own key for tokens: made once, readable by its owner alone."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from livetape.errors import ConfigError
from livetape.settings.model import Settings

SECRET_FILE = "secret.key"  # noqa: S105 - a file name
MIN_SECRET_CHARS = 32


def read_or_create_secret(data_dir: Path) -> str:
    """The secret of this data folder; made on first use, by exactly one of those who come at once.

    Raises:
        ConfigError: it cannot be read or made, or it is too short to be one.
    """
    path = data_dir / SECRET_FILE
    try:
        if not path.exists():
            _create(path)
    except OSError as exc:
        raise _unusable(path, exc) from exc
    return read_secret(data_dir)


def read_secret(data_dir: Path) -> str:
    """The secret of this data folder.

    Raises:
        ConfigError: it cannot be read, or it is too short to be one.
    """
    path = data_dir / SECRET_FILE
    try:
        secret = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise _unusable(path, exc) from exc
    if len(secret) < MIN_SECRET_CHARS:
        raise ConfigError(
            f"the secret {path} is not one",
            because=f"it has {len(secret)} characters, fewer than {MIN_SECRET_CHARS}",
            set_by="data_dir",
            fix=f"restore it, or remove {path}: a new one is made, and tokens made before are refused",
        )
    return secret


def _unusable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"cannot use the secret {path}",
        because=str(error),
        set_by="data_dir",
        fix=f"make {path.parent} writable for this user, or choose another with --data-dir",
    )


def signing_key(settings: Settings) -> str:
    """The key that tokens are checked with: the one that was set, else the data folder's."""
    if settings.jwt_verify_key is not None:
        return settings.jwt_verify_key.get_secret_value()
    return read_or_create_secret(settings.data_dir)


def _create(path: Path) -> None:
    """Write elsewhere, then link: a reader sees no file or a whole one, and the first writer wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
