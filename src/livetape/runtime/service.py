"""Work that runs beside the rest of a process, and takes the process with it when it ends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from livetape.observability import get_logger

logger = get_logger(__name__)


@asynccontextmanager
async def service(
    work: Coroutine[Any, Any, None], ready: asyncio.Event, name: str, failed: asyncio.Future[None]
) -> AsyncIterator[None]:
    """Run it beside the body, from when it is ready. If it ends by itself, `failed` says why."""
    task = asyncio.create_task(work, name=name)

    def ended(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and not failed.done():
            error = done.exception() or RuntimeError(f"the {name} ended by itself")
            if ready.is_set():  # before that, whoever opens it is told
                logger.error("the %s ended", name, exc_info=error, extra={"action": "service_ended"})
            failed.set_exception(error)

    task.add_done_callback(ended)
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.wait({task, waiting})
        if failed.done() and not failed.cancelled():
            failed.exception()  # seen: whoever waits for it has it, and nobody else need be told
