"""Simulated threads: real ones of which exactly one runs at a time, so that their order is the seed's.

They stand in for the names `Thread`, `Event` and `Condition` of `threading` in the engine's modules. A thread gives the
turn back when it waits, for an event or for the database, and gets it again when the world says so.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from simulation.world import SimLoop, State, World


class ThreadEndedError(BaseException):
    """Raised in a simulated thread whose process is gone."""


class SimThread:
    """Belongs to the process in whose turn it was made; stops, sleeps and dies with it."""

    def __init__(self, town: Town, target: Callable[[], None]) -> None:
        assert town.world.current is not None
        self._town = town
        self._loop: SimLoop = town.world.current
        self._target = target
        self._turn = _taken_lock()
        self._back = _taken_lock()
        self._thread: threading.Thread | None = None
        self._value: Any = None
        self.ended = False

    def start(self) -> None:
        self._town.threads.append(self)
        self._town.world.at(self._town.world.now, self, None)

    def accept(self, item: Any) -> None:
        """Its wait is over, with this result."""
        if self._loop.state is State.PAUSED:
            self._loop.threads_held.append((self, item))
        elif self._loop.state is State.RUNNING:
            self.go_on(item)

    def go_on(self, value: Any) -> None:
        if self.ended:
            return
        self._value = value
        before, self._town.running = self._town.running, self
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="simulated", daemon=True)
            self._thread.start()
        else:
            self._turn.release()
        self._back.acquire()
        self._town.running = before

    def _run(self) -> None:
        try:
            self._target()
        except ThreadEndedError:
            pass
        except Exception as error:  # a thread that dies is something to look at
            self._town.world.complaints.append(f"{self._loop.name}: a thread failed: {error!r}")
        finally:
            self.ended = True
            self._back.release()

    def suspend(self) -> Any:
        """Called in the thread: give the turn back; returns what it is woken with."""
        self._back.release()
        self._turn.acquire()
        if self._town.closing:
            raise ThreadEndedError
        return self._value

    def end(self) -> None:
        """Unwind it, after the end of the history."""
        if self._thread is not None and not self.ended:
            self._turn.release()
            self._back.acquire()
        if self._thread is not None:
            self._thread.join()


def _taken_lock() -> threading.Lock:
    """Whoever takes it waits until another gives it back: the cheapest way of giving turns."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class SimEvent:
    """`threading.Event` for both simulated threads and loops (which never wait on it)."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._set = False
        self._waiting: list[tuple[SimThread, list[bool]]] = []

    def is_set(self) -> bool:
        return self._set

    def clear(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for thread, pending in waiting:
            if pending.pop():
                pending.append(False)
                self._town.world.at(self._town.world.now, thread, True)

    def wait(self, timeout: float | None = None) -> bool:
        if self._set:
            return True
        thread = self._town.waiting_thread()
        pending = [True]
        self._waiting.append((thread, pending))
        if timeout is not None:

            def late() -> None:
                if pending.pop():
                    thread.accept(False)
                pending.append(False)

            self._town.world.after(timeout, late)
        return bool(thread.suspend())


class SimCondition:
    """`threading.Condition` where only one thread runs at a time: nothing need be locked."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._waiting: list[SimThread] = []

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> bool:
        thread = self._town.waiting_thread()
        self._waiting.append(thread)
        thread.suspend()
        return True

    def notify(self, n: int = 1) -> None:
        woken, self._waiting = self._waiting[:n], self._waiting[n:]
        for thread in woken:
            self._town.world.at(self._town.world.now, thread, True)

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class Town:
    """All simulated threads of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.threads: list[SimThread] = []
        self.running: SimThread | None = None
        self.closing = False

    def waiting_thread(self) -> SimThread:
        """The one that runs and is about to wait; code of an event loop must not."""
        if self.closing:
            raise ThreadEndedError
        assert self.running is not None, "only a simulated thread may wait"
        return self.running

    def sleep(self, seconds: float) -> None:
        """What blocking code does in a simulated thread."""
        thread = self.waiting_thread()
        self.world.at(self.world.now + seconds, thread, None)
        thread.suspend()

    def close(self) -> None:
        self.closing = True
        for thread in self.threads:
            thread.end()

    @contextmanager
    def instead_of_threading(self) -> Iterator[None]:
        """In the engine's modules, `threading` means this."""
        stand_in = SimpleNamespace(
            Thread=lambda target, name="", daemon=True, args=(): SimThread(self, target),
            Event=lambda: SimEvent(self),
            Condition=lambda: SimCondition(self),
            Lock=threading.Lock,
        )
        replaced = [
            module
            for name, module in sorted(sys.modules.items())
            if name.startswith("livetape.engine.") and getattr(module, "threading", None) is threading
        ]
        for module in replaced:
            vars(module)["threading"] = stand_in
        try:
            yield
        finally:
            for module in replaced:
                vars(module)["threading"] = threading
