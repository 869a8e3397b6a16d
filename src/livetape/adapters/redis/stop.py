"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_AGAIN_S: Final = 5.0
"""Long: a second cancellation breaks into the closing of connections that the first one began."""


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel them until they have ended: code on the way, not only ours, may swallow a cancellation."""
    waiting = {task for task in tasks if task is not None and not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=_AGAIN_S)
