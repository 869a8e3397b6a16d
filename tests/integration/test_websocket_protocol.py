"""The fast path, byte by byte, while broadcasts go on: what a client may say, what it may not, and what comes of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetape.gateway.messages import Push
from livetape.gateway.sender import Row
from livetape.gateway.transports.http import http_protocol
from livetape.gateway.transports.live_socket import FRAMES_AT_ONCE
from livetape.gateway.transports.ring import Ring
from livetape.gateway.transports.ring_sender import FEWEST, RingSender
from livetape.gateway.transports.uvicorn import EXTENSION, GatewayProtocol, gateway_protocol
from livetape.testing.socket_client import SocketClient
from livetape.testing.transport_site import Met, TransportSite
from rings import needs_ring
from serving import serving

MAX_BYTES = 1000
PATIENCE_S = 10
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
UMLAUT = "ö".encode()


@dataclass(frozen=True)
class Sent:
    """A frame of the client, right or wrong."""

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0
    masked: bool = True
    mask: bytes = b"\x37\xfa\x21\x3d"

    @property
    def bytes(self) -> bytes:
        size = len(self.payload)
        length, more = (size, b"") if size < 126 else (126, size.to_bytes(2, "big"))
        head = bytes((self.fin << 7 | self.rsv << 4 | self.opcode, self.masked << 7 | length)) + more
        if not self.masked:
            return head + self.payload
        return head + self.mask + bytes(byte ^ key for byte, key in zip(self.payload, itertools.cycle(self.mask)))


def wire(frames: Sequence[Sent]) -> bytes:
    return b"".join(frame.bytes for frame in frames)


@dataclass
class Outcome:
    """What must come of frames: messages, then (if any of `codes`) the end with one of them."""

    messages: list[str | bytes]
    pongs: list[bytes]
    codes: set[int]


def outcome(frames: Sequence[Sent]) -> Outcome:
    """RFC 6455 as short as it goes; where a frame breaks several rules, each of their codes will do."""
    result = Outcome([], [], set())
    partial: tuple[int, bytes] | None = None
    for frame in frames:
        faults = set()
        is_control = frame.opcode >= 8
        if frame.rsv or not frame.masked or frame.opcode not in (CONT, TEXT, BINARY, CLOSE, PING, PONG):
            faults.add(1002)
        if is_control and (not frame.fin or len(frame.payload) > 125):
            faults.add(1002)
        if not is_control and (frame.opcode == CONT) != (partial is not None):
            faults.add(1002)
        before = b"" if partial is None else partial[1]
        if len(before) + len(frame.payload) > MAX_BYTES and (not is_control or len(frame.payload) > 125):
            faults.add(1009)
        if not faults and frame.opcode == CLOSE:
            faults = close_codes(frame.payload)
            if partial is not None:
                faults.add(1002)  # some would let it pass
        if faults:
            result.codes = faults
            return result
        if frame.opcode == PING:
            result.pongs.append(frame.payload)
        elif not is_control:
            opcode, data = (frame.opcode if partial is None else partial[0]), before + frame.payload
            partial = None if frame.fin else (opcode, data)
            if frame.fin and opcode == TEXT:
                try:
                    result.messages.append(data.decode())
                except UnicodeDecodeError:
                    result.codes = {1007}
                    return result
            elif frame.fin:
                result.messages.append(data)
    return result


def close_codes(payload: bytes) -> set[int]:
    if not payload:
        return {1005}  # an empty one, echoed
    if len(payload) == 1:
        return {1002}
    code = int.from_bytes(payload[:2], "big")
    faults = set()
    if code not in {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}:
        faults.add(1002)
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        faults.add(1007)
    return faults or {code}


class Stage(TransportSite):
    """A site with listeners that get every broadcast, and say at the end whether they did."""

    transports: list[Any]
    sender: RingSender | None = None
    """Hands the broadcasts over, if there is one."""

    async def broadcast(self) -> None:
        for number in itertools.count():
            self.hand(Push(b"%d" % number))
            await asyncio.sleep(0.001)

    def hand(self, push: Push) -> None:
        straight = []
        for transport in self.transports:
            if self.sender is None or transport.writer is None:
                transport.send(push)
            else:
                straight.append(transport.writer)
        if self.sender is not None:
            self.sender.send_row(Row(straight), 0, len(straight), push.frame)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            count = 1 if self.sender is None else FEWEST
            listeners = [await stack.enter_async_context(self.meet()) for _ in range(count)]
            self.transports = [listener.transport for listener in listeners]
            sending = asyncio.create_task(self.broadcast())
            try:
                yield
                begins = [await listener.client.hear_many(3) for listener in listeners]
            finally:
                sending.cancel()
                await asyncio.wait({sending})
            for listener, begin in zip(listeners, begins, strict=True):
                listener.transport.close(1000, "over", within=PATIENCE_S)
                assert await listener.client.read_to_end() == (1000, "over")
                heard = [int(message) for message in (*begin, *listener.client.messages)]
                assert heard == list(range(len(heard)))
                assert await listener.lost(), "clean"

    @asynccontextmanager
    async def probe(self, **options: Any) -> AsyncIterator[Met]:
        """A client that gets the broadcasts, too."""
        async with self.meet(**options) as met:
            self.transports.append(met.transport)
            yield met
            met.client.vanish()
            await met.lost()
            assert len(met.recorder.ends) == 1


@asynccontextmanager
async def staged(*, by_ring: bool = False, **options: Any) -> AsyncIterator[Stage]:
    stage = Stage(lambda scope, receive, send: scope["extensions"][EXTENSION], MAX_BYTES)
    with closing(RingSender(Ring(4))) if by_ring else nullcontext() as stage.sender:
        options = {"ws": gateway_protocol(stage.sender), "http": http_protocol(), "ws_max_size": MAX_BYTES, **options}
        async with serving(stage, **options) as stage.port, stage.watched():
            yield stage


@pytest.fixture(params=[False, pytest.param(True, marks=needs_ring)], ids=["by writers", "by the ring"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with staged(by_ring=request.param) as stage:
        yield stage


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def say(met: Met, expected: Outcome, pieces: Sequence[bytes]) -> None:
    """In pieces, each a packet of its own; then what must come of it."""
    for piece in pieces:
        if met.client.ended:
            break
        await met.client.write(piece)
        await asyncio.sleep(0)
    if expected.codes:
        closed = await met.client.read_to_end()
        assert closed is not None
        assert closed[0] in expected.codes
        assert not await met.lost(), "who goes by itself may have missed something"
    else:
        await met.recorder.until(lambda told: len(told.messages) >= len(expected.messages))
        while len(met.client.pongs) < len(expected.pongs):
            await met.client.read()
        met.transport.close(4000, "", within=PATIENCE_S)
        while met.client.closed is None:
            await met.client.read()
        assert met.client.closed == (4000, "")
    assert met.client.fault is None, "the server kept to the rules"
    assert met.recorder.messages == expected.messages
    assert met.client.pongs == expected.pongs[: len(met.client.pongs)]
    if not expected.codes:
        assert met.client.pongs == expected.pongs


RIGHT = {
    "text": [Sent(TEXT, b"hello")],
    "empty": [Sent(TEXT), Sent(BINARY)],
    "126 bytes": [Sent(BINARY, b"x" * 126)],
    "as much as may be": [Sent(BINARY, b"x" * MAX_BYTES)],
    "fragments": [Sent(TEXT, b"a", fin=False), Sent(CONT, b"b", fin=False), Sent(CONT, b"c")],
    "empty fragments": [Sent(TEXT, fin=False), Sent(CONT, fin=False), Sent(CONT)],
    "a character over two fragments": [Sent(TEXT, UMLAUT[:1], fin=False), Sent(CONT, UMLAUT[1:])],
    "ping and pong between fragments": [
        Sent(TEXT, b"a", fin=False), Sent(PING, b"p"), Sent(PONG), Sent(CONT, b"b", fin=False), Sent(PING, b"q"),
        Sent(CONT, b"c"),
    ],
    "a ping when no byte more may come": [
        Sent(TEXT, b"x" * MAX_BYTES, fin=False), Sent(PING, b"y" * 125), Sent(CONT),
    ],
    "pings": [Sent(PING), Sent(PING, b"x" * 125), Sent(PING, bytes(range(100)))],
    "pongs that nobody asked for": [Sent(PONG), Sent(PONG, b"x" * 125), Sent(TEXT, b"x")],
    "a mask of zeros": [Sent(TEXT, b"plain", mask=bytes(4))],
    "the last characters": [Sent(TEXT, "\U0010ffff\ufffe\x00".encode())],
}  # fmt: skip
WRONG = {
    "1002 reserved bit 1": [Sent(TEXT, b"a"), Sent(TEXT, b"x", rsv=4)],
    "1002 reserved bit 2": [Sent(TEXT, b"x", rsv=2)],
    "1002 reserved bit 3 on a ping": [Sent(PING, b"x", rsv=1)],
    **{f"1002 opcode {opcode}": [Sent(opcode, b"x")] for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "1002 not masked": [Sent(TEXT, b"x", masked=False)],
    "1002 not masked, in between": [Sent(TEXT, b"a", fin=False), Sent(CONT, b"x", masked=False)],
    "1002 ping of 126 bytes": [Sent(PING, b"x" * 126)],
    "1002 pong of 126 bytes": [Sent(PONG, b"x" * 126)],
    "1002 fragmented ping": [Sent(PING, b"x", fin=False), Sent(CONT, b"y")],
    "1002 nothing to continue": [Sent(CONT, b"x")],
    "1002 continued after its end": [Sent(TEXT, b"a", fin=False), Sent(CONT, b"b"), Sent(CONT, b"c")],
    "1002 a message within a message": [Sent(TEXT, b"a", fin=False), Sent(TEXT, b"b")],
    "1007 bad text": [Sent(TEXT, b"good"), Sent(TEXT, b"\xff")],
    "1007 half a character": [Sent(TEXT, UMLAUT[:1])],
    "1007 a surrogate": [Sent(TEXT, b"\xed\xa0\x80")],
    "1007 beyond Unicode": [Sent(TEXT, b"\xf4\x90\x80\x80")],
    "1007 overlong": [Sent(TEXT, b"\xc0\xaf")],
    "1007 bad over two fragments": [Sent(TEXT, b"a\xc3", fin=False), Sent(PING, b"p"), Sent(CONT, b"\xc3")],
    "1009 too large": [Sent(BINARY, b"x" * (MAX_BYTES + 1))],
    "1009 too large in fragments": [Sent(TEXT, b"x" * 600, fin=False), Sent(CONT, b"x" * 401)],
    "1009 too large without end": [Sent(TEXT, b"x" * 999, fin=False), Sent(CONT, b"xx", fin=False)],
    "1002 close of one byte": [Sent(CLOSE, b"\x03")],
    "1002 close of 126 bytes": [Sent(CLOSE, b"\x03\xe8" + b"x" * 124)],
    **{
        f"1002 close with {code}": [Sent(CLOSE, code.to_bytes(2, "big"))]
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65_535)
    },
    "1007 close with a bad reason": [Sent(CLOSE, b"\x03\xe8\xff")],
    "1005 close without code": [Sent(TEXT, b"a"), Sent(CLOSE), Sent(TEXT, b"not heard")],
    **{
        f"{code} close": [Sent(CLOSE, code.to_bytes(2, "big") + b"reason")]
        for code in (1000, 1001, 1003, 1007, 1014, 3000, 3999, 4000, 4999)
    },
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("in_bytes", [False, True], ids=["at once", "byte by byte"])
async def test_what_is_right_is_heard(stage: Stage, name: str, *, in_bytes: bool) -> None:
    frames = RIGHT[name]
    assert outcome(frames).codes == set()
    async with stage.probe() as met:
        data = wire(frames)
        await say(met, outcome(frames), [bytes((byte,)) for byte in data] if in_bytes and len(data) < 900 else [data])


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_ends_with_its_code(stage: Stage, name: str) -> None:
    frames = WRONG[name]
    assert outcome(frames).codes == {int(name[:4])}
    async with stage.probe() as met:
        await say(met, outcome(frames), [wire(frames)])


async def test_a_close_within_a_message_ends_it(stage: Stage) -> None:
    async with stage.probe() as met:
        await met.client.write(wire([Sent(TEXT, b"a", fin=False), Sent(CLOSE, b"\x03\xe8")]))
        assert (await met.client.read_to_end() or (0, ""))[0] in {1000, 1002}


async def test_a_length_of_eight_bytes_is_refused_before_its_payload(stage: Stage) -> None:
    for length in (MAX_BYTES + 200, 1 << 40, (1 << 64) - 1):
        async with stage.probe() as met:
            await met.client.write(b"\x82\xff" + length.to_bytes(8, "big") + b"mask")
            assert (await met.client.read_to_end() or (0, ""))[0] == 1009


async def test_a_broken_rule_in_the_middle_of_a_flood_still_shows_its_code(stage: Stage) -> None:
    """What the client has sent after it is read and thrown away: a reset would take the close with it."""
    async with stage.probe() as met:
        await met.client.write(Sent(3).bytes + Sent(BINARY, b"x" * MAX_BYTES).bytes * 400)
        assert (await met.client.read_to_end() or (0, ""))[0] == 1002


async def test_thousands_of_tiny_frames_hold_up_nobody(stage: Stage) -> None:
    async with stage.probe() as met:
        await met.client.write(wire([Sent(TEXT), *[Sent(TEXT)] * 9, Sent(PING)] * 1_000))
        await met.recorder.until(lambda told: len(told.messages) == 10_000)
        assert set(met.recorder.messages) == {""}


async def test_pings_of_a_client_that_does_not_read_fill_no_memory(stage: Stage) -> None:
    async with stage.meet(receive_buffer=4096) as met:
        while not met.recorder.is_congested:
            met.transport.send(Push(b"x" * 100_000))
            await asyncio.sleep(0)
        await met.client.write(Sent(PING, b"x" * 125).bytes * 1500 + Sent(PING, b"last").bytes + Sent(TEXT).bytes)
        await met.recorder.until(lambda told: told.messages == [""])
        while not met.client.pongs:
            await met.client.read()
        assert met.client.pongs == [b"last"]


@pytest.mark.parametrize("opcode", [PING, PONG, CONT])
async def test_who_sends_too_many_frames_that_are_no_messages_is_not_listened_to_for_a_while(
    stage: Stage, opcode: int
) -> None:
    frame = Sent(opcode, fin=opcode != CONT)
    head = [Sent(TEXT, b"a", fin=False)] if opcode == CONT else []
    end = Sent(CONT) if opcode == CONT else Sent(TEXT, b"a")
    async with stage.probe() as met:
        await met.client.write(wire([*head, *[frame] * (FRAMES_AT_ONCE + 150), end]))
        await asyncio.sleep(0.3)
        assert met.recorder.messages == []
        async with asyncio.timeout(PATIENCE_S):
            await met.recorder.until(lambda told: told.messages == ["a"])
            met.transport.close(1000, "", within=PATIENCE_S)
            assert await met.client.read_to_end() == (1000, "")
        assert len(met.client.pongs) == (FRAMES_AT_ONCE + 150 if opcode == PING else 0)


async def test_a_message_of_less_than_64_kib_and_more_than_may_be_is_refused(stage: Stage) -> None:
    """It comes alone, so no parser looks at it."""
    async with stage.probe() as met:
        await met.client.write(Sent(TEXT, b"x" * MAX_BYTES).bytes)
        await met.recorder.until(lambda told: told.messages == ["x" * MAX_BYTES])
        await met.client.write(Sent(TEXT, b"x" * (MAX_BYTES + 1)).bytes)
        assert (await met.client.read_to_end() or (0, ""))[0] == 1009
        assert len(met.recorder.messages) == 1


async def test_who_pauses_in_the_middle_gets_the_rest_in_order_and_then_the_close(stage: Stage) -> None:
    async with stage.probe() as met:
        met.transport.pause()
        frames = [Sent(TEXT, b"%d" % number) for number in range(2000)]
        await met.client.write(wire([*frames, Sent(CLOSE, b"\x03\xe8")]))
        for _ in range(100):  # both ends live in this loop: what was to be taken would be taken by then
            await asyncio.sleep(0)
        assert met.recorder.told == []
        met.transport.resume()
        assert await met.client.read_to_end() == (1000, "")
        assert met.recorder.messages == [f"{number}" for number in range(2000)]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("way", ["plain", "deflate", pytest.param("by the ring", marks=needs_ring)])
@pytest.mark.slow
def test_any_frames_in_any_pieces(loop: Any, caplog: pytest.LogCaptureFixture, way: str) -> None:
    compressed = way == "deflate"
    payloads = st.one_of(
        st.binary(max_size=20),
        st.text(max_size=10).map(str.encode),
        st.sampled_from([b"x" * size for size in (124, 125, 126, 127, 128, 500, 999, 1000, 1001)]),
        st.integers(0, 5000).map(lambda code: code.to_bytes(2, "big")),
    )
    opcodes = st.one_of(st.sampled_from([CONT, TEXT, BINARY, PING, PONG]), st.integers(0, 15))
    rarely = st.sampled_from([0] * 30 + [1, 2, 3])  # the first reserved bit may have a meaning
    frames = st.lists(
        st.builds(
            Sent,
            opcodes,
            payloads,
            st.booleans(),
            rarely,
            st.integers(0, 40).map(bool),
            st.binary(min_size=4, max_size=4),
        ),
        min_size=1,
        max_size=8,
    )

    with asyncio.Runner(loop_factory=loop) as runner:
        stage = staged(ws_per_message_deflate=compressed, by_ring=way == "by the ring")

        async def example(sent: list[Sent], cuts: list[int]) -> None:
            async with live.probe(compressed=compressed) as met:
                data, edges = wire(sent), [0, *sorted(cuts), None]
                pieces = [data[begin:end] for begin, end in itertools.pairwise(edges)]
                await say(met, outcome(sent), [piece for piece in pieces if piece])

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(frames, st.lists(st.integers(0, 200), max_size=4))
        def any_frames(sent: list[Sent], cuts: list[int]) -> None:
            runner.run(asyncio.wait_for(example(sent, cuts), 2))

        async def enter() -> Stage:
            async with asyncio.timeout(None):
                return await stage.__aenter__()

        live = runner.run(enter())
        try:
            any_frames()
        finally:
            runner.run(stage.__aexit__(None, None, None))


@pytest.mark.slow
def test_any_bytes_leave_the_server_standing() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stage = staged()

        async def example(data: bytes) -> None:
            async with live.probe() as met:
                await met.client.write(data)
                await met.client.write(b"\x00" * 16)
                for _ in range(4):
                    if not met.client.ended:
                        await met.client.read()  # broadcasts, at least, or its end
                closed = met.client.closed
                assert met.client.fault is None
                assert closed is None or closed[0] in {1002, 1005, 1007, 1009} or data[:1] == b"\x88"

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.one_of(st.binary(max_size=64), st.binary(max_size=30).map(lambda data: b"\x81\x84" + data)))
        def any_bytes(data: bytes) -> None:
            runner.run(asyncio.wait_for(example(data), 2))

        live = runner.run(stage.__aenter__())
        try:
            any_bytes()
        finally:
            runner.run(stage.__aexit__(None, None, None))


async def test_a_client_that_cannot_be_reached_by_its_protocol_is_told_so(stage: Stage) -> None:
    """Deflate is off: what claims to be compressed is a broken rule."""
    client = await SocketClient.connect(stage.port, compressed=True)
    await stage.arrived.get()
    await client.write(Sent(TEXT, b"x", rsv=4).bytes)
    assert (await client.read_to_end() or (0, ""))[0] == 1002
    client.vanish()


@pytest.mark.parametrize("way", ["raises", "returns"])
def test_an_application_that_fails_when_the_client_is_gone_answers_nobody(way: str) -> None:
    unforeseen: list[dict[str, Any]] = []
    asked, gone = asyncio.Event(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await gone.wait()
        if way == "raises":
            raise ValueError("too late")

    async def leave_early() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
        async with serving(application, http=http_protocol(), ws=GatewayProtocol) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
            writer.transport.abort()
            await asyncio.sleep(0.05)  # the server's side hears of it
            gone.set()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(leave_early())
    assert unforeseen == []
