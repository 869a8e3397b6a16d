"""Many `send`s by one system call: io_uring of Linux, as far as that needs it.

Kernel and process share memory: entries say what to do, answers say how it went. Layouts and numbers are those of
`linux/io_uring.h`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from struct import Struct
from typing import Final

_SETUP: Final = 425
_ENTER: Final = 426
_GETEVENTS: Final = 1
_SINGLE_MMAP: Final = 1
_ENTRIES_AT: Final = 0x10000000
ENTRY_BYTES: Final = 64
_ANSWER_BYTES: Final = 16

_ENTRY: Final = Struct("<BBHiQQIIQ24x")
"""Opcode, flags, priority, descriptor, offset, address, length, flags of `send`, and a name for the answer."""
_NAME_AT: Final = 4
"""In words of eight bytes."""

_NOTHING: Final = 0
_SEND: Final = 26
_AT_ONCE: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)

MAX_BYTES: Final = 256 * 1024
"""So much is lent to the kernel at once."""


class RingError(Exception):
    """There is no ring to be had here, or it is broken."""


class Ring:
    """Sends to many sockets by one system call for at most `entries` of them.

    Nothing waits: what a socket does not take at once is told. When a method returns, the kernel has done with
    everything it was given. For one thread, and for the process that made it.

    Raises:
        RingError: this system has none, or does not let us.
    """

    def __init__(self, entries: int = 512) -> None:
        if sys.platform != "linux" or sys.byteorder != "little":
            raise RingError("io_uring is a part of Linux")
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.argtypes = [ctypes.c_long] * 7
        self._call.restype = ctypes.c_long
        parameters = (ctypes.c_uint32 * 30)()
        self._descriptor = int(self._call(_SETUP, entries, ctypes.addressof(parameters), 0, 0, 0, 0))
        if self._descriptor < 0:
            raise RingError(f"io_uring cannot be used: {os.strerror(ctypes.get_errno())}")
        try:
            self._share(list(parameters))
            self._try()
        except (OSError, RingError) as error:
            self.close()
            raise RingError(f"io_uring cannot be used: {error}") from error

    def close(self) -> None:
        """Give it back. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @staticmethod
    def entry(descriptor: int, name: int) -> bytes:
        """What stands for a socket in `send_all` and `send_each`; the names are all different."""
        return _ENTRY.pack(_SEND, 0, 0, descriptor, 0, 0, 0, _AT_ONCE, name)

    @staticmethod
    def nothing(name: int) -> bytes:
        """What stands for a socket that is gone: it takes nothing."""
        return _ENTRY.pack(_NOTHING, 0, 0, -1, 0, 0, 0, 0, name)

    def send_all(self, entries: bytes, frame: bytes) -> list[int] | None:
        """The same to each of these sockets (an `entry` behind the other), all different; at most `MAX_BYTES`.

        None: each has taken all of it. Else how many bytes each has taken, or below zero the `errno` that kept it from
        taking any.

        Raises:
            RingError: nobody knows who has taken what.
        """
        self._lent[: len(frame)] = frame
        count = len(entries) // ENTRY_BYTES
        return self._send(entries, array("Q", (self._lent_at,)) * count, array("I", (len(frame),)) * count)

    def send_each(self, entries: bytes, frames: Sequence[bytes], lengths: array[int]) -> list[int] | None:
        """To each its own, with `lengths` as `array("I", …)`, together at most `MAX_BYTES`; else as `send_all`."""
        data = b"".join(frames)
        self._lent[: len(data)] = data
        return self._send(entries, array("Q", accumulate(lengths, initial=self._lent_at)), lengths)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _share(self, parameters: list[int]) -> None:
        self._size, self._answers, features = parameters[0], parameters[1], parameters[5]
        if not features & _SINGLE_MMAP:
            raise RingError("this kernel is too old")
        sq_head, sq_tail, _, _, _, _, sq_array = parameters[10:17]
        cq_head, cq_tail, _, _, _, answers_at = parameters[20:26]
        size = max(sq_array + self._size * 4, answers_at + self._answers * _ANSWER_BYTES)
        rings = memoryview(mmap.mmap(self._descriptor, size + -size % 8, mmap.MAP_SHARED))
        self._words = rings.cast("I")
        self._sq_head, self._sq_tail = sq_head // 4, sq_tail // 4
        self._cq_head, self._cq_tail = cq_head // 4, cq_tail // 4
        answers = rings[answers_at : answers_at + self._answers * _ANSWER_BYTES]
        self._names = answers.cast("Q")[::2]
        self._results = answers.cast("i")[2::4]
        # Which entry stands at which place of the queue: each at its own.
        first = sq_array // 4
        self._words[first : first + self._size] = array("I", range(self._size))
        self._entries = memoryview(mmap.mmap(self._descriptor, self._size * ENTRY_BYTES, offset=_ENTRIES_AT))
        self._addresses = self._entries.cast("Q")[2::8]
        self._lengths = self._entries.cast("I")[6::16]
        self._lent = mmap.mmap(-1, MAX_BYTES)
        self._lent_at = ctypes.addressof(ctypes.c_char.from_buffer(self._lent))

    def _try(self) -> None:
        """A kernel may know the ring and not this use of it."""
        here, there = socket.socketpair()
        with here, there:
            if self.send_all(self.entry(here.fileno(), 1), b"?") is not None:
                raise RingError("it does not send")
            there.setblocking(False)
            if there.recv(2) != b"?":
                raise RingError("it sends something else")

    def _send(self, entries: bytes, addresses: array[int], lengths: array[int]) -> list[int] | None:
        count, done = len(lengths), 0
        expected = lengths.tobytes()
        results: list[bytes] = []
        while done < count:
            at = self._words[self._sq_tail] % self._size
            end = min(count, done + self._size - at)
            upto = at + end - done
            some = entries[done * ENTRY_BYTES : end * ENTRY_BYTES]
            self._entries[at * ENTRY_BYTES : upto * ENTRY_BYTES] = some
            self._addresses[at:upto] = addresses[done:end]
            self._lengths[at:upto] = lengths[done:end]
            results.append(self._submit(some, expected[done * 4 : end * 4]))
            done = end
        found = b"".join(results)
        return None if found == expected else array("i", found).tolist()

    def _submit(self, entries: bytes, expected: bytes) -> bytes:
        """Have the entries after the tail done. Returns their results, in the order of the entries."""
        words, count = self._words, len(entries) // ENTRY_BYTES
        tail = words[self._sq_tail]
        words[self._sq_tail] = (tail + count) & 0xFFFFFFFF
        entered = self._call(_ENTER, self._descriptor, count, count, _GETEVENTS, 0, 0)
        head = words[self._cq_head]
        # A signal may end the wait when all were taken.
        if entered != count or (words[self._cq_tail] - head) & 0xFFFFFFFF != count:
            count = self._settle(tail)
        words[self._cq_head] = (head + count) & 0xFFFFFFFF
        results = _turning(self._results, head % self._answers, count)
        if results == expected:  # as bytes: a number for each would have to be made
            return results
        # They may have come in another order, or there are fewer.
        names = array("Q", _turning(self._names, head % self._answers, count))
        named = dict(zip(names, array("i", results), strict=True))
        wanted = memoryview(entries).cast("Q")[_NAME_AT::8]
        return array("i", [named.get(name, -errno.ECANCELED) for name in wanted]).tobytes()

    def _settle(self, tail: int) -> int:
        """Take the entries back that the kernel did not take, and wait for the answers of the others: so many."""
        words = self._words
        words[self._sq_tail] = words[self._sq_head]
        count = (words[self._sq_head] - tail) & 0xFFFFFFFF
        while (words[self._cq_tail] - words[self._cq_head]) & 0xFFFFFFFF < count:
            if self._call(_ENTER, self._descriptor, 0, count, _GETEVENTS, 0, 0) < 0:
                failure = ctypes.get_errno()
                if failure != errno.EINTR:
                    raise RingError(os.strerror(failure))
        return count


def _turning(values: memoryview[int], first: int, count: int) -> bytes:
    found = values[first : first + count]
    missing = count - len(found)
    return found.tobytes() + values[:missing].tobytes() if missing else found.tobytes()
