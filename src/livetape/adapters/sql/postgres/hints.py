"""Cancel hints as notices of the database."""

from __future__ import annotations

import asyncio

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.notices import CANCEL, notify
from livetape.adapters.sql.postgres.notices import Notices
from livetape.engine.cancel_hints import CancelHints, Heard, tell
from livetape.errors import ClosedError, StoreError
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)


class PostgresCancelHints(CancelHints):
    """Sent through the pool, heard by the connection for notices, which whoever made it runs."""

    def __init__(self, database: Database, notices: Notices, *, metrics: Metrics | None = None) -> None:
        self._database = database
        self._metrics = metrics
        self._notices = notices
        self._sending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def send(self, graph_exec_id: str) -> None:
        if self._closed:
            return
        task = asyncio.create_task(self._send(graph_exec_id), name="cancel hint")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, graph_exec_id: str) -> None:
        try:
            await self._database.write(lambda db: notify(db, CANCEL, graph_exec_id), read_committed=True)
        except (StoreError, ClosedError) as error:
            logger.debug("a hint is lost: %s", error)

    async def listen(self, heard: Heard, ready: asyncio.Event) -> None:
        end = self._notices.hear(CANCEL, lambda graph_exec_id: tell(heard, graph_exec_id, self._metrics))
        try:
            await self._notices.ready.wait()
            ready.set()
            await asyncio.get_running_loop().create_future()
        finally:
            end()

    async def close(self) -> None:
        self._closed = True
        if self._sending:
            await asyncio.wait(self._sending)
