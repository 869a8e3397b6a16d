"""Sends by the ring: to whom, how much, and what it says of it; with this system's kernel and with one in memory."""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import os
import random
import resource
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetape.gateway.transports.ring import ENTRY_BYTES, MAX_BYTES, Ring, RingError
from rings import ENTER, LIMIT, SETUP, Answer, Kernel, entries_of, needs_ring, read_all, rings

Links = list[socket.socket]
KERNELS = [
    pytest.param(lambda: None, id="system", marks=needs_ring),
    pytest.param(Kernel, id="memory"),
    pytest.param(lambda: Kernel(first=LIMIT - 3), id="memory, running over"),
]
NewKernel = Callable[[], Kernel | None]
on_each = pytest.mark.parametrize("kernel", KERNELS)


@contextmanager
def pairs(count: int) -> Iterator[tuple[Links, Links]]:
    """So many connections: where is sent, and where it comes out."""
    with ExitStack() as stack:
        both = [socket.socketpair() for _ in range(count)]
        for end in itertools.chain(*both):
            stack.enter_context(end)
            end.setblocking(False)
        yield [here for here, _ in both], [there for _, there in both]


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            yield here, there


def reset(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def fill(link: socket.socket) -> int:
    """Until it takes no byte more. Returns how many it took."""
    taken = 0
    for size in (1 << 16, 1):
        while True:
            try:
                taken += link.send(b"\xff" * size)
            except BlockingIOError:
                break
    return taken


def send_each(ring: Ring, entries: bytes, frames: Sequence[bytes]) -> list[int] | None:
    return ring.send_each(entries, frames, array("I", map(len, frames)))


def frames_of(count: int, salt: int) -> list[bytes]:
    """All different, of different lengths; some of them empty."""
    return [b"%d.%d|" % (salt, number) * (number * salt % 7) for number in range(count)]


# ---- what is sent --------------------------------------------------------------------------------------------------


@on_each
def test_each_gets_its_own_wherever_the_queue_begins_and_however_often_it_runs_over(kernel: NewKernel) -> None:
    with rings(8, kernel()) as ring, pairs(37) as (here, there):
        entries, sent = entries_of(here), [b""] * len(here)
        for count in [*range(38), *range(1, 38, 3), 37, 37]:
            frames = frames_of(count, count + 1)
            some = entries[: count * ENTRY_BYTES]
            assert send_each(ring, some, frames) is None
            assert ring.send_all(some, b"all %d;" % count) is None
            for place in range(count):
                sent[place] += frames[place] + b"all %d;" % count
        assert [read_all(link) for link in there] == sent


@on_each
def test_frames_may_fill_what_is_lent_to_the_last_byte(kernel: NewKernel) -> None:
    with rings(4, kernel()) as ring, pairs(8) as (here, there):
        for link in here:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_BYTES)
        for size in (MAX_BYTES // 8, MAX_BYTES // 8 - 1, 1):
            frames = [bytes((number,)) * size for number in range(8)]
            assert send_each(ring, entries_of(here), frames) is None
            assert [read_all(link) for link in there] == frames
        with pytest.raises((ValueError, IndexError)):
            send_each(ring, entries_of(here), [*frames[:7], b"x" * MAX_BYTES])
        assert [read_all(link) for link in there] == [b""] * 8
        assert ring.send_all(entries_of(here), b"still there") is None
        assert {read_all(link) for link in there} == {b"still there"}


@on_each
def test_who_has_room_for_a_part_takes_it_and_then_nothing(kernel: NewKernel) -> None:
    with rings(4, kernel()) as ring, pairs(9) as (here, there):
        slow, frame = {1, 4, 8}, random.Random(1).randbytes(25_000)
        sent = [b""] * 9
        for place in slow:
            here[place].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        took: dict[int, list[int]] = {place: [] for place in slow}
        for turn in range(30):
            if turn % 2:
                results = ring.send_all(entries_of(here), frame)
            else:
                results = send_each(ring, entries_of(here), [frame] * 9)
            for place in range(9):
                taken = len(frame) if results is None else results[place]
                if place in slow:
                    took[place].append(taken)
                else:
                    assert taken == len(frame)
                sent[place] += frame[: max(taken, 0)]
                got = read_all(there[place]) if place not in slow or turn == 29 else b""
                assert sent[place].startswith(got)
                if got:
                    assert got == sent[place]
                    sent[place] = b""
        for results in took.values():
            assert -errno.EAGAIN in results
            assert set(results[results.index(-errno.EAGAIN) :]) == {-errno.EAGAIN}


@needs_ring
def test_a_full_connection_takes_a_part() -> None:
    """Over TCP; a pair of the system's own takes buffer by buffer."""
    with rings(4) as ring, tcp_pair() as (here, there), pairs(2) as (others, heard):
        frame = random.Random(1).randbytes(MAX_BYTES)
        results: list[int] = []
        entries = entries_of([others[0], here, others[1]])
        while not results or results[-1] != -errno.EAGAIN:
            for link in heard:
                read_all(link)
            told = send_each(ring, entries, [b"a", frame[:100_001], b"b"])
            results.append(100_001 if told is None else told[1])
            assert told is None or (told[0], told[2]) == (1, 1)
        partial = [taken for taken in results if 0 < taken < 100_001]
        assert len(partial) == 1
        here.shutdown(socket.SHUT_WR)
        there.setblocking(True)
        assert b"".join(iter(lambda: there.recv(1 << 16), b"")) == b"".join(
            [frame[: max(taken, 0)] if taken < 100_001 else frame[:100_001] for taken in results]
        )


# ---- who is not there ----------------------------------------------------------------------------------------------


@on_each
def test_who_is_gone_is_told_by_its_errno_and_nobody_else_is_concerned(kernel: NewKernel) -> None:
    with rings(4, kernel()) as ring, pairs(6) as (here, there), tcp_pair() as (torn, far), tcp_pair() as (mute, _):
        there[1].close()
        reset(far)
        mute.shutdown(socket.SHUT_WR)
        gone = os.dup(here[0].fileno())
        os.close(gone)
        entries = entries_of([*here, torn, mute]) + Ring.entry(gone, gone)
        first = ring.send_all(entries, b"one")
        second = send_each(ring, entries, [b"two"] * 9)
        alive = [3, -errno.EPIPE, 3, 3, 3, 3]
        assert first == [*alive, -errno.ECONNRESET, -errno.EPIPE, -errno.EBADF]
        assert second == [*alive, -errno.EPIPE, -errno.EPIPE, -errno.EBADF]
        assert [read_all(link) for place, link in enumerate(there) if place != 1] == [b"onetwo"] * 5


@on_each
def test_what_stands_for_nobody_takes_nothing(kernel: NewKernel) -> None:
    with rings(4, kernel()) as ring, pairs(6) as (here, there):
        entries = [entries_of([link]) for link in here]
        entries[1], entries[4] = Ring.nothing(1000), Ring.nothing(1001)
        for _ in range(5):
            taken = ring.send_all(b"".join(entries), b"data")
            assert taken == [4, 0, 4, 4, 0, 4]
        assert [read_all(link) for link in there] == [b"data" * 5, b"", b"data" * 5, b"data" * 5, b"", b"data" * 5]


@on_each
def test_what_is_no_socket_gets_nothing(kernel: NewKernel, tmp_path: Path) -> None:
    with rings(4, kernel()) as ring, pairs(1) as (here, there), (tmp_path / "file").open("wb") as file:
        entries = Ring.entry(file.fileno(), file.fileno()) + entries_of(here)
        assert ring.send_all(entries, b"data") == [-errno.ENOTSOCK, 4]
        assert read_all(there[0]) == b"data"
    assert (tmp_path / "file").read_bytes() == b""


# ---- a kernel that does not do all of it ---------------------------------------------------------------------------


class Between:
    """Stands between a ring and its kernel."""

    def __init__(self, ring: Ring) -> None:
        raw: Any = ring
        self._real: Callable[..., int] = raw._call
        raw._call = self
        self.most = 1 << 20
        self.failure: int | None = None
        """What each call that is to send fails with, after it has done as many as `most` says."""

    def __call__(self, number: int, descriptor: int, count: int, least: int, *more: int) -> int:
        given = min(count, self.most)
        done = self._real(number, descriptor, given, min(least, given) if count else least, *more) if given else 0
        if count == 0:
            return self._real(number, descriptor, 0, least, *more)
        if self.failure is None:
            return done
        ctypes.set_errno(self.failure)
        return -1


@on_each
@pytest.mark.parametrize("failure", [None, errno.EINTR, errno.EAGAIN])
@pytest.mark.parametrize("most", [0, 1, 3, 7])
def test_fewer_are_taken_than_asked_for(kernel: NewKernel, most: int, failure: int | None) -> None:
    with rings(8, kernel()) as ring, pairs(19) as (here, there):
        between, entries = Between(ring), entries_of(here)
        for begin in range(9):  # wherever the queue begins
            between.most, between.failure = 1 << 20, None
            assert ring.send_all(entries[: begin * ENTRY_BYTES], b"") is None
            between.most, between.failure = most, failure
            frames = frames_of(19, begin + 2)
            results = send_each(ring, entries, frames)
            assert results is not None
            taken = [0 if result == -errno.ECANCELED else result for result in results]
            assert set(zip(taken, map(len, frames), strict=True)) <= {
                pair for frame in frames for pair in ((0, len(frame)), (len(frame), len(frame)))
            }
            assert [read_all(link) for link in there] == [
                frame[:size] for frame, size in zip(frames, taken, strict=True)
            ]
            assert -errno.ECANCELED in results
        between.most, between.failure = 1 << 20, None
        assert ring.send_all(entries, b"all") is None
        assert {read_all(link) for link in there} == {b"all"}


@pytest.mark.parametrize("order", [lambda found: found[::-1], lambda found: found[1:] + found[:1]])
@pytest.mark.parametrize("late", [False, True])
def test_answers_come_in_any_order(order: Callable[[list[Answer]], list[Answer]], *, late: bool) -> None:
    kernel = Kernel(first=LIMIT - 3)
    with rings(4, kernel) as ring, pairs(6) as (here, there):
        kernel.order, kernel.late = order, late
        for turn in range(5):
            frames = frames_of(6, turn + 2)
            for link in here[::2]:
                fill(link)
            results = send_each(ring, entries_of(here), frames)
            assert results == [(-errno.EAGAIN if frame else 0, len(frame))[n % 2] for n, frame in enumerate(frames)]
            assert [read_all(link) for link in there[1::2]] == frames[1::2]
            for link in there[::2]:
                read_all(link)


def test_answers_that_come_later_are_waited_for() -> None:
    """A signal has ended the wait; what stands where they will stand is from the time before."""
    kernel = Kernel()
    with rings(4, kernel) as ring, pairs(8) as (here, there):
        for turn in range(9):
            assert ring.send_all(entries_of(here), b"%d" % turn) is None
            for link in there:
                assert read_all(link) == b"%d" % turn
        kernel.late = True
        for link in here[1:3]:
            fill(link)
        results = ring.send_all(entries_of(here), b"x")
        assert results == [1, -errno.EAGAIN, -errno.EAGAIN, 1, 1, 1, 1, 1]


def test_answers_that_never_come_break_it() -> None:
    kernel = Kernel()
    with rings(4, kernel) as ring, pairs(8) as (here, _):
        kernel.dumb = True
        with pytest.raises(RingError):
            ring.send_all(entries_of(here), b"x")


@settings(max_examples=200)
@given(st.data(), st.integers(LIMIT - 40, LIMIT + 5), st.sampled_from([1, 2, 4, 8]))
def test_whatever_the_kernel_does_what_is_told_is_what_was_sent(data: st.DataObject, first: int, size: int) -> None:
    kernel = Kernel(first=first % LIMIT)
    sent: dict[int, bytes] = {}
    made: dict[int, int] = {}

    def send(descriptor: int, frame: bytes, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        made[descriptor] = data.draw(st.sampled_from([len(frame)] * 3 + [len(frame) // 2, -errno.EAGAIN, -errno.EPIPE]))
        sent[descriptor] = sent.get(descriptor, b"") + frame[: max(made[descriptor], 0)]
        return made[descriptor]

    def order(answers: list[Answer]) -> list[Answer]:
        return data.draw(st.permutations(answers))

    with rings(size, kernel) as ring:
        kernel.send, kernel.order = send, order
        for turn in range(data.draw(st.integers(1, 6))):
            places = range(data.draw(st.integers(0, 13)))
            kernel.most = data.draw(st.sampled_from([None, None, None, 0, 1, 2]))
            kernel.late = data.draw(st.booleans())
            kernel.failures = data.draw(st.lists(st.sampled_from([errno.EINTR, errno.EAGAIN, errno.EBUSY]), max_size=1))
            frames = [b"%d.%d|" % (turn, place) * data.draw(st.integers(0, 3)) for place in places]
            sent.clear()
            made.clear()
            entries = b"".join([Ring.entry(place + 1000, place + 1000) for place in places])
            results = send_each(ring, entries, frames) or [len(frame) for frame in frames]
            kernel.failures = []
            assert results == [made.get(place + 1000, -errno.ECANCELED) for place in places] or (
                results == [len(frame) for frame in frames] and not any(frames)
            )
            assert [sent.get(place + 1000, b"") for place in places] == [
                frame[: max(result, 0)] for frame, result in zip(frames, results, strict=True)
            ]


# ---- there is none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [SETUP, ENTER])
@pytest.mark.parametrize("failure", [errno.EPERM, errno.ENOSYS, errno.ENOMEM, errno.EMFILE])
def test_a_system_that_refuses_it(number: int, failure: int) -> None:
    kernel = Kernel()
    kernel.refused[number] = failure
    with pytest.raises(RingError, match="io_uring cannot be used"):
        kernel.ring(8)
    assert not kernel.is_open


def test_a_kernel_that_is_too_old() -> None:
    kernel = Kernel(features=2)
    with pytest.raises(RingError, match="too old"):
        kernel.ring(8)
    assert not kernel.is_open


@pytest.mark.parametrize("answer", [-errno.EINVAL, -errno.EOPNOTSUPP, 0, 1])
def test_a_kernel_that_knows_the_ring_and_does_not_send(answer: int) -> None:
    kernel = Kernel()
    kernel.send = lambda descriptor, frame, flags: answer
    with pytest.raises(RingError, match="cannot be used"):
        kernel.ring(8)


def test_a_kernel_that_sends_something_else() -> None:
    kernel = Kernel()
    kernel.send = lambda descriptor, frame, flags: os.write(descriptor, b"!")
    with pytest.raises(RingError, match="something else"):
        kernel.ring(8)


@pytest.mark.parametrize(("name", "value"), [("platform", "darwin"), ("platform", "win32"), ("byteorder", "big")])
def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, value)
        with pytest.raises(RingError, match="a part of Linux"):
            Ring()


# ---- its end -------------------------------------------------------------------------------------------------------


@on_each
def test_a_closed_one_sends_nothing_and_says_so(kernel: NewKernel) -> None:
    with rings(8, kernel()) as ring, pairs(3) as (here, there):
        assert ring.send_all(entries_of(here), b"a") is None
        ring.close()
        ring.close()
        assert ring.send_all(entries_of(here), b"b") == [-errno.ECANCELED] * 3
        assert send_each(ring, entries_of(here), [b"b"] * 3) == [-errno.ECANCELED] * 3
        assert [read_all(link) for link in there] == [b"a"] * 3


@needs_ring
@pytest.mark.slow
def test_a_thousand_rings_leave_nothing_behind() -> None:
    def made(count: int) -> tuple[int, int]:
        for _ in range(count):
            with rings(64) as ring, pairs(2) as (here, _):
                assert ring.send_all(entries_of(here), b"a" * 1000) is None
        return open_files(), maps()

    gc.collect()
    before, size = made(20), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert made(1000) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size < 16 * 1024


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def maps() -> int:
    """How often memory is shared with a ring."""
    return Path("/proc/self/maps").read_text().count("io_uring")


def test_entries_are_all_different() -> None:
    entries = [Ring.entry(number, name) for number, name in ((0, 1), (5, 0), (5, 1), (1 << 20, 1 << 60))]
    entries.append(Ring.nothing(1))
    assert {len(entry) for entry in entries} == {ENTRY_BYTES}
    assert len(set(entries)) == 5
