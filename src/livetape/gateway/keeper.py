"""Looks after the open sockets of a process: asks for signs of life, ends dead ones, and watches their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final, Protocol

from livetape.clock import Clock
from livetape.gateway.options import GatewayOptions
from livetape.gateway.reader import Sleep

BEAT_S: Final = 1.0
"""Tokens are looked at this often, and a part of the sockets is asked for a sign of life."""


class Kept(Protocol):
    """One socket as the keeper sees it."""

    @property
    def wake_at(self) -> datetime | None:
        """When `tick` has something to do next."""

    def tick(self, now: datetime) -> None:
        """That time has come."""

    def ask(self) -> None:
        """Ask for a sign of life."""

    def is_silent(self) -> bool:
        """There was no sign of life since it was asked."""

    def give_up(self) -> None:
        """It is dead."""


class Keeper:
    """One task for all sockets, so that an idle one costs neither a task nor a timer.

    A socket is asked once in `ping_interval_seconds`; one that gives no sign of life for `ping_timeout_seconds` after
    being asked is given up. The sockets are asked in turns, a part of them in each beat.
    """

    def __init__(
        self, options: GatewayOptions, clock: Clock, *, sleep: Sleep, on_beat: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._on_beat = on_beat
        self._timeout = options.ping_timeout_seconds
        self._beat_s = min(BEAT_S, options.ping_interval_seconds / 4, options.ping_timeout_seconds / 4)
        rounds = max(1, math.ceil(options.ping_interval_seconds / self._beat_s))
        self._rounds: list[dict[Kept, None]] = [{} for _ in range(rounds)]
        self._turn = 0
        self._where: dict[Kept, int] = {}
        self._silent: dict[Kept, float] = {}
        self._due: dict[int, dict[Kept, None]] = {}
        self._due_of: dict[Kept, int] = {}

    def add(self, kept: Kept) -> None:
        """It is open now."""
        place = (self._turn - 1) % len(self._rounds)
        self._rounds[place][kept] = None
        self._where[kept] = place
        self.changed(kept)

    def changed(self, kept: Kept) -> None:
        """Its `wake_at` is another."""
        second = self._due_of.pop(kept, None)
        if second is not None:
            self._due[second].pop(kept)
            if not self._due[second]:
                del self._due[second]
        wake_at = kept.wake_at
        if wake_at is not None and kept in self._where:
            second = self._due_of[kept] = math.ceil(wake_at.timestamp())
            self._due.setdefault(second, {})[kept] = None

    def discard(self, kept: Kept) -> None:
        """It is gone. Unknown ones are ignored."""
        place = self._where.pop(kept, None)
        if place is not None:
            del self._rounds[place][kept]
            self._silent.pop(kept, None)
            self.changed(kept)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._sleep(self._beat_s)
            self.beat()
            self._on_beat()

    def beat(self) -> None:
        """One turn."""
        now = self._clock.now()
        for kept in self._over(now.timestamp()):
            kept.tick(now)
            self.changed(kept)
        at = self._clock.monotonic()
        for kept, since in tuple(self._silent.items()):
            if not kept.is_silent():
                del self._silent[kept]
            elif at - since >= self._timeout:
                self.discard(kept)
                kept.give_up()
        self._turn = (self._turn + 1) % len(self._rounds)
        for kept in tuple(self._rounds[self._turn]):
            if kept in self._silent:
                continue
            kept.ask()
            self._silent[kept] = at

    def _over(self, now: float) -> Iterator[Kept]:
        for second in [second for second in self._due if second <= now]:
            yield from tuple(self._due.get(second, ()))
