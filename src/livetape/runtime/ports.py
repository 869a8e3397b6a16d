"""The event ports of one process, by the URLs of the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.errors import ConfigError, LogError
from livetape.events.bus import Bus
from livetape.events.copier import Copier, LogCopier
from livetape.events.log import EventLog
from livetape.events.open import Backend, open_backend
from livetape.events.recorder import LogRecorder, Recorder
from livetape.observability import Metrics
from livetape.settings import Settings
from livetape.store.ephemeral import Ephemeral

FRESH_S: Final = 12.0
"""A link that asks itself every 5 s whether it works and was heard this long ago does not work."""


LOG_ANSWERS_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class EventPorts:
    """What events go through. `copier` puts tapes that are numbered elsewhere into `log`; None where there is no
    need, because the log is where they are numbered."""

    bus: Bus
    log: EventLog
    recorder: Recorder
    copier: Copier | None = None


def embedded_ports(stack: AsyncExitStack, log: EventLog) -> EventPorts:
    """A bus of this process beside the log of its database."""
    bus = MemoryBus()
    stack.push_async_callback(bus.close)
    return EventPorts(bus, log, LogRecorder(log, bus))


def redis_ports(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> EventPorts:
    """Bus and log in Redis. Connects nothing yet: a Redis that is away now may come.

    Raises:
        ConfigError: a URL cannot be used, or the driver is not installed.
    """
    bus_side = _open(settings.bus_url, "bus", metrics)
    stack.push_async_callback(bus_side.close)
    if settings.log_url == settings.bus_url:
        log_side = bus_side
    else:
        log_side = _open(str(settings.log_url), "log", metrics)
        stack.push_async_callback(log_side.close)
    bus, log = bus_side.bus, log_side.log
    assert log is not None
    if log_side is bus_side and bus_side.recorder is not None and bus_side.copier is not None:
        return EventPorts(bus, log, bus_side.recorder, bus_side.copier)
    return EventPorts(bus, log, LogRecorder(log, bus, metrics=metrics), LogCopier(log, bus))


def shared_ephemeral(stack: AsyncExitStack, url: str) -> Ephemeral:
    """Tickets and revocations at this URL: in Redis, or (`memory://`) in this process alone.

    Raises:
        ConfigError: the URL cannot be used, or the driver is not installed.
    """
    if url.startswith("memory://"):
        return MemoryEphemeral()
    try:
        from livetape.adapters.redis.open import ephemeral_from_url

        ephemeral, close = ephemeral_from_url(url)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Redis needs a driver that is not installed",
            because=str(error),
            set_by="ephemeral",
            fix="pip install 'livetape[redis]'",
        ) from error
    except ConfigError as error:
        error.set_by = error.set_by or "ephemeral"
        raise
    stack.push_async_callback(close)
    return ephemeral


def link_check(bus: Bus) -> Callable[[], bool]:
    """Whether the link that listens works. A bus inside the process always does."""
    age = getattr(bus, "link_age", None)
    if age is None:
        return lambda: True
    return lambda: bool(age() < FRESH_S and not getattr(bus, "problem", ""))


async def missing_log(log: EventLog) -> list[str]:
    """`["log"]` when it cannot be read now."""
    try:
        async with asyncio.timeout(LOG_ANSWERS_S):
            await log.read("readiness", limit=1)
    except (LogError, TimeoutError):
        return ["log"]
    return []


def _open(url: str, port: str, metrics: Metrics) -> Backend:
    try:
        return open_backend(url, metrics=metrics)
    except ConfigError as error:
        error.set_by = error.set_by or port
        raise
