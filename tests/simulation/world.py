"""Virtual time, and who has the next turn. Everything that happens is a function of the seed."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final, Protocol, TypeVarTuple

Ts = TypeVarTuple("Ts")

_SAYS_WHEN_FORGOTTEN: Final = "_log_destroy_pending"
"""A crash leaves tasks behind; asyncio would complain of each."""

BEGIN: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""What the wall clocks show at the virtual second 0, before skew."""

BEGIN_US: Final = int(BEGIN.timestamp()) * 1_000_000


def micros(at: float) -> int:
    """A virtual second as the database keeps it."""
    return BEGIN_US + round(at * 1_000_000)


def seconds(moment: int) -> float:
    """The same back."""
    return (moment - BEGIN_US) / 1_000_000


class State(Enum):
    """What a simulated process is doing. DEAD is for ever: a restart is another process."""

    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class Owner(Protocol):
    """Whose turn an entry of the agenda is."""

    def accept(self, item: Any) -> None:
        """Its time has come."""


@dataclass(slots=True)
class World:
    """The agenda of everything. `now` is in seconds since the start; nothing takes time unless somebody says so."""

    rng: random.Random
    now: float = 0.0
    current: SimLoop | None = None
    complaints: list[str] = field(default_factory=list)
    """What event loops were told that nobody else handles."""

    _agenda: list[tuple[float, int, Owner | None, Any]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _runnable: list[SimLoop] = field(default_factory=list)

    def at(self, when: float, owner: Owner | None, item: Any) -> None:
        """Hand the item to its owner at that time; without an owner it is a function that is called."""
        heapq.heappush(self._agenda, (when, next(self._numbers), owner, item))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call this later; no process can stop it."""
        self.at(self.now + seconds, None, action)

    def wake(self, loop: SimLoop) -> None:
        """This loop has something to do."""
        self._runnable.append(loop)

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Go on until it holds, at most to that virtual second; whether it holds."""
        agenda, runnable, rng = self._agenda, self._runnable, self.rng
        while not until():
            if runnable:
                place = int(rng.random() * len(runnable))
                loop = runnable[place]
                runnable[place] = runnable[-1]
                runnable.pop()
                loop.turn()
                continue
            if not agenda or agenda[0][0] > limit:
                self.now = limit
                return until()
            when, _, owner, item = heapq.heappop(agenda)
            if isinstance(item, asyncio.Handle) and item.cancelled():
                continue
            self.now = max(self.now, when)
            if owner is None:
                item()
            else:
                owner.accept(item)
        return True


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process: first in, first out, as asyncio's own, on the world's time.

    Which of several processes has the next turn is drawn. A paused loop keeps what comes due; a dead one forgets it.
    """

    def __init__(self, world: World, name: str, exited: Callable[[BaseException], None]) -> None:
        self.world = world
        self.name = name
        self.state = State.RUNNING
        self.frozen_until = 0.0
        self.tasks: list[asyncio.Task[Any]] = []
        self.threads_held: list[tuple[Owner, Any]] = []
        """Threads of this process that came due while it was paused, with what they were waiting for."""

        self._exited = exited
        self._ready: deque[asyncio.Handle] = deque()
        self._waits = False
        self._held: list[asyncio.Handle] = []

    # ---- what the world does with it -------------------------------------------------------------------------------

    def accept(self, item: asyncio.Handle) -> None:
        """A timer or an answer from outside is due."""
        if self.state is State.DEAD:
            return
        if self.state is State.PAUSED:
            self._held.append(item)
            return
        self._ready.append(item)
        self._woken()

    def _woken(self) -> None:
        if self._waits or self.state is not State.RUNNING:
            return
        self._waits = True
        if self.frozen_until > self.world.now:
            self.world.at(self.frozen_until, None, self._thaw)
        else:
            self.world.wake(self)

    def _thaw(self) -> None:
        self._waits = False
        if self._ready:
            self._woken()

    def turn(self) -> None:
        """Run what is ready now, as one iteration of a loop does."""
        self._waits = False
        if self.state is not State.RUNNING:
            return
        if self.frozen_until > self.world.now:
            self._woken()
            return
        self.world.current = self
        asyncio._set_running_loop(self)
        ready = self._ready
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
                if not self.is_running():
                    return
        except (SystemExit, KeyboardInterrupt) as error:
            self._exited(error)
        finally:
            asyncio._set_running_loop(None)
            self.world.current = None
        if self._ready:
            self._woken()

    def pause(self) -> None:
        """As SIGSTOP does."""
        if self.state is State.RUNNING:
            self.state = State.PAUSED

    def resume(self) -> None:
        """As SIGCONT does: everything that came due meanwhile is due now."""
        if self.state is State.PAUSED:
            self.state = State.RUNNING
            self._ready.extend(self._held)
            self._held.clear()
            if self._ready and not self._waits:
                # its threads may be first
                self._waits = True
                self.world.after(0.01 * self.world.rng.random(), self._thaw)
            for thread, item in self.threads_held:
                self.world.at(self.world.now + 0.01 * self.world.rng.random(), thread, item)
            self.threads_held.clear()

    def freeze(self, seconds: float) -> None:
        """Some code holds the loop for so long; threads go on."""
        self.frozen_until = self.world.now + seconds

    def kill(self) -> None:
        """As SIGKILL does: nothing runs any more, not even what stands in a `finally`."""
        self.state = State.DEAD

    def bury(self) -> None:
        """After the end of the history: let go what still waits, without letting any of it act."""
        for task in self.tasks:
            if not task.done():
                task.add_done_callback(_heard)
        self.state = State.RUNNING
        self.frozen_until = 0.0
        self._waits = True  # the world is not asked any more
        self._held.clear()
        asyncio._set_running_loop(self)
        try:
            for _ in range(50):
                waiting = [task for task in self.tasks if not task.done()]
                if not waiting:
                    break
                for task in waiting:
                    task.cancel()
                while self._ready:
                    handle = self._ready.popleft()
                    if not handle.cancelled():
                        try:
                            handle._run()
                        except (SystemExit, KeyboardInterrupt):
                            continue
        finally:
            asyncio._set_running_loop(None)
            self.state = State.DEAD

    # ---- what asyncio asks of it -----------------------------------------------------------------------------------

    def time(self) -> float:
        return self.world.now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        self._woken()
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self.state is State.DEAD:
            raise RuntimeError("Event loop is closed")
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, list(args), self, context)
        self.world.at(when, self, handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.world.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        setattr(task, _SAYS_WHEN_FORGOTTEN, False)
        self.tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self.state is State.RUNNING

    def is_closed(self) -> bool:
        return self.state is State.DEAD

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.world.complaints.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


class SimClock:
    """The clock of one process: the world's time, with a wall clock that may be wrong by `skew_s`."""

    def __init__(self, world: World, skew_s: float = 0.0) -> None:
        self._world = world
        self.skew_s = skew_s

    def now(self) -> datetime:
        return BEGIN + timedelta(microseconds=round((self._world.now + self.skew_s) * 1_000_000))

    def monotonic(self) -> float:
        return self._world.now
