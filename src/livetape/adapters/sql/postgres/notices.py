"""Hears the short notices that processes on one database send each other (`adapters/sql/notices.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from livetape.adapters.sql.notices import CANCEL, DOORBELL
from livetape.adapters.sql.postgres.connect import check_url, connect
from livetape.observability import get_logger

logger = get_logger(__name__)

ALIVE_S: Final = 5.0
"""The connection is asked so often whether it still is one, and has so long to answer."""

_PAUSES_S: Final = (0.1, 0.2, 0.5, 1.0)
_GONE: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Notices:
    """One connection for each process, besides those of its pool. It connects again by itself.

    While it was away, notices are lost: then `missed` is called.
    """

    def __init__(self, url: str, *, connect_s: float = 5.0) -> None:
        check_url(url)
        self._url = url
        self._connect_s = connect_s
        self._listeners: dict[str, dict[object, Callable[[str], None]]] = {DOORBELL: {}, CANCEL: {}}
        self._missed: list[Callable[[], None]] = []
        self.ready = asyncio.Event()
        """Set when it listens for the first time, or when that failed for the first time."""

        self.is_listening = False

    def hear(
        self, channel: str, heard: Callable[[str], None], *, missed: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `heard` with the words of every notice on this channel; returns what ends that."""
        place = object()
        listeners = self._listeners[channel]
        listeners[place] = heard
        if missed is not None:
            self._missed.append(missed)

        def end() -> None:
            listeners.pop(place, None)
            if missed is not None and missed in self._missed:
                self._missed.remove(missed)

        return end

    async def run(self) -> None:
        """Listen until cancelled."""
        failures = 0
        while True:
            try:
                connection = await connect(self._url, timeout_s=self._connect_s)
            except _GONE as error:
                if not failures:
                    logger.warning("notices are not heard: %s", error, extra={"action": "notices_lost"})
            else:
                failures = 0
                try:
                    await self._listen(connection)
                except _GONE as error:
                    logger.warning("notices are not heard: %s", error, extra={"action": "notices_lost"})
                finally:
                    self.is_listening = False
                    connection.terminate()
            self.ready.set()
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1

    async def _listen(self, connection: Any) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        for channel in self._listeners:
            await connection.add_listener(channel, self._heard)
        self.is_listening = True
        self.ready.set()
        for missed in list(self._missed):
            missed()
        while not lost.is_set():
            try:
                async with asyncio.timeout(ALIVE_S):
                    await lost.wait()
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=ALIVE_S)
        raise ConnectionError("the server ended the connection")

    def _heard(self, _connection: Any, _pid: int, channel: str, words: str) -> None:
        for heard in list(self._listeners[channel].values()):
            heard(words)
