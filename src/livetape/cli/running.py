"""A server in the foreground: until a signal asks for its end, and at once when it asks again."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, Final

from livetape.cli.errors import EXIT_INTERRUPTED
from livetape.cli.options import App

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_CREDENTIALS: Final = re.compile(r"://[^/@]*@")


class Running:
    """`said` is what was told to others about this server: it is taken back when the server ends.

    One that does not talk has a parent that does.
    """

    stops = "stopping: letting sockets and running nodes end (again to stop at once)"
    stops_at_once = "stopped at once; what was running goes on at the next start"

    def __init__(self, app: App, *, talks: bool = True) -> None:
        self.app = app
        self.talks = talks
        self.said = ExitStack()
        self._signals = 0

    async def until_signal(
        self, server: Coroutine[Any, Any, None], *, signals: tuple[int, ...] = SIGNALS, parent: int | None = None
    ) -> int:
        """Run it until one of these signals; 0 when it asked for the end and all was drained.

        `parent`: a file descriptor that becomes readable when there is nobody any more who would send a signal.
        """
        serving = asyncio.create_task(server, name="serve")
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, self.end, serving)
        if parent is not None:
            loop.add_reader(parent, self._orphaned, loop, parent, serving)
        try:
            with self.said:
                await serving
        except asyncio.CancelledError:
            if not self._signals:
                raise
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            if parent is not None:
                loop.remove_reader(parent)
        if self._signals:
            self._say("stopped")
        return 0

    def end(self, serving: asyncio.Task[None]) -> None:
        """The first time in order, the second time at once."""
        self._signals += 1
        if self._signals > 1:
            self._say(self.stops_at_once)
            self.said.close()
            sys.stdout.flush()
            os._exit(EXIT_INTERRUPTED)
        self._say(self.stops)
        serving.cancel()

    def _orphaned(self, loop: asyncio.AbstractEventLoop, parent: int, serving: asyncio.Task[None]) -> None:
        loop.remove_reader(parent)
        if not self._signals:
            self.end(serving)

    def _say(self, text: str) -> None:
        if self.talks:
            self.app.say(text)


def settle() -> None:
    """The start is over: what was imported stays for good, the collector need not look at it again."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # an event makes some hundred short-lived objects, none of them a cycle
    gc.enable()


def loop_factory() -> Callable[[], Any] | None:
    """Of the fastest event loop that is installed; None: asyncio's own."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


def shown_url(url: str) -> str:
    """The URL of a server without the names and passwords that let in."""
    return _CREDENTIALS.sub("://", url)
