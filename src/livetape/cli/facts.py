"""Versions of what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "pydantic",
    "click",
    "fastapi",
    "httpx2",
    "pyjwt",
    "rich",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "uvloop",
    "websockets",
)


def package_version(name: str = "livetape") -> str:
    """The version, or `unknown` for a tree that was not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def package_versions() -> dict[str, str | None]:
    """What matters for a report; None: not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        text = package_version(name)
        found[name] = None if text == "unknown" else text
    return found
