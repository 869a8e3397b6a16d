"""Statements that are a transaction each, sent straight to the driver: one journey to the server for each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import asyncpg

from livetape.adapters.sql.postgres.connect import connect
from livetape.adapters.sql.postgres.failures import READ_ONLY, Fate, fate_of, state_of
from livetape.errors import CommitUnknownError

# Every such statement finds its rows by key. Plans are made once and must stay good while tables grow from nothing.
_BY_KEY: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


_NOT_BEGUN: Final = "cannot switch to state"
"""So the driver refuses a statement while it still hears the end of another, or of the session."""


class Direct:
    """At most `size` connections, made when they are needed, the one used last first. For one event loop.

    `session` are settings of each; `limit_s` bounds one statement also when nothing is heard of the server.
    """

    def __init__(self, url: str, *, size: int, connect_s: float, limit_s: float, session: dict[str, str]) -> None:
        self._url = url
        self._connect_s = connect_s
        self._limit_s = limit_s
        self._session = session | _BY_KEY
        self._room = asyncio.Semaphore(size)
        self._idle: list[Any] = []

    async def fetch(self, sql: str, arguments: Sequence[Any], *, reads: bool = False) -> list[Any]:
        """The rows, after the commit. What only `reads` may be sent again whatever became of it.

        Raises:
            CommitUnknownError: it was sent, and nobody knows what became of it.
            OSError, TimeoutError, or an error of asyncpg: it was not committed.
        """
        async with self._room:
            connection = await self._open()
            answered = False
            try:
                async with asyncio.timeout(self._limit_s):
                    rows: list[Any] = await connection.fetch(sql, *arguments)
                answered = True
            except Exception as error:
                answered = _refused(error)
                if not answered and not reads and not _unsent(error):
                    raise CommitUnknownError("the server did not answer to a statement") from error
                raise
            finally:
                if answered and not connection.is_closed():
                    self._idle.append(connection)
                else:  # it may be in the middle of a statement
                    connection.terminate()
            return rows

    async def _open(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await connect(self._url, timeout_s=self._connect_s, **self._session)

    async def close(self) -> None:
        """Whoever uses one finishes first. Idempotent."""
        idle, self._idle = self._idle, []
        for connection in idle:
            with suppress(
                OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError
            ):
                await connection.close()


def _refused(error: Exception) -> bool:
    """Whether the server said no, so that nothing was committed and the connection is as good as before."""
    if not isinstance(error, asyncpg.PostgresError):
        return False
    return fate_of(error) in (Fate.AGAIN, Fate.TAKEN, Fate.BUSY, Fate.LOCKED, Fate.REFUSED)


def _unsent(error: Exception) -> bool:
    """Whether it was not committed although the connection is of no use any more."""
    if isinstance(error, asyncpg.InterfaceError | ValueError | TypeError):  # the driver did not send it
        return True
    if isinstance(error, asyncpg.InternalClientError) and _NOT_BEGUN in str(error):
        return True
    return state_of(error) == READ_ONLY  # the next connection may lead to a server that takes writes
