"""The CancelHints port: "look at this execution now", called out to every worker.

A hint is never the truth. What is to be done stands in the store, and a worker that heard no hint learns of it at its
next renewal; a hint makes that milliseconds instead of seconds. So hints may be lost, doubled or late.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

Heard: TypeAlias = Callable[[str], None]
"""Told the id of the execution, in the event loop of the listener. What it raises is logged."""


class CancelHints(ABC):
    """Every listener of every process hears what anybody sends. Safe for concurrent use by tasks of one event loop."""

    @abstractmethod
    async def send(self, graph_exec_id: str) -> None:
        """Best effort: never raises for a broker that is away, and does not wait for it."""

    @abstractmethod
    async def listen(self, heard: Heard, ready: asyncio.Event) -> None:
        """Listen until cancelled; connects again by itself. `ready` is set when it listens for the first time, or when
        that failed for the first time: nobody should wait for a broker that is away."""

    @abstractmethod
    async def close(self) -> None:
        """Nothing is sent or heard any more. Idempotent."""


class ProcessCancelHints(CancelHints):
    """Hints inside one process."""

    def __init__(self) -> None:
        self._listeners: dict[object, Heard] = {}

    async def send(self, graph_exec_id: str) -> None:
        for heard in list(self._listeners.values()):
            tell(heard, graph_exec_id)

    async def listen(self, heard: Heard, ready: asyncio.Event) -> None:
        place = object()
        self._listeners[place] = heard
        ready.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._listeners.pop(place, None)

    async def close(self) -> None:
        self._listeners.clear()


def tell(heard: Heard, graph_exec_id: str, metrics: Metrics | None = None) -> None:
    """For adapters: one listener that fails silences no other, and ends no connection; it is logged and counted."""
    try:
        heard(graph_exec_id)
    except Exception:
        logger.exception("a hint could not be followed", extra={"action": "hint_failed"})
        (metrics or NoMetrics()).count("internal_errors_total", part="hints")
