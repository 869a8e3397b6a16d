"""uvicorn with the gateway's protocols: handshakes good and bad, other applications beside it, and its stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from livetape.gateway.messages import Push
from livetape.gateway.transports.http import http_protocol
from livetape.gateway.transports.live_socket import LiveSocket
from livetape.gateway.transports.uvicorn import EXTENSION, MAX_EARLY_BYTES, GatewayProtocol
from livetape.testing.socket_client import SocketClient
from livetape.testing.transport_site import Recorder, TransportSite
from serving import serving

pytestmark = pytest.mark.virtual_time

HEAD = (
    b"GET /%b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)
TEXT_X = b"\x81\x81\x00\x00\x00\x00x"
PING_X = b"\x89\x81\x00\x00\x00\x00x"
Message = MutableMapping[str, Any]


def site() -> TransportSite:
    return TransportSite(lambda scope, receive, send: scope["extensions"][EXTENSION], 1000)


def served(app: Any, **options: Any) -> Any:
    return serving(app, **{"ws": GatewayProtocol, "http": http_protocol(), "ws_max_size": 1000, **options})


async def raw(port: int, data: bytes, *, more: bytes = b"") -> bytes:
    """Everything that is answered, until the connection ends or nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(data)
        if more:
            await asyncio.sleep(0.1)
            writer.write(more)
        with suppress(TimeoutError, ConnectionError):
            while part := await asyncio.wait_for(reader.read(1 << 16), 0.5):
                answer += part
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
    return answer


# ---- other applications -------------------------------------------------------------------------------------------


async def echo(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Any]) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await asyncio.sleep(0.3)
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "end":
            await send({"type": "websocket.close", "code": 4000, "reason": "as asked"})
        else:
            await send({"type": "websocket.send", "text": message.get("text")})


async def test_an_application_that_does_not_look_for_it_is_served_as_ever() -> None:
    async with served(echo) as port, connect(f"ws://127.0.0.1:{port}", proxy=None, compression=None) as ws:
        for text in ("one", "two"):
            await ws.send(text)
            assert await ws.recv() == text
        await ws.send("end")
        await ws.wait_closed()
        assert (ws.close_code, ws.close_reason) == (4000, "as asked")


async def test_what_comes_before_the_answer_waits_for_it() -> None:
    """A ping, too: nothing may stand within the bytes of a handshake."""
    async with served(echo) as port:
        answer = await raw(port, HEAD % (b"", b""), more=PING_X + TEXT_X)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert rest == b"\x8a\x01x\x81\x01x"


@pytest.mark.slow
async def test_what_comes_before_the_answer_is_bounded() -> None:
    let_in = asyncio.Event()
    stage = site()
    recorder = Recorder()

    async def late(transport: Any) -> None:
        await let_in.wait()
        await transport.accept(recorder)

    stage.handler = late
    async with served(stage) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD % (b"", b""))
        await asyncio.sleep(0.1)
        message = b"\x82\xfe\x03\xe8" + bytes(1004)
        writer.write(message * (64 * 1024))
        await asyncio.sleep(0.3)
        left = writer.transport.get_write_buffer_size()
        assert left > 32 * 1024 * 1024, f"more than {MAX_EARLY_BYTES} are not read"
        let_in.set()
        await recorder.until(lambda told: len(told.messages) > 3 * MAX_EARLY_BYTES // len(message))
        writer.transport.abort()
        await recorder.until(lambda told: bool(told.ends))


# ---- handshakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers"),
    [(b"x" * 10_000, b""), (b"", b"X-Long: " + b"x" * 10_000 + b"\r\n"), (b"", b"X-Many: y\r\n" * 200)],
)
async def test_a_handshake_that_the_parser_refuses_is_answered(path: bytes, headers: bytes) -> None:
    async with served(site()) as port:
        answer = await raw(port, HEAD % (path, headers))
    assert answer.split(b" ")[1] in {b"400", b"414", b"431"}


@pytest.mark.parametrize("spoiled", [b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="])
async def test_a_handshake_without_what_it_needs_is_refused(spoiled: bytes) -> None:
    async with served(site()) as port:
        answer = await raw(port, (HEAD % (b"", b"")).replace(spoiled, b"X-Nothing: x"))
    assert answer.split(b" ")[1] in {b"400", b"426"}


async def test_a_refusal_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    stage = site()

    async def refuse(transport: Any) -> None:
        await transport.reject(403, "no")

    stage.handler = refuse
    async with served(stage) as port:
        with pytest.raises(InvalidStatus) as refusal:
            await SocketClient.connect(port)
    assert refusal.value.response.status_code == 403
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("accepted", [False, True])
async def test_an_application_that_breaks_ends_the_socket(caplog: pytest.LogCaptureFixture, *, accepted: bool) -> None:
    stage, recorder = site(), Recorder()

    async def breaks(transport: Any) -> None:
        if accepted:
            await transport.accept(recorder)
        raise RuntimeError("broken on purpose")

    stage.handler = breaks
    async with served(stage) as port:
        if accepted:
            client = await SocketClient.connect(port)
            assert await client.read_to_end() == (1011, "internal error")
            await recorder.until(lambda told: bool(told.ends))
        else:
            with pytest.raises(InvalidStatus) as refusal:
                await SocketClient.connect(port)
            assert refusal.value.response.status_code == 500
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]


# ---- life ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_stops_says_so() -> None:
    stage = site()
    async with served(stage) as port:
        stage.port = port
        client = await SocketClient.connect(port)
        _, recorder = await stage.arrived.get()
        ending = asyncio.create_task(client.read_to_end())
    assert await ending == (1012, "service restart")
    assert recorder.ends == [True]


async def test_a_server_that_stops_does_not_speak_over_the_gateway() -> None:
    stage = site()
    async with served(stage) as port:
        client = await SocketClient.connect(port)
        transport, recorder = await stage.arrived.get()
        transport.close(4000, "before", within=5)
        ending = asyncio.create_task(client.read_to_end())
    assert await ending == (4000, "before")
    assert recorder.ends == [True]


@pytest.mark.slow
async def test_a_server_that_stops_does_not_wait_for_who_does_not_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    stage = site()
    async with served(stage, timeout_graceful_shutdown=1) as port:
        client = await SocketClient.connect(port, receive_buffer=4096)
        transport, _ = await stage.arrived.get()
        for _ in range(100):
            transport.send(Push(b"x" * 100_000))
    client.vanish()


async def test_an_idle_socket_keeps_nothing_of_its_handshake() -> None:
    stage = site()
    async with served(stage) as port:
        stage.port = port
        async with stage.meet() as met:
            await met.client.say("x")
            await met.recorder.until(lambda told: bool(told.messages))
            await asyncio.sleep(0.05)
            assert isinstance(met.transport, LiveSocket)
            gc.collect()
            kinds = {type(thing).__name__ for thing in gc.get_objects()}
            kept = kinds & {"GatewayProtocol", "BoundedHttpProtocol", "ServerProtocol", "HttpRequestParser"}
            assert kept == set()
            with pytest.raises(AssertionError):
                _ = met.transport.facts


# ---- the head of a request -----------------------------------------------------------------------------------------


async def hello(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Any]) -> None:
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    body += message.get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def bounded(**limits: Any) -> Any:
    return serving(hello, http=http_protocol(handshake_seconds=0.3, **limits), ws="none")


async def time_of_end(port: int, *parts: bytes, pause: float = 0.1) -> tuple[float, bytes]:
    """Parts, one after the other; when the server has closed, and what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = asyncio.get_running_loop().time()

    async def dribble() -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause)

    saying = asyncio.create_task(dribble())
    try:
        answer = await asyncio.wait_for(reader.read(), 5)
        return asyncio.get_running_loop().time() - begin, answer
    finally:
        saying.cancel()
        await asyncio.wait({saying})
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def test_who_says_nothing_is_sent_away() -> None:
    async with bounded() as port:
        seconds, answer = await time_of_end(port)
    assert answer == b""
    assert 0.25 < seconds < 3


async def test_who_dribbles_a_head_is_sent_away() -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-More: y\r\n" * 20
    async with bounded() as port:
        seconds, answer = await time_of_end(port, *(head[at : at + 5] for at in range(0, len(head), 5)))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.25 < seconds < 3


async def test_who_dribbles_a_second_head_is_sent_away() -> None:
    async with bounded() as port:
        seconds, answer = await time_of_end(
            port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *[b"G", b"E", b"T", b" ", b"/"] * 9
        )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer or b"HTTP/1.1 400 " in answer
    assert seconds < 3


async def test_who_sends_empty_lines_between_requests_is_sent_away() -> None:
    async with bounded() as port:
        seconds, _ = await time_of_end(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *[b"\r\n"] * 40)
    assert seconds < 3


async def test_a_slow_answer_and_a_slow_body_are_nobodys_fault() -> None:
    async with bounded() as port:
        _, answer = await time_of_end(
            port,
            b"POST /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n\r\n",
            *[b"ab", b"cd", b"ef"],
            pause=0.25,
        )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"abcdef")


@pytest.mark.parametrize("more", [[], [b"x"] * 20], ids=["nothing more", "dribbled"])
async def test_a_body_that_never_ends_is_cut_off(more: list[bytes]) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    async with serving(hello, http=http_protocol(stall_seconds=0.3), ws="none") as port:
        seconds, answer = await time_of_end(port, head + b"{", *more)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.25 < seconds < 3


async def test_a_body_that_comes_slowly_enough_is_taken() -> None:
    parts = [b"x" * 70_000] * 8
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % sum(map(len, parts))
    async with serving(hello, http=http_protocol(stall_seconds=0.3), ws="none") as port:
        _, answer = await time_of_end(port, head, *parts)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("in_parts", [False, True])
async def test_a_head_that_is_too_large_is_refused(*, in_parts: bool) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 5000
    end = [b"", b"y" * 5000] if in_parts else [b"\r\n\r\n"]
    async with bounded(max_head_bytes=4000) as port:
        _, answer = await time_of_end(port, head + end[0], *end[1:], pause=0.05)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_large_body_is_no_large_head() -> None:
    body = b"x" * 100_000
    request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with bounded(max_head_bytes=4000) as port:
        _, answer = await time_of_end(port, request + body)
    assert answer.endswith(b"\r\n\r\n" + body)


# ---- the taking of an answer ---------------------------------------------------------------------------------------

LARGE = b"x" * 8_000_000


async def large(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Any]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(LARGE))]})
    await send({"type": "http.response.body", "body": LARGE})


def stalling() -> Any:
    return serving(large, http=http_protocol(stall_seconds=0.3), ws="none")


async def ask_and_read(port: int, *, pause: float, bytes_at_once: int, first_pause: float = 0.0) -> tuple[int, bool]:
    """How many bytes came, and whether the connection was torn up."""
    loop = asyncio.get_running_loop()
    taken = 0
    with socket.socket() as link:
        link.setblocking(False)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        await loop.sock_connect(link, ("127.0.0.1", port))
        await loop.sock_sendall(link, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(first_pause)
        try:
            while data := await asyncio.wait_for(loop.sock_recv(link, bytes_at_once), 5):
                taken += len(data)
                await asyncio.sleep(pause)
        except ConnectionError:
            return taken, True
    return taken, False


async def test_who_does_not_take_the_answer_is_cut_off() -> None:
    async with stalling() as port:
        taken, _ = await ask_and_read(port, first_pause=1.0, pause=0, bytes_at_once=1 << 16)
    assert taken < len(LARGE)


async def test_who_takes_an_answer_slowly_gets_all_of_it() -> None:
    async with stalling() as port:
        taken, torn = await ask_and_read(port, pause=0.005, bytes_at_once=1 << 16)
    assert not torn
    assert taken > len(LARGE)


async def test_a_kept_connection_with_nothing_to_take_is_not_cut_off() -> None:
    async with serving(hello, http=http_protocol(stall_seconds=0.1), ws="none") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            await asyncio.sleep(0.15)
        writer.close()
        await writer.wait_closed()
