"""All settings, built once and passed down in pieces. Nothing is read when this is imported.

The names below are imported when they are asked for: a command that only talks to a server builds no settings, and what
it needs of them (`places`) it has without Pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from livetape.settings.load import ENV_PREFIX, Loaded, Overrides, load_settings
    from livetape.settings.model import EngineSettings, GatewaySettings, Settings
    from livetape.settings.places import is_loopback
    from livetape.settings.secret import read_or_create_secret, signing_key

__all__ = [
    "ENV_PREFIX",
    "EngineSettings",
    "GatewaySettings",
    "Loaded",
    "Overrides",
    "Settings",
    "is_loopback",
    "load_settings",
    "read_or_create_secret",
    "signing_key",
]

_HOMES: Final = {
    "ENV_PREFIX": "load",
    "EngineSettings": "model",
    "GatewaySettings": "model",
    "Loaded": "load",
    "Overrides": "load",
    "Settings": "model",
    "is_loopback": "places",
    "load_settings": "load",
    "read_or_create_secret": "secret",
    "signing_key": "secret",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{home}"), name)
