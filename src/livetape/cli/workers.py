"""Several processes on one listening socket, and the one that looks after them.

The parent listens and never accepts; each worker inherits the socket and accepts from its one queue. Nothing that
waits there is lost when a worker dies or restarts, as it would be with a queue for each (SO_REUSEPORT), and a worker
that is busy takes less. Workers share nothing else.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from livetape.cli.errors import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED
from livetape.events.backoff import Backoff

LONGEST_PAUSE_S: Final = 10.0
HEALTHY_S: Final = 10.0
"""A worker that lived so long is started again at once when it dies."""
BEYOND_DRAIN_S: Final = 15.0
"""A worker that has not ended so long after its drain is killed."""
LOOK_S: Final = 1.0

Work = Callable[["Lifeline"], int]
"""What a worker does: its exit code."""

Start = Callable[["Lifeline"], int]
"""Starts a worker as a process of its own, and returns its number. It inherits the two descriptors."""


@dataclass(frozen=True, slots=True)
class Lifeline:
    """What ties a worker to its parent. `number` counts from 0. `parent` is readable when the parent is gone."""

    number: int
    parent: int
    said: int

    def ready(self) -> None:
        """Tell the parent that this worker serves."""
        os.write(self.said, bytes([self.number]))


@dataclass(slots=True)
class _Slot:
    number: int
    pid: int | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    was_ready: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(first=0.2, longest=LONGEST_PAUSE_S))


class Workers:
    """Starts `count` workers, starts again those that die, and ends them all on SIGTERM or SIGINT.

    A worker is a fork of this process that does `work` (then this is one without threads and without an event loop), or
    what `start` has made of it. `say` is for people; `ready` is called once, when all serve, `stopping` when no worker
    will be started any more, `ended` with the number of a process as soon as it is gone. `report` turns an exception of
    a worker into its exit code.
    """

    def __init__(
        self,
        count: int,
        work: Work,
        *,
        drain_s: float,
        say: Callable[[str], None],
        ready: Callable[[], None],
        stopping: Callable[[], None],
        report: Callable[[BaseException], int],
        start: Start | None = None,
        ended: Callable[[int], None] = lambda pid: None,
        letting: str = "sockets go elsewhere",
    ) -> None:
        self._slots = [_Slot(number) for number in range(count)]
        self._work = work
        self._start_process = start
        self._tell_ended = ended
        self._letting = letting
        self._drain_s = drain_s
        self._say = say
        self._ready = ready
        self._stopping = stopping
        self._report = report
        self._stopping_since: float | None = None
        self._signals = 0
        self._code = 0
        self._served = False

    def run(self) -> int:
        """Until all have ended: 0 when a signal asked for it and every worker drained, 3 when their settings cannot
        work, 130 when it was asked twice, else 1."""
        self._alive_read, self._alive_write = os.pipe()
        self._said_read, self._said_write = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write, self._said_read):
            os.set_blocking(end, False)
        before = {number: signal.signal(number, _nothing) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            return self._look_after()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            for end in (
                self._alive_read,
                self._alive_write,
                self._said_read,
                self._said_write,
                self._wake_read,
                self._wake_write,
            ):
                os.close(end)

    def _look_after(self) -> int:
        while True:
            now = time.monotonic()
            if self._stopping_since is None:
                for slot in self._slots:
                    if slot.pid is None and slot.due_at <= now:
                        self._start(slot)
            elif not self._living():
                return self._code
            elif now - self._stopping_since > self._drain_s + BEYOND_DRAIN_S:
                self._say("workers that did not end are killed")
                self._code = self._code or EXIT_FAILED
                self._send(signal.SIGKILL)
            self._wait()
            self._reap()
            if self._signals > 1:
                self._say("stopped at once")
                self._send(signal.SIGKILL)
                while self._living():
                    self._wait()
                    self._reap()
                return EXIT_INTERRUPTED

    def _living(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.pid is not None]

    def _start(self, slot: _Slot) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        slot.started_at, slot.was_ready = time.monotonic(), False
        if self._start_process is not None:
            slot.pid = self._start_process(Lifeline(slot.number, self._alive_read, self._said_write))
            return
        pid = os.fork()
        if pid == 0:
            self._be_worker(slot.number)
        slot.pid = pid

    def _be_worker(self, number: int) -> None:
        """The child. Never returns."""
        code = EXIT_FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A terminal sends Ctrl-C to all of them: the parent passes on what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for end in (self._alive_write, self._wake_read, self._wake_write, self._said_read):
                os.close(end)
            code = self._work(Lifeline(number, self._alive_read, self._said_write))
        except BaseException as error:
            code = self._report(error)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _wait(self) -> None:
        """For a signal, a word of a worker, or the time to look again."""
        due = [slot.due_at for slot in self._slots if slot.pid is None and self._stopping_since is None]
        timeout = min([LOOK_S, *(max(0.0, at - time.monotonic()) for at in due)])
        readable, _, _ = select.select([self._wake_read, self._said_read], [], [], timeout)
        if self._wake_read in readable:
            for number in os.read(self._wake_read, 1024):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._signals += 1
                    if self._stopping_since is None:
                        self._stop(0)
        if self._said_read in readable:
            for number in os.read(self._said_read, 1024):
                self._slots[number].was_ready = True
            if not self._served and all(slot.was_ready for slot in self._slots):
                self._served = True
                self._ready()

    def _stop(self, code: int) -> None:
        self._code = code
        self._stopping_since = time.monotonic()
        self._say(f"stopping: letting {self._letting} (again to stop at once)")
        self._stopping()
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for slot in self._living():
            assert slot.pid is not None
            os.kill(slot.pid, number)  # not reaped yet: the number is still this process'

    def _reap(self) -> None:
        for slot in self._living():
            assert slot.pid is not None
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid:
                self._ended(slot, os.waitstatus_to_exitcode(status))

    def _ended(self, slot: _Slot, code: int) -> None:
        pid, slot.pid = slot.pid, None
        assert pid is not None
        self._tell_ended(pid)
        if self._stopping_since is not None:
            # Before it could listen to signals, SIGTERM simply ends it.
            if code not in (0, -signal.SIGTERM):
                self._code = self._code or EXIT_FAILED
            return
        if code == EXIT_CONFIG and not slot.was_ready:
            self._stop(EXIT_CONFIG)  # it has said why; the next one would say the same
            return
        now = time.monotonic()
        if now - slot.started_at > HEALTHY_S:
            slot.backoff.reset()
        pause = slot.backoff.next()
        slot.due_at = now + pause
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._say(f"worker {slot.number} (process {pid}) ended with {how}: it is started again in {pause:.1f} s")


def _nothing(_number: int, _frame: object) -> None:
    """Only wakes the parent up."""
