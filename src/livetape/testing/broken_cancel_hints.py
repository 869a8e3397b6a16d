"""Hints that break one promise each. `CancelHintsSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from livetape.engine.cancel_hints import CancelHints, Heard, ProcessCancelHints


class ReachesOne(ProcessCancelHints):
    """A hint reaches one arbitrary listener, as from one queue that all share."""

    async def send(self, graph_exec_id: str) -> None:
        for heard in list(self._listeners.values())[:1]:
            heard(graph_exec_id)


class FailsTogether(ProcessCancelHints):
    """The first listener that fails ends it for the others."""

    async def send(self, graph_exec_id: str) -> None:
        try:
            for heard in list(self._listeners.values()):
                heard(graph_exec_id)
        except ValueError:
            self._listeners.clear()


class NeverLetsGo(ProcessCancelHints):
    """Who has gone is told all the same."""

    async def listen(self, heard: Heard, ready: asyncio.Event) -> None:
        self._listeners[object()] = heard
        ready.set()
        await asyncio.get_running_loop().create_future()


class ShortensNames(ProcessCancelHints):
    """A name has 255 characters at most."""

    async def send(self, graph_exec_id: str) -> None:
        await super().send(graph_exec_id[:255])


class NeedsAnAudience(ProcessCancelHints):
    """Sending fails when nobody listens."""

    async def send(self, graph_exec_id: str) -> None:
        if not self._listeners:
            raise ConnectionError("nobody listens")
        await super().send(graph_exec_id)


class NeverCloses(ProcessCancelHints):
    """Closing changes nothing."""

    async def close(self) -> None:
        pass


BROKEN_CANCEL_HINTS: Final[Mapping[Callable[[], CancelHints], str]] = {
    ReachesOne: "test_every_listener_hears_what_is_sent",
    FailsTogether: "test_a_listener_that_fails_silences_nobody",
    NeverLetsGo: "test_whoever_stopped_listening_hears_nothing_more",
    ShortensNames: "test_any_name_is_carried",
    NeedsAnAudience: "test_sending_to_nobody_is_nothing",
    NeverCloses: "test_after_closing_nothing_is_heard",
}
"""Every one fails `CancelHintsSuite`, at least in the case that is named here."""
