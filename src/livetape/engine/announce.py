"""Makes tapes where watchers read them, before whoever created their subject is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from livetape.clock import Clock
from livetape.engine.outlets import create_copy
from livetape.errors import LivetapeError
from livetape.events.channel import execution_pattern, graph_tape
from livetape.events.log import EventLog
from livetape.observability import get_logger
from livetape.store.executions import Committed

logger = get_logger(__name__)

WITHIN_S: Final = 1.0
REST_S: Final = 2.0
"""After it did not work, so long is not even tried."""


class Announcer:
    """While the log is away it holds nobody up: the relay makes the tape later, with the first event."""

    def __init__(self, log: EventLog, *, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._rests_until = 0.0

    async def execution(self, committed: Committed) -> None:
        """The tape of an execution, whose owner its channel names. Never raises for a log that cannot be used."""
        await self._try(create_copy(self._log, committed))

    async def graph(self, user_id: str, graph_id: str) -> None:
        """The tape of a graph. As `execution`."""
        channel = execution_pattern(user_id, graph_id)
        await self._try(self._log.create(graph_tape(graph_id), owner=user_id, channel=channel, graph_id=graph_id))

    async def _try(self, creating: Coroutine[Any, Any, object]) -> None:
        if self._clock.monotonic() < self._rests_until:
            creating.close()
            return
        try:
            async with asyncio.timeout(WITHIN_S):
                await creating
        except (LivetapeError, TimeoutError) as error:
            self._rests_until = self._clock.monotonic() + REST_S
            logger.warning("a tape is made later: %s", str(error) or "no answer", extra={"action": "announce_later"})
