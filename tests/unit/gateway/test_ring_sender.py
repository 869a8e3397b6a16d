"""Who gets a frame by the ring and who by its writer, and that everybody gets exactly its own, in order."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.gateway.member import Writer
from livetape.gateway.sender import Row
from livetape.gateway.transports import ring_sender as module
from livetape.gateway.transports.ring import MAX_BYTES, Ring
from livetape.gateway.transports.ring_sender import FEWEST, MAX_FRAME, RingSender, open_sender
from livetape.observability import NoMetrics
from livetape.runtime.sockets import open_sockets
from livetape.settings import GatewaySettings, Settings
from livetape.testing.fakes import FakeLog, ManualClock
from rings import ENTER, SETUP, Kernel, read_all
from unit.gateway.rig import Counts


class Link:
    """A transport with a real socket: what is written to it stands in `written`, what is sent past it comes out at
    `heard`."""

    def __init__(self, stack: ExitStack, *, secret: bool = False) -> None:
        self.here, self.there = (stack.enter_context(end) for end in socket.socketpair())
        self.here.setblocking(False)
        self.there.setblocking(False)
        self.secret = secret
        self.waiting = 0
        self.aborted = False
        self.closing = False
        self.written = b""
        self.limits = (1, 4)
        self.on_write: Callable[[], None] = lambda: None
        self.failure: Exception | None = None

    def write(self, data: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.written += data
        self.set_write_buffer_limits(self.limits[1], self.limits[0])

    def get_write_buffer_size(self) -> int:
        return self.waiting + len(self.written)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.limits

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Calls back as a transport does."""
        assert high is not None
        if self.closing and self.failure is not None:
            raise self.failure  # its handle is closed
        self.limits = (high // 4 if low is None else low, high)
        if len(self.written) > high:
            self.on_write()

    def get_extra_info(self, name: str) -> object:
        return {"socket": self.here, "sslcontext": self if self.secret else None}[name]

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True

    @property
    def heard(self) -> bytes:
        return read_all(self.there)


class Site:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.kernel = Kernel()
        self.counts = Counts()
        self.sender = RingSender(self.kernel.ring(64), self.counts)
        self.kernel.given.clear()

    def link(self, **options: bool) -> tuple[Link, Writer]:
        link = Link(self._stack, **options)
        return link, self.sender.open(cast("asyncio.Transport", link))

    def links(self, count: int = FEWEST) -> tuple[list[Link], list[Writer]]:
        made = [self.link() for _ in range(count)]
        return [link for link, _ in made], [writer for _, writer in made]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def site(stack: ExitStack) -> Iterator[Site]:
    made = Site(stack)
    yield made
    made.sender.close()


Give = Callable[[RingSender, Sequence[Writer], bytes], int]
GIVES: dict[str, Give] = {
    "all": lambda sender, writers, frame: sender.send_all(writers, frame),
    "row": lambda sender, writers, frame: sender.send_row(Row(writers), 0, len(writers), frame),
    "each": lambda sender, writers, frame: len(sender.send_each(writers, [frame] * len(writers))),
}
by_any = pytest.mark.parametrize("give", GIVES.values(), ids=GIVES)


# ---- the ring or the writer ----------------------------------------------------------------------------------------


@by_any
def test_frames_for_many_leave_by_one_call(site: Site, give: Give) -> None:
    links, writers = site.links(30)
    assert give(site.sender, writers, b"frame") == 0
    assert [(link.heard, link.written) for link in links] == [(b"frame", b"")] * 30
    assert site.kernel.given == [30]


@by_any
def test_frames_for_few_go_by_their_writers(site: Site, give: Give) -> None:
    links, writers = site.links(FEWEST - 1)
    assert give(site.sender, writers, b"frame") == 0
    assert [(link.heard, link.written) for link in links] == [(b"", b"frame")] * (FEWEST - 1)


@by_any
@pytest.mark.parametrize("size", [MAX_FRAME, MAX_FRAME + 1, MAX_BYTES, MAX_BYTES + 1, 2 * MAX_BYTES])
def test_large_frames_arrive_either_way(site: Site, give: Give, size: int) -> None:
    links, writers = site.links()
    frame = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert give(site.sender, writers, frame) == 0
    for link in links:
        assert link.heard + link.written == frame


def test_each_gets_its_own_when_together_they_are_too_many_for_one_call(site: Site) -> None:
    links, writers = site.links(40)
    frames = [bytes((number,)) * 20_000 for number in range(40)]
    assert site.sender.send_each(writers, frames) == []
    assert [link.heard + link.written for link in links] == frames
    assert sum(site.kernel.given) == 40


@by_any
def test_where_something_waits_nothing_overtakes_it(site: Site, give: Give) -> None:
    links, writers = site.links(FEWEST + 2)
    links[2].waiting = 1
    assert give(site.sender, writers, b"frame") == 0
    assert (links[2].written, links[2].heard) == (b"frame", b"")
    for link in links:
        assert link.heard + link.written in (b"frame", b"")  # the first link's has been read above


@by_any
def test_who_is_not_known_gets_its_frames_by_its_writer(site: Site, give: Give) -> None:
    links, writers = site.links(FEWEST)
    secret, secret_writer = site.link(secret=True)
    cut, cut_writer = site.link()
    site.sender.cut(cut_writer)
    site.sender.cut(cut_writer)
    strange: list[bytes] = []
    assert give(site.sender, [*writers, secret_writer, cut_writer, strange.append], b"frame") == 0
    assert (secret.written, secret.heard) == (b"frame", b"")
    assert (cut.written, cut.heard) == (b"", b""), "it is about to be somebody else's"
    assert strange == [b"frame"]
    assert [link.heard + link.written for link in links] == [b"frame"] * FEWEST


@by_any
def test_one_that_does_not_read_makes_nobody_else_wait(site: Site, give: Give) -> None:
    links, writers = site.links(2 * FEWEST)
    writers[3](b"much")
    assert give(site.sender, writers, b"frame") == 0
    assert (links[3].written, links[3].heard) == (b"muchframe", b"")
    others = [link for link in links if link is not links[3]]
    assert [(link.written, link.heard) for link in others] == [(b"", b"frame")] * len(others)
    links[3].written = b""
    assert give(site.sender, writers, b"frame") == 0
    assert [(link.written, link.heard) for link in links] == [(b"", b"frame")] * len(links)


def test_a_writer_that_stands_there_twice_gets_both_in_order(site: Site) -> None:
    links, writers = site.links()
    order = [*writers, writers[0], *writers, writers[0]]
    assert site.sender.send_each(order, [b"%d," % number for number in range(len(order))]) == []
    assert links[0].heard + links[0].written == b"0,6,7,13,"


def test_a_row_is_known_until_one_of_it_is_cut_and_its_descriptor_somebody_elses(site: Site, stack: ExitStack) -> None:
    links, writers = site.links(20)
    row = Row(writers)
    for _ in range(2):
        assert site.sender.send_row(row, 0, 20, b"a") == 0
    lost = links[7]
    descriptor = lost.here.fileno()
    site.sender.cut(writers[7])
    new = Link(stack)
    lost.here.close()
    with new.here as here:
        new.here = stack.enter_context(socket.socket(fileno=os.dup2(here.fileno(), descriptor)))
    site.sender.open(cast("asyncio.Transport", new))
    assert site.sender.send_row(row, 0, 10, b"b") == 0
    assert site.sender.send_row(row, 10, 20, b"b") == 0
    assert (lost.written, lost.heard) == (b"", b"aa")
    assert (new.written, new.heard) == (b"", b"")
    assert [link.heard + link.written for link in links if link is not lost] == [b"aab"] * 19


def test_a_part_of_a_row_is_for_that_part(site: Site) -> None:
    links, writers = site.links(30)
    row = Row(writers)
    for begin, end in ((0, 10), (10, 30), (5, 25), (29, 30), (30, 30), (0, 30)):
        assert site.sender.send_row(row, begin, end, b"%d," % begin) == 0
        for number, link in enumerate(links):
            assert link.heard + link.written == (b"%d," % begin if begin <= number < end else b"")
            link.written = b""


# ---- what is not taken ---------------------------------------------------------------------------------------------


def only(amounts: dict[int, int]) -> Callable[[int, bytes, int], int]:
    """The system takes no more than so much for these descriptors."""

    def send(descriptor: int, data: bytes, flags: int) -> int:
        amount = amounts.get(descriptor, len(data))
        if amount < 0:
            return amount
        with socket.socket(fileno=descriptor) as link:
            sent = link.send(data[:amount], flags) if data[:amount] else 0
            link.detach()
            return sent

    return send


@by_any
def test_what_is_not_taken_goes_to_the_transports(site: Site, give: Give) -> None:
    links, writers = site.links(9)
    taken = {1: 2, 3: -errno.EAGAIN, 4: -errno.EPIPE, 8: 4}
    site.kernel.send = only({links[place].here.fileno(): amount for place, amount in taken.items()})
    assert give(site.sender, writers, b"frame") == 0
    rests = {place: b"frame"[max(amount, 0) :] for place, amount in taken.items()}
    assert {place: link.written for place, link in enumerate(links) if link.written} == rests
    assert [link.heard + link.written for link in links] == [b"frame"] * 9


@by_any
def test_what_the_kernel_leaves_goes_to_the_transports(site: Site, give: Give) -> None:
    links, writers = site.links(9)
    site.kernel.most = 4
    assert give(site.sender, writers, b"frame") == 0
    assert [link.heard + link.written for link in links] == [b"frame"] * 9
    assert [bool(link.written) for link in links] == [False] * 4 + [True] * 5


@by_any
def test_who_takes_nothing_either_way_is_counted(site: Site, give: Give, caplog: pytest.LogCaptureFixture) -> None:
    links, writers = site.links(9)
    site.kernel.send = only({links[place].here.fileno(): -errno.EPIPE for place in (0, 5)})
    links[5].failure = RuntimeError("it takes nothing")
    with caplog.at_level(logging.CRITICAL):
        assert give(site.sender, writers, b"frame") == 1
    assert [link.heard + link.written for link in links] == [b"frame"] * 5 + [b""] + [b"frame"] * 3


@by_any
def test_who_is_gone_ends_nothing_for_those_who_took_a_part(
    site: Site, give: Give, caplog: pytest.LogCaptureFixture
) -> None:
    links, writers = site.links(9)
    site.sender.cut(writers[2])
    links[2].closing, links[2].failure = True, RuntimeError("it is closed")
    links[3].closing, links[3].failure = True, RuntimeError("it is closed")  # and nobody was told
    site.kernel.send = only({links[place].here.fileno(): 2 for place in (0, 5, 8)} | {links[3].here.fileno(): -9})
    with caplog.at_level(logging.CRITICAL):
        assert give(site.sender, writers, b"frame") == 1
    assert [link.heard + link.written for link in links] == [b"frame"] * 2 + [b""] * 2 + [b"frame"] * 5
    assert [link.limits for link in links] == [(1, 4)] * 9


@by_any
def test_the_rest_of_a_frame_is_followed_by_nothing_that_a_callback_sends(site: Site, give: Give) -> None:
    """Who hears that its client is behind may have frames handed over that wait, to others who have had a part."""
    links, writers = site.links(9)
    site.kernel.send = only({link.here.fileno(): 2 for link in links})
    told: list[int] = []

    def hand_on(number: int) -> None:
        told.append(number)
        if len(told) == 1:
            site.kernel.send = only({})
            assert site.sender.send_all(writers, b"SECOND") == 0

    for number, link in enumerate(links):
        link.limits = (0, 0)
        link.on_write = partial(hand_on, number)
    links[4].limits = (10, 100)
    assert give(site.sender, writers, b"frame") == 0
    assert {number for number, link in enumerate(links)} - {4} <= set(told)
    for link in links:
        assert (link.heard, link.written) == (b"fr", b"ameSECOND")
        assert link.limits in ((0, 0), (10, 100))


@by_any
def test_those_who_are_free_are_not_overtaken_by_what_a_callback_sends(site: Site, give: Give) -> None:
    links, writers = site.links(FEWEST + 3)
    links[0].waiting = 1
    sent: list[bytes] = []

    def hand_on() -> None:
        for link, writer in zip(links[1:], writers[1:], strict=True):
            sent.append(link.heard)
            writer(b"SEC")  # it has taken some of the frame, and the rest waits
        links[0].on_write = lambda: None

    links[0].limits = (0, 0)
    links[0].on_write = hand_on
    assert give(site.sender, writers, b"frame") == 0
    for link, before in zip(links[1:], sent, strict=True):
        assert link.heard == b""
        assert (before, link.written) in ((b"frame", b"SEC"), (b"", b"SECframe"))


# ---- the ring breaks -----------------------------------------------------------------------------------------------


@by_any
def test_a_ring_that_breaks_cuts_off_whom_it_was_to_send_to(
    site: Site, give: Give, caplog: pytest.LogCaptureFixture
) -> None:
    links, writers = site.links(8)
    others, more = site.links(8)
    site.kernel.dumb = True
    with caplog.at_level(logging.CRITICAL):
        assert give(site.sender, writers, b"frame") == 0
    assert site.counts.values == {"internal_errors_total,ring": 1}
    assert [link.aborted for link in links] == [True] * 8
    assert [link.written for link in links] == [b""] * 8
    assert [link.aborted for link in others] == [False] * 8
    assert give(site.sender, more, b"later") == 0
    assert [(link.written, link.heard) for link in others] == [(b"later", b"")] * 8


@by_any
def test_a_send_that_is_broken_off_cuts_off_whom_it_was_for(
    site: Site, give: Give, caplog: pytest.LogCaptureFixture
) -> None:
    links, writers = site.links(8)

    def stopped(descriptor: int, data: bytes, flags: int) -> int:
        raise KeyboardInterrupt

    site.kernel.send = stopped
    with caplog.at_level(logging.CRITICAL), pytest.raises(KeyboardInterrupt):
        give(site.sender, writers, b"frame")
    assert [link.aborted for link in links] == [True] * 8
    assert give(site.sender, writers, b"later") == 0
    assert [link.written for link in links] == [b"later"] * 8


@by_any
def test_a_closed_sender_calls_writers(site: Site, give: Give) -> None:
    links, writers = site.links(8)
    site.sender.close()
    site.sender.close()
    assert give(site.sender, writers, b"frame") == 0
    assert [(link.written, link.heard) for link in links] == [(b"frame", b"")] * 8


# ---- there is none -------------------------------------------------------------------------------------------------


@contextmanager
def refusing(number: int, failure: int) -> Iterator[None]:
    kernel = Kernel()
    kernel.refused[number] = failure
    with kernel.reigning():
        yield


@pytest.mark.parametrize("number", [SETUP, ENTER])
@pytest.mark.parametrize("failure", [errno.EPERM, errno.ENOSYS])
def test_a_system_that_refuses_a_ring_is_told_of_once_and_no_fault(
    number: int, failure: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), refusing(number, failure):
        assert open_sender() is None
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.INFO
    assert message.startswith("each frame is sent by itself: io_uring cannot be used")


def test_a_system_that_has_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Kernel().reigning():
        sender = open_sender()
    assert sender is not None
    assert caplog.records == []
    sender.close()


def test_errors_that_are_none_of_the_system_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Ring:
        raise TypeError("nobody foresaw it")

    with monkeypatch.context() as patch:
        patch.setattr(module, "Ring", broken)
        with pytest.raises(TypeError):
            open_sender()


@pytest.mark.parametrize("wanted", [False, True])
async def test_whether_it_is_tried_is_a_setting(caplog: pytest.LogCaptureFixture, *, wanted: bool) -> None:
    settings = Settings(enable_auth=False, gateway=GatewaySettings(io_uring=wanted))
    clock, ephemeral, bus = ManualClock(), MemoryEphemeral(), MemoryBus()
    with caplog.at_level(logging.DEBUG, "livetape"), Kernel().reigning():
        sockets = open_sockets(
            settings, None, bus=bus, log=FakeLog(clock), ephemeral=ephemeral, metrics=NoMetrics(), clock=clock
        )
    assert (sockets.sender is not None) is wanted
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    sockets.close()
    sockets.close()
    await bus.close()
