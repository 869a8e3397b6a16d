"""The one place that joins settings, adapters and components into a running process.

Nothing else picks an adapter, and nothing here knows how a component works. What is opened is closed in the reverse
order; a service that ends by itself takes the process with it, because a half-running server is a lie.

The names below are imported when they are asked for: a gateway alone needs neither the engine nor a database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from livetape.runtime.access import development_user
    from livetape.runtime.engine import Engine, load_blocks, open_engine
    from livetape.runtime.first_start import install_examples
    from livetape.runtime.gateway import serve_gateway
    from livetape.runtime.platform import ServerInfo, serve

__all__ = [
    "Engine",
    "ServerInfo",
    "development_user",
    "install_examples",
    "load_blocks",
    "open_engine",
    "serve",
    "serve_gateway",
]

_HOMES: Final = {
    "Engine": "engine",
    "ServerInfo": "platform",
    "development_user": "access",
    "install_examples": "first_start",
    "load_blocks": "engine",
    "open_engine": "engine",
    "serve": "platform",
    "serve_gateway": "gateway",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{home}"), name)
