"""Which web pages may call, as `CORSMiddleware` takes it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, TypedDict
from urllib.parse import SplitResult, urlsplit

from livetape.errors import ConfigError

PATTERN: Final = "regex:"
PRODUCTION: Final = frozenset({"prod", "production"})
TWINS: Final = {"localhost": "127.0.0.1", "127.0.0.1": "localhost"}
LOCAL: Final = frozenset({*TWINS, "::1"})
LOCAL_ORIGINS: Final = tuple(
    f"{scheme}://{host}{port}"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "[::1]")
    for port in ("", ":80", ":443", ":3000", ":5173", ":8000", ":8080")
)


class CorsError(ConfigError, ValueError):
    """These origins cannot be allowed."""


class CorsParams(TypedDict):
    """Two arguments of `CORSMiddleware`."""

    allow_origins: list[str]
    allow_origin_regex: str | None


def build_cors_params(origins: Sequence[str], app_env: str) -> CorsParams:
    """From exact http(s) origins and `regex:<pattern>` entries, which have to match a whole origin.

    An origin on this machine needs its port, and stands for both names, `localhost` and `127.0.0.1`. In production
    (`prod`, `production`) no origin on this machine is allowed, neither by name nor by a pattern that lets one in.

    Raises:
        CorsError: a ValueError: an entry that is none of these, or not for production.
    """
    production = app_env.lower() in PRODUCTION
    exact: dict[str, None] = {}
    patterns: list[str] = []
    for entry in map(str.strip, origins):
        if entry.startswith(PATTERN):
            patterns.append(_pattern(entry.removeprefix(PATTERN), production=production))
        else:
            exact.update(dict.fromkeys(_exact(entry, production=production)))
    alternatives = [f"(?:{pattern})" for pattern in patterns]
    joined = alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"
    return {"allow_origins": list(exact), "allow_origin_regex": f"^{joined}$" if alternatives else None}


def _exact(entry: str, *, production: bool) -> Iterator[str]:
    parts, port = _split(entry)
    host = parts.hostname or ""
    if host not in LOCAL:
        yield f"{parts.scheme}://{parts.netloc}"
        return
    if production:
        raise CorsError(f"{entry} is this machine", fix="name the origins of the pages in production")
    if port is None:
        raise CorsError(f"{entry} has no port", fix=f"write the port too, for instance {entry}:3000")
    yield f"{parts.scheme}://{parts.netloc}"
    if host in TWINS:
        yield f"{parts.scheme}://{TWINS[host]}:{port}"


def _split(entry: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(entry.lower().rstrip("/"))
        port = parts.port
    except ValueError as error:
        raise CorsError(f"{entry} is no origin", because=str(error)) from error
    more = parts.path or parts.query or parts.fragment or "@" in parts.netloc or "*" in parts.netloc
    if parts.scheme not in {"http", "https"} or not parts.hostname or more:
        raise CorsError(f"{entry!r} is no origin", fix="write http(s)://host[:port], or regex:<pattern>")
    return parts, port


def _pattern(text: str, *, production: bool) -> str:
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise CorsError(f"{text} is no regular expression", because=str(error)) from error
    if not text:
        raise CorsError("a pattern is empty", fix="regex:<pattern>")
    plain = text.lower().replace("\\", "")
    if production and (
        any(host in plain for host in LOCAL) or any(compiled.fullmatch(origin) for origin in LOCAL_ORIGINS)
    ):
        raise CorsError(f"the pattern {text} lets in pages of this machine", fix="make it narrower")
    return text
