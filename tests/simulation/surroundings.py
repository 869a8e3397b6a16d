"""What a history changes around it while it runs: pauses of the engine, the collector of garbage, the logs."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from livetape.adapters.sql import leasing
from livetape.engine import outlets, relay

RELAY_LOOKS_S: Final = 8.0
COPIES_LOOKED_AFTER_S: Final = 20.0
"""The log that watchers read loses nothing here."""

RECOVERY_DELAYS_S: Final = (0, 1, 2, 5, 12)
"""Instead of up to two minutes."""


@contextmanager
def times_of_histories() -> Iterator[None]:
    """Constants of the engine that most of a history would be spent waiting for."""
    here: list[tuple[ModuleType, dict[str, Any]]] = [
        (relay, {"LOOK_S": RELAY_LOOKS_S, "MARK_EVERY_S": RELAY_LOOKS_S / 4}),
        (outlets, {"LOOK_S": COPIES_LOOKED_AFTER_S}),
        (leasing, {"RECOVERY_DELAYS_S": RECOVERY_DELAYS_S}),
    ]
    before = [(module, {name: vars(module)[name] for name in values}) for module, values in here]
    try:
        for module, values in here:
            vars(module).update(values)
        yield
    finally:
        for module, values in before:
            vars(module).update(values)


@contextmanager
def without_collections() -> Iterator[None]:
    """What a history leaves behind is collected after it: that takes a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def quiet() -> Iterator[None]:
    """The engine says a lot when everything goes wrong."""
    logger = logging.getLogger("livetape")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
