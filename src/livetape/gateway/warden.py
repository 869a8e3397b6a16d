"""Ends what is not allowed any more: revoked tokens, and tapes that somebody may not watch now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from livetape.auth import Principal
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.connection import Connection
from livetape.gateway.control import AnyControlEvent, PermissionChanged, TokensRevoked
from livetape.gateway.doorkeeper import Doorkeeper
from livetape.gateway.old_clients import OldClients
from livetape.gateway.reader import Sleep
from livetape.gateway.streams import TapeStreams
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

SETTLE_S: Final = 10.0
"""Those who were let in while nobody could say whether their tokens hold are looked at this often."""


class Warden:
    """Follows control events for all sockets and streams of a process.

    What a process knows by itself takes effect at once: sockets of revoked tokens are closed (4003), their streams
    end. What has to be looked up is looked up beside, one failure at a time. `run` while it serves.
    """

    def __init__(
        self,
        connections: Callable[[], Collection[Connection]],
        streams: TapeStreams,
        doorkeeper: Doorkeeper,
        old_clients: OldClients | None,
        *,
        sleep: Sleep,
        metrics: Metrics | None = None,
    ) -> None:
        self._connections = connections
        self._streams = streams
        self._doorkeeper = doorkeeper
        self._old_clients = old_clients
        self._sleep = sleep
        self._metrics = metrics or NoMetrics()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._sleep(SETTLE_S)
                await self._guarded(self._settle())
        finally:
            for task in tuple(self._tasks):
                task.cancel()

    def follow(self, event: AnyControlEvent | None) -> None:
        """A control event came; None: some may have been lost. Returns at once."""
        match event:
            case TokensRevoked():
                self._doorkeeper.learn(event)
                self._bar({one.principal for one in self._connections() if event.affects(one.principal)})
                self._streams.end_of(lambda reader, _: event.affects(reader))
                if event.user_id is not None and self._old_clients is not None:
                    self._beside(self._old_clients.forget(event.user_id))
            case PermissionChanged():
                self._streams.end_of(event.affects)
                for connection in tuple(self._connections()):
                    if any(event.affects(connection.principal, subject) for subject in connection.subscriptions):
                        self._beside(connection.recheck())
            case None:
                self._beside(self._look_at_all())

    def _bar(self, revoked: Collection[Principal]) -> None:
        for connection in tuple(self._connections()):
            if connection.principal in revoked:
                connection.close(CloseCode.INVALID_TOKEN)
        if revoked:
            self._streams.end_of(lambda reader, _: reader in revoked)

    async def _look_at_all(self) -> None:
        principals = {connection.principal for connection in self._connections()}
        principals |= {reader for reader, _ in self._streams.readers()}
        self._bar({principal for principal in principals if await self._doorkeeper.is_revoked(principal)})
        # Who may not watch something any more finds that out when it comes back.
        self._streams.end_of(lambda reader, _: True)
        for connection in tuple(self._connections()):
            await self._guarded(connection.recheck())

    async def _settle(self) -> None:
        self._bar(await self._doorkeeper.settle())

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work), name="warden")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            # What could not be looked up stays as it is, and is looked at again; nothing else may end with it.
            logger.exception("a control event could not be followed", extra={"action": "control_failed"})
            self._metrics.count("internal_errors_total", part="control")
