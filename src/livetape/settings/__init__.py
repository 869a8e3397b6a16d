"""All settings, built once and passed down in pieces. Nothing is read when this is imported."""

from __future__ import annotations

from livetape.settings.load import ENV_PREFIX, Loaded, Overrides, load_settings
from livetape.settings.model import EngineSettings, GatewaySettings, Settings, is_loopback
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
