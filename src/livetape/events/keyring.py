"""The keys that payloads are encrypted with: several at a time, one of them current."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, Protocol, Self

from livetape.errors import ConfigError, DecryptionError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12

_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FORM: Final = "write each key as name:base64, the current one first"


class Sealed(NamedTuple):
    """What was encrypted: under which key, the nonce, and the text with its 16-byte seal at the end."""

    kid: str
    nonce: bytes
    data: bytes


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class KeyRing:
    """AES-256-GCM keys by name. Encrypts with `current`, decrypts with any; so a new key is added first, then made
    current, and the old one stays as long as something encrypted with it is to be read.

    `keys` are 32 random bytes each, under names of 1 to 64 letters, digits and `._-`. Names stand in clear on the
    wire. Keys are never shown: not by `repr`, not in errors, and a ring is not pickled.

    Nonces are random. Change the key before 2**32 messages (four thousand million) were encrypted with it.

    Safe for use by several threads, and in a forked process.

    Raises:
        ConfigError: not such keys, or `cryptography` is not installed.
    """

    __slots__ = ("_ciphers", "_current", "_invalid")

    def __init__(self, keys: Mapping[str, bytes], *, current: str) -> None:
        if current not in keys:
            raise ConfigError(
                f"there is no key {current!r} to encrypt with", fix=f"use one of {', '.join(sorted(keys)) or 'no keys'}"
            )
        for kid, key in keys.items():
            if not _KEY_ID.fullmatch(kid):
                raise ConfigError("the name of a key has 1 to 64 letters, digits and ._-", kid=kid[:100])
            if not _is_key(key):
                raise ConfigError(
                    f"the key {kid} is not one", because=f"a key is {KEY_BYTES} bytes", fix="make one: KeyRing.generate"
                )
        try:
            make = import_module("cryptography.hazmat.primitives.ciphers.aead").AESGCM
            self._invalid: type[Exception] = import_module("cryptography.exceptions").InvalidTag
        except ModuleNotFoundError as error:
            raise ConfigError(
                "encryption needs a package that is not installed",
                because=str(error),
                fix="pip install 'livetape[encryption]'",
            ) from error
        self._ciphers: dict[str, _Cipher] = {kid: make(bytes(key)) for kid, key in keys.items()}
        self._current = current

    @staticmethod
    def generate(kid: str) -> str:
        """A new random key as `name:base64`, one line of what `parse` reads. Keep it secret.

        Raises:
            ConfigError: not a name for a key.
        """
        if not _KEY_ID.fullmatch(kid):
            raise ConfigError("the name of a key has 1 to 64 letters, digits and ._-", kid=kid[:100])
        return f"{kid}:{base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()}"

    @classmethod
    def parse(cls, text: str, *, source: str = "the text") -> Self:
        """From lines (or parts between commas) `name:base64`; the first is the current one, `#` begins a comment.

        Raises:
            ConfigError: nothing of this form. It names `source` and the key, never its text.
        """
        keys: dict[str, bytes] = {}
        for line in text.splitlines():
            for part in line.partition("#")[0].split(","):
                if not part.strip():
                    continue
                kid, colon, encoded = part.strip().partition(":")
                if not colon:  # it may be the key itself: not shown
                    raise ConfigError(f"a key in {source} has no name", set_by=source, fix=_FORM)
                if kid in keys:
                    raise ConfigError(f"the key {kid[:64]} stands twice in {source}", set_by=source, fix=_FORM)
                keys[kid] = _decoded(kid, encoded, source)
        if not keys:
            raise ConfigError(f"there is no key in {source}", set_by=source, fix=_FORM)
        return cls(keys, current=next(iter(keys)))

    @classmethod
    def from_env(cls, variable: str, environ: Mapping[str, str] | None = None) -> Self:
        """From this environment variable, in the form that `parse` reads.

        Raises:
            ConfigError: it is not set, or is not of this form.
        """
        text = (os.environ if environ is None else environ).get(variable, "")
        return cls.parse(text, source=f"{variable} in the environment")

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """From a file in the form that `parse` reads. It should be readable by this user alone.

        Raises:
            ConfigError: it cannot be read, or is not of this form.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            because = error.strerror or "it cannot be read" if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"cannot read the keys in {path}", because=because, set_by=str(path)) from None
        return cls.parse(text, source=str(path))

    @property
    def current(self) -> str:
        """The name of the key that encrypts."""
        return self._current

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all keys."""
        return tuple(self._ciphers)

    def encrypt(self, plain: bytes, bound_to: bytes) -> Sealed:
        """Encrypt with the current key. It can be decrypted only with the same `bound_to`, which is not stored."""
        nonce = os.urandom(NONCE_BYTES)
        kid = self._current
        return Sealed(kid, nonce, self._ciphers[kid].encrypt(nonce, plain, _bound(kid, bound_to)))

    def decrypt(self, sealed: Sealed, bound_to: bytes) -> bytes:
        """What was encrypted.

        Raises:
            DecryptionError: its key is missing or another, or it was changed, or was bound to something else.
        """
        cipher = self._ciphers.get(sealed.kid)
        if cipher is None:
            raise DecryptionError("the key of this event is not here", kid=sealed.kid)
        if len(sealed.nonce) != NONCE_BYTES:
            raise DecryptionError("this is not an encrypted event: its nonce has another length", kid=sealed.kid)
        try:
            return cipher.decrypt(sealed.nonce, sealed.data, _bound(sealed.kid, bound_to))
        except (self._invalid, ValueError):
            raise DecryptionError(
                "this event cannot be decrypted: it was changed or moved, or its key is another", kid=sealed.kid
            ) from None

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._ciphers)}; current={self._current})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key ring is not pickled: keys would leave the process")


def _is_key(key: object) -> bool:
    return isinstance(key, bytes | bytearray) and len(key) == KEY_BYTES


def _bound(kid: str, bound_to: bytes) -> bytes:
    return b"livetape:1:%b:%b" % (kid.encode(), bound_to)


def _decoded(kid: str, encoded: str, source: str) -> bytes:
    text = encoded.strip().replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"the key {kid[:64]} in {source} is not base64", set_by=source, fix=_FORM) from None
