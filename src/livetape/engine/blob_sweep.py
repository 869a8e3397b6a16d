"""Takes away blobs that nobody points to: of executions that are gone, and of commits that were never made."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Final

from livetape.clock import Clock
from livetape.engine.blobs import Blobs, Shelf
from livetape.engine.large_values import referenced
from livetape.errors import LivetapeError, NotFoundError
from livetape.observability import Metrics, get_logger
from livetape.store.executions import ExecutionStore

logger = get_logger(__name__)

EVERY_S: Final = 3600.0
KEPT_FOR: Final = timedelta(days=1)
KNOWN: Final = 100_000
PAUSE_S: Final = 0.01
"""Between two executions: nobody waits for this."""


class BlobSweep:
    """Run by every worker; several at once do no harm.

    A blob is looked at when it is a day old. Then its execution was committed or will never be; and of one that is
    over, what no row points to was put before a commit that failed. While an execution goes on, nothing of it is
    taken away.
    """

    def __init__(self, blobs: Blobs, store: ExecutionStore, *, clock: Clock, metrics: Metrics) -> None:
        self._blobs = blobs
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._settled: OrderedDict[str, None] = OrderedDict()
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Sweep for ever."""
        self.ready.set()
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.sweep()
            except LivetapeError as error:
                logger.warning("large values cannot be swept: %s", error, extra={"action": "blob_sweep_retry"})
            except Exception:  # it would end for good
                logger.exception("large values cannot be swept", extra={"action": "blob_sweep_failed"})
                self._metrics.count("internal_errors_total", part="blobs")

    async def sweep(self) -> int:
        """Once, over everything; returns how many were taken away. Raises what the stores raise."""
        before = self._clock.now() - KEPT_FOR
        gone = 0
        async for shelf in self._blobs.shelves():
            if shelf.name not in self._settled:
                gone += await self._sweep(shelf, before)
                await asyncio.sleep(PAUSE_S)
        if gone:
            self._metrics.count("blobs_swept_total", gone)
            logger.info("%d large values that nobody needs are gone", gone, extra={"action": "blob_sweep"})
        return gone

    async def _sweep(self, shelf: Shelf, before: datetime) -> int:
        old = {blob.sha256 for blob in shelf.blobs if blob.stored_at < before}
        if not old and shelf.blobs:
            return 0
        try:
            row = await self._store.get(shelf.execution_id)
        except NotFoundError:
            await self._blobs.clear(shelf, old)
            return len(old)
        if not row.status.is_terminal:
            return 0
        unneeded = old - referenced(row, await self._store.nodes(row.id))
        await self._blobs.clear(shelf, unneeded)
        if len(old) == len(shelf.blobs):
            self._settle(shelf.name)
        return len(unneeded)

    def _settle(self, name: str) -> None:
        """Terminal never changes."""
        self._settled[name] = None
        while len(self._settled) > KNOWN:
            self._settled.popitem(last=False)
