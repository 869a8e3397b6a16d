"""The one writer of a SQLite file in a process.

Units of work are functions of a connection. Everything that waits shares one commit (group commit), each unit under
its own savepoint, so that a failing unit takes nobody with it. A unit is acknowledged after the commit that holds it,
never before.

Units run in a thread of their own; brief ones run in the event loop that asked, when nothing else is being written:
two changes of thread cost more than a small commit (decision 0008). Whatever may have to wait, above all checkpoints
and another process that writes just now, happens in the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal, TypeVar

from livetape.errors import ClosedError

T = TypeVar("T")

MAX_GROUP: Final = 512
CHECKPOINT_EVERY: Final = 256
"""Commits between two checkpoints: about as many pages as SQLite's own default of 1,000."""

LOCKED_S: Final = 5.0
"""So long another process may hold the file before a unit fails."""

_LOCKED_STEP_S: Final = 0.002

# NORMAL in WAL mode: a commit survives the death of the process; after a loss of power the newest commits may be
# missing, but the file is sound. FULL survives that too, at about a tenth of the speed.
Durability = Literal["NORMAL", "FULL"]


def connect(path: Path, *, durability: Durability = "NORMAL", read_only: bool = False) -> sqlite3.Connection:
    """A connection with the settings that every use of the file shares. Raises sqlite3.Error."""
    # autocommit on the driver's side: BEGIN and COMMIT are written out where they belong
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCKED_S)
    try:
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={durability}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16384")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


class Writer:
    """Owns the writing connection. `submit` may be called from any thread, `run` from the event loop of its owner.

    `prepare` runs once on the connection before the first unit, for instance to make tables.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability = "NORMAL",
        prepare: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self.path = path
        self._durability: Durability = durability
        self._prepare = prepare
        # SimpleQueue wakes the thread from C: a Condition's notify costs more than the rest of a hand-over.
        self._units: SimpleQueue[_Unit | None] = SimpleQueue()
        self._urgent: deque[_Unit] = deque()
        self._brief: list[_Unit] = []
        self._gate = threading.Lock()
        self._writing = threading.Lock()
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._opened: Future[None] = Future()
        self._thread: threading.Thread | None = None
        self._checkpointed = 0
        self.commits = 0
        self.units = 0

    def open(self) -> None:
        """Start the thread and open the file. Raises sqlite3.Error when that fails.

        Who does not call it has the file opened by the first unit, which then fails if that fails; the next one
        tries again.
        """
        with self._gate:
            self._start()
            opened = self._opened
        opened.result()

    @property
    def is_open(self) -> bool:
        """Whether the file is there and prepared."""
        return self._connection is not None

    def submit(self, unit: Callable[[sqlite3.Connection], T], *, urgent: bool = False) -> Future[T]:
        """Run the unit in the writer thread; the future has its result after the commit.

        Urgent units (lease renewals) go ahead of all that wait.
        """
        future: Future[T] = Future()
        self._put((unit, future), urgent=urgent)
        return future

    async def run(self, unit: Callable[[sqlite3.Connection], T], *, brief: bool = False) -> T:
        """Run the unit and return after the commit. Cancelling it does not take the unit back.

        `brief`: it writes a few rows and reads next to nothing, so that the loop may do it itself.
        """
        loop = asyncio.get_running_loop()
        waiter = _LoopWaiter(loop)
        if not brief or self._durability == "FULL":  # such a commit waits for the disk
            self._put((unit, waiter))
        elif self._closing:
            raise ClosedError("the database writer is closed")
        else:
            if not self._brief:
                loop.call_soon(self._write_brief)  # after everybody of this tick has come
            self._brief.append((unit, waiter))
        result: T = await waiter.future
        return result

    def run_now(self, unit: Callable[[sqlite3.Connection], None]) -> bool:
        """Run a brief unit in a commit of its own, here. False when that could have to wait: then it did not run."""
        if self._durability == "FULL" or self._closing:
            return False
        outcomes = self._commit_here([(unit, Future())])
        if outcomes is None:
            return False
        ((_, _, error),) = outcomes
        if error is not None:
            raise error
        return True

    def _put(self, unit: _Unit, *, urgent: bool = False) -> None:
        with self._gate:
            if self._closing:
                raise ClosedError("the database writer is closed")
            if urgent:
                self._urgent.append(unit)
            self._units.put(None if urgent else unit)
            self._start()

    def _start(self) -> None:
        """The thread, if there is none. The caller holds the gate."""
        if self._thread is None:
            self._opened = Future()
            self._thread = threading.Thread(target=self._work, name="livetape-sqlite-writer", daemon=True)
            self._thread.start()

    def _write_brief(self) -> None:
        group, self._brief = self._brief, []
        if not group:
            return  # closing took them
        outcomes = self._commit_here(group)
        if outcomes is None:
            # Something is being written, here or by another process: wait in the thread, not in the loop.
            with self._gate:
                for unit in group:
                    self._units.put(unit)
                self._start()
            return
        for waiter, result, error in outcomes:
            if isinstance(waiter, _LoopWaiter):
                _settle([(waiter.future, result, error)])

    def _commit_here(self, group: list[_Unit]) -> list[_Outcome] | None:
        """None: something is being written, here or by another process."""
        if self._connection is None or not self._units.empty() or not self._writing.acquire(blocking=False):
            return None
        try:
            outcomes = self._commit(self._connection, group)
        finally:
            self._writing.release()
        if self.commits - self._checkpointed >= CHECKPOINT_EVERY:
            self._units.put(None)
        return outcomes

    def close(self) -> None:
        """Finish what waits, then close the file. Idempotent."""
        with self._gate:
            for unit in self._brief:
                self._units.put(unit)
            if self._brief:
                self._start()
            self._brief = []
            self._closing = True
            self._units.put(None)
            thread = self._thread
        if thread is not None:
            thread.join()

    # ---- in the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            connection = connect(self.path, durability=self._durability)
            try:
                if self._prepare is not None:
                    self._prepare(connection)
                # Checkpoints wait for the disk: they are made here, never by a commit in the loop.
                connection.execute("PRAGMA wal_autocheckpoint=0")
                # A loop must not wait for another process either: this thread does, see `_commit_patiently`.
                connection.execute("PRAGMA busy_timeout=0")
            except BaseException:
                connection.close()
                raise
        except BaseException as error:
            self._not_opened(error)
            return
        self._connection = connection
        self._opened.set_result(None)
        try:
            while True:
                group = self._waiting()
                if group:
                    with self._writing:
                        outcomes = self._commit_patiently(connection, group)
                    _resolve(outcomes)
                if self.commits - self._checkpointed >= CHECKPOINT_EVERY:
                    self._checkpoint(connection)
                # Nothing is put after the mark that closing leaves, and a group may have swallowed it.
                if self._closing and self._units.empty() and not self._urgent:
                    return
        finally:
            self._connection = None
            connection.close()

    def _not_opened(self, error: BaseException) -> None:
        """Whoever waits learns it; the next one tries again."""
        with self._gate:
            waiting: list[_Unit] = []
            while not self._units.empty():
                waiting += self._waiting()
            self._thread = None
        self._opened.set_exception(error)
        _resolve([(waiter, None, error) for _, waiter in waiting])

    def _waiting(self) -> list[_Unit]:
        """Wait for something to do, then take all that is there, what is urgent first."""
        group: list[_Unit] = []
        unit = self._units.get()
        try:
            while True:
                if unit is not None:
                    group.append(unit)
                if len(group) >= MAX_GROUP:
                    break
                unit = self._units.get_nowait()
        except Empty:
            pass
        return [self._urgent.popleft() for _ in range(len(self._urgent))] + group

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the write-ahead log into the file, so that it can begin again.

        Most of it while others write, over a connection of its own; only what they wrote meanwhile holds them up.
        """
        self._checkpointed = self.commits
        # A reader in the way makes it shorter, not wrong; the next one goes on.
        with contextlib.suppress(sqlite3.OperationalError):
            with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as beside:
                beside.execute(f"PRAGMA synchronous={self._durability}")
                beside.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            with self._writing:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _commit_patiently(self, connection: sqlite3.Connection, group: list[_Unit]) -> list[_Outcome]:
        """Wait for another process that writes, then commit."""
        until = time.monotonic() + LOCKED_S
        while (outcomes := self._commit(connection, group, give_up=time.monotonic() >= until)) is None:
            time.sleep(_LOCKED_STEP_S)
        return outcomes

    # ---- in either -----------------------------------------------------------------------------------------------

    def _commit(
        self, connection: sqlite3.Connection, group: list[_Unit], *, give_up: bool = False
    ) -> list[_Outcome] | None:
        """Run the group in one transaction, or everybody learns why not. The caller holds `_writing`.

        None: another process is writing, and nothing was begun (`give_up`: then that is why not).
        """
        outcomes: list[_Outcome] = []
        alone = len(group) == 1
        try:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY and not give_up:
                    return None
                raise
            for unit, waiter in group:
                if not alone:
                    connection.execute("SAVEPOINT unit")
                try:
                    outcomes.append((waiter, unit(connection), None))
                except Exception as error:  # it belongs to the caller of this unit
                    outcomes.append((waiter, None, error))
                    if alone:
                        connection.execute("ROLLBACK")
                    else:
                        connection.execute("ROLLBACK TO unit")
                if not alone:
                    connection.execute("RELEASE unit")
            if connection.in_transaction:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            # a unit that failed by itself keeps its own error
            failed = {id(waiter): own for waiter, _, own in outcomes if own is not None}
            outcomes = [(waiter, None, failed.get(id(waiter), error)) for _, waiter in group]
        self.commits += 1
        self.units += len(group)
        return outcomes


class _LoopWaiter:
    """A waiting coroutine: woken in its loop, all waiters of one loop by one call."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()


_Waiter = _LoopWaiter | Future[Any]
_Unit = tuple[Callable[[sqlite3.Connection], Any], _Waiter]
_Outcome = tuple[_Waiter, Any, BaseException | None]


def _resolve(outcomes: list[_Outcome]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, BaseException | None]]] = {}
    for waiter, result, error in outcomes:
        if isinstance(waiter, _LoopWaiter):
            by_loop.setdefault(waiter.loop, []).append((waiter.future, result, error))
        elif not waiter.set_running_or_notify_cancel():
            continue
        elif error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(result)
    for loop, settled in by_loop.items():
        # a loop that was closed while its unit was written: nobody waits any more
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, result, error in settled:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
