"""A simulated process: its loop, its clock, its ways to the servers, and its death."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from livetape.errors import (
    BusUnavailableError,
    LivetapeError,
    LogUnavailableError,
    QueueUnavailableError,
    StoreUnavailableError,
)
from simulation.faults import Faults
from simulation.world import SimClock, SimLoop, State, World

P = ParamSpec("P")
T = TypeVar("T")

REFUSALS: dict[str, type[LivetapeError]] = {
    "database": StoreUnavailableError,
    "queue": QueueUnavailableError,
    "bus": BusUnavailableError,
    "log": LogUnavailableError,
}
"""What a process is told when it cannot reach that server."""


class Host:
    """One incarnation of a process. `mortal`: crashes strike it; clients and watchers are not."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        name: str,
        *,
        note: Callable[..., None],
        died: Callable[[Host], None] = lambda _: None,
        skew_s: float = 0.0,
        mortal: bool = True,
    ) -> None:
        self.world = world
        self.faults = faults
        self.name = name
        self.loop = _made(SimLoop, world, name, lambda error: self.crash(f"{type(error).__name__} in a block"))
        self.clock = SimClock(world, skew_s)
        self.mortal = mortal
        self.cut: Counter[str] = Counter()
        """Servers that it cannot reach, by the number of reasons."""

        self._holes: dict[str, float] = {}
        self.awake_since = 0.0
        """Until when it was stopped or held up last."""

        self._note = note
        self._died = died
        self._ids = 0

    @property
    def state(self) -> State:
        return self.loop.state

    def new_id(self) -> str:
        """Unique, and the same in each repetition of the history."""
        self._ids += 1
        return f"{self.name}-{self._ids:04}"

    def latency(self) -> float:
        """One way to a server."""
        if self.faults.strikes("call_slow"):
            return self.world.rng.uniform(0.1, 2.0)
        if self.faults.strikes("call_stuck"):
            return self.world.rng.uniform(10.0, 30.0)
        return 0.0002 + 0.002 * self.world.rng.random()

    def way(self, server: str) -> float:
        """As `latency`; what falls into a hole arrives when that is over."""
        return self.latency() + max(0.0, self._holes.get(server, 0.0) - self.world.now)

    def start(self, work: Callable[[], Awaitable[Any]], name: str) -> None:
        """Begin a task of this process."""

        async def run() -> None:
            await work()

        self.world.at(self.world.now, self.loop, asyncio.Handle(self._spawn, (run, name), self.loop))

    def _spawn(self, run: Callable[[], Any], name: str) -> None:
        self.loop.create_task(run(), name=name)

    # ---- calls -----------------------------------------------------------------------------------------------------

    def reach(self, server: str) -> None:
        """Raises what a process is told when that server cannot be reached."""
        if self.cut[server] or self.faults.strikes("call_refused"):
            raise REFUSALS[server](f"{server} cannot be reached")

    async def call(self, server: str, act: Callable[[], T]) -> T:
        """Let the server do something; returns when its answer is here. The server does it all at one moment."""
        loop = self.loop
        answered: asyncio.Future[T] = loop.create_future()
        self.world.after(self.way(server), partial(self._arrive, server, act, answered))
        return await answered

    def _arrive(self, server: str, act: Callable[[], T], answered: asyncio.Future[T]) -> None:
        if self.state is State.DEAD and self.world.rng.random() < 0.5:
            return  # the call never left
        back = self.world.now + 0.0002 + 0.002 * self.world.rng.random()
        try:
            self.reach(server)
            result = act()
        except Exception as error:
            self.world.at(back, self.loop, asyncio.Handle(_fail, (answered, error), self.loop))
        else:
            self.world.at(back, self.loop, asyncio.Handle(_settle, (answered, result), self.loop))

    # ---- what happens to it ----------------------------------------------------------------------------------------

    def crash(self, why: str) -> None:
        """It is gone, from this moment on and without any last word."""
        if self.state is not State.DEAD:
            self._note("crash", self.name, why)
            self.loop.kill()
            self._died(self)

    def pause(self, seconds: float, jump_s: float) -> None:
        """Stop it; afterwards its wall clock has jumped too."""
        if self.state is not State.RUNNING:
            return
        self._note("pause", self.name, round(seconds, 3))
        self.loop.pause()
        self.world.after(seconds, partial(self._resume, jump_s))

    def _resume(self, jump_s: float) -> None:
        if self.state is State.PAUSED:
            self._note("resume", self.name)
            self.clock.skew_s += jump_s
            self.awake_since = max(self.awake_since, self.world.now)
            self.loop.resume()

    def freeze(self, seconds: float) -> None:
        """Some code holds its event loop for so long; its threads go on."""
        self._note("freeze", self.name, round(seconds, 3))
        self.awake_since = max(self.awake_since, self.world.now + seconds)
        self.loop.freeze(seconds)

    def part(self, server: str, seconds: float) -> None:
        """Cut it off from a server for a while."""
        self._note("partition", self.name, server, round(seconds, 3))
        self.cut[server] += 1
        self.world.after(seconds, partial(self._join, server))

    def swallow(self, server: str, seconds: float) -> None:
        """Nothing that it sends there arrives before the end of this time; then all of it does."""
        self._note("hole", self.name, server, round(seconds, 3))
        self._holes[server] = self.world.now + seconds

    def _join(self, server: str) -> None:
        self.cut[server] -= 1


def _made(kind: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """An instance of a class that implements as much of asyncio's abstract one as anybody calls."""
    return kind(*args, **options)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
