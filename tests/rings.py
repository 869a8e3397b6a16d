"""Whether this system lets us have a ring, and what stands in for it where it does not."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from struct import Struct

import pytest

from livetape.gateway.transports.ring import Ring, RingError


def _why_not() -> str | None:
    try:
        Ring(1).close()
    except RingError as error:
        return str(error)
    return None


WHY_NOT = _why_not()
needs_ring = pytest.mark.skipif(WHY_NOT is not None, reason=f"{WHY_NOT}")

SETUP, ENTER = 425, 426
ENTRIES_AT, ENTRY_BYTES = 0x10000000, 64
ENTRY, ANSWER = Struct("<BBHiQQIIQ24x"), Struct("<QiI")
NOTHING = 0
SEND, NOTHING = 26, 0
LIMIT = 1 << 32
FEATURES = 1

Answer = tuple[int, int]
"""A name and a result."""


class Kernel:
    """io_uring on plain memory. It does at once what it is given, as its fields say.

    `first`: the number of the first entry and of the first answer; they run over at 2**32.
    """

    def __init__(self, *, first: int = 0, features: int = FEATURES) -> None:
        self._first = first
        self._features = features
        self.refused: dict[int, int] = {}
        """`errno` by the number of the system call."""
        self.most: int | None = None
        """So many entries are taken at once."""
        self.failures: list[int] = []
        """The next calls that are to send do nothing and fail with these."""
        self.order: Callable[[list[Answer]], list[Answer]] = list
        """Of the answers."""
        self.late = False
        """Answers come only with a call that waits for them and sends nothing."""
        self.dumb = False
        """They never come, and whoever waits is told so."""
        self.send: Callable[[int, bytes, int], int] = send
        self.given: list[int] = []
        """How many entries each call wanted to be done."""
        self._answers: list[Answer] = []
        self._descriptor = -1

    @property
    def is_open(self) -> bool:
        """Whether the ring that was made last has not been given back."""
        try:
            os.fstat(self._descriptor)
        except OSError:
            return False
        return True

    @contextmanager
    def reigning(self) -> Iterator[None]:
        """Whoever makes a ring meanwhile has it from here."""
        kernel = self

        class Library:
            def __init__(self, name: object, *, use_errno: bool) -> None:
                self.syscall = kernel

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ctypes, "CDLL", Library)
            yield

    def ring(self, entries: int) -> Ring:
        with self.reigning():
            return Ring(entries)

    def __call__(self, number: int, *arguments: int) -> int:
        try:
            if number in self.refused:
                raise OSError(self.refused[number], "")
            return self._setup(*arguments) if number == SETUP else self._enter(*arguments)
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1

    def _setup(self, entries: int, parameters_at: int, *_: int) -> int:
        size = self._size = 1 << (entries - 1).bit_length()
        descriptor = self._descriptor = os.memfd_create("ring")
        os.ftruncate(descriptor, ENTRIES_AT + size * ENTRY_BYTES + mmap.PAGESIZE)
        queue_at = 64
        self._answers_at = queue_at + size * 4 + -(size * 4) % 16
        self._memory = mmap.mmap(descriptor, self._answers_at + 2 * size * ANSWER.size + 64)
        self._words = memoryview(self._memory)[:16].cast("I")
        self._words[:] = memoryview(Struct("<4I").pack(*[self._first] * 4)).cast("I")
        self._queue = memoryview(self._memory)[queue_at : queue_at + size * 4].cast("I")
        self._entries = mmap.mmap(descriptor, size * ENTRY_BYTES, offset=ENTRIES_AT)
        parameters = (ctypes.c_uint32 * 30).from_address(parameters_at)
        parameters[0], parameters[1], parameters[5] = size, 2 * size, self._features
        parameters[10], parameters[11], parameters[16] = 0, 4, queue_at
        parameters[20], parameters[21], parameters[25] = 8, 12, self._answers_at
        return descriptor

    def _enter(self, descriptor: int, count: int, least: int, *_: int) -> int:
        if descriptor < 0:
            raise OSError(errno.EBADF, "")
        words = self._words
        if count:
            self.given.append(count)
            if self.failures:
                raise OSError(self.failures.pop(0), "")
        taken = min(count, (words[1] - words[0]) % LIMIT, self._size if self.most is None else self.most)
        for _turn in range(taken):
            at = self._queue[words[0] % self._size] * ENTRY_BYTES
            opcode, *_rest, to, _offset, address, length, flags, name = ENTRY.unpack_from(self._entries, at)
            assert opcode == SEND or (opcode == NOTHING and not flags)
            taken_of_it = self.send(to, ctypes.string_at(address, length), flags) if opcode == SEND else 0
            self._answers.append((name, taken_of_it))
            words[0] = (words[0] + 1) % LIMIT
        if self.dumb:
            if not count:
                raise OSError(errno.EBADR, "")
        elif not (self.late and count):
            for answer in self.order(self._answers):
                at = self._answers_at + words[3] % (2 * self._size) * ANSWER.size
                ANSWER.pack_into(self._memory, at, *answer, 0)
                words[3] = (words[3] + 1) % LIMIT
            self._answers.clear()
            assert (words[3] - words[2]) % LIMIT >= (taken if count else least), "it would wait for ever"
        return taken


def send(descriptor: int, data: bytes, flags: int) -> int:
    """What the system does for one entry."""
    try:
        link = socket.socket(fileno=descriptor)
    except OSError as error:
        return -(error.errno or 0)
    try:
        return link.send(data, flags)
    except OSError as error:
        return -(error.errno or 0)
    finally:
        link.detach()


@contextmanager
def rings(entries: int, kernel: Kernel | None = None) -> Iterator[Ring]:
    """A ring of this system, or of `kernel`."""
    with closing(Ring(entries) if kernel is None else kernel.ring(entries)) as ring:
        yield ring


def read_all(link: socket.socket) -> bytes:
    """What has come to the other end of a pair."""
    parts: list[bytes] = []
    while True:
        try:
            part = link.recv(1 << 20)
        except (BlockingIOError, ConnectionResetError):
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def entries_of(links: Sequence[socket.socket]) -> bytes:
    return b"".join([Ring.entry(link.fileno(), link.fileno()) for link in links])
