"""Whether the server of this process is about to stop: uvicorn tells an application only after its connections."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any, Final

CHECK_SECONDS: Final = 0.25


async def until_server_stops(then: Callable[[], None]) -> None:
    """Calls `then` when the uvicorn server that handles the signals of this process begins to stop.

    Returns at once where there is none, or uvicorn was started in an unusual way.
    """
    server = _server()
    if server is None:
        return
    while not server.should_exit:  # noqa: ASYNC110 - it does not say
        await asyncio.sleep(CHECK_SECONDS)
    then()


def _server() -> Any:
    for number in (signal.SIGTERM, signal.SIGINT):
        owner = getattr(signal.getsignal(number), "__self__", None)
        if isinstance(getattr(owner, "should_exit", None), bool):
            return owner
    return None
