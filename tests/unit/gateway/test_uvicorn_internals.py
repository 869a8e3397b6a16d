"""What the fast path uses inside uvicorn and websockets. When one of these fails, the libraries have moved: look at
`gateway/transports/uvicorn.py`, `inbound.py` and `http.py` before raising the pinned range."""

from __future__ import annotations

import asyncio
import inspect
from types import GeneratorType

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.protocol import Protocol, Side, State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from livetape.gateway.transports.inbound import sole_frame
from livetape.gateway.transports.live_socket import LiveSocket


def short_frame(head: int, payload: bytes) -> bytes:
    return bytes((head, (0x80 | len(payload)) & 0xFF)) + b"\x37\xfa\x21\x3d" + payload


def config(ws: type = WebSocketsSansIOProtocol) -> uvicorn.Config:
    async def app(scope: object, receive: object, send: object) -> None: ...

    made = uvicorn.Config(app, ws=ws, log_config=None)
    made.load()
    return made


@pytest.fixture
async def socket_protocol() -> WebSocketsSansIOProtocol:
    return WebSocketsSansIOProtocol(config(), ServerState(), {}, _loop=asyncio.get_running_loop())


@pytest.mark.parametrize(
    "name",
    [
        "app", "close_sent", "config", "conn", "connections", "handshake_complete", "handshake_initiated",
        "initial_response", "loop",
        "transport",
    ],
)  # fmt: skip
async def test_the_socket_protocol_has(socket_protocol: WebSocketsSansIOProtocol, name: str) -> None:
    assert hasattr(socket_protocol, name), f"uvicorn's WebSocketsSansIOProtocol has no `{name}` any more"


@pytest.mark.parametrize("name", ["run_asgi", "data_received", "send", "start_keepalive", "shutdown"])
def test_the_socket_protocol_does(name: str) -> None:
    assert callable(getattr(WebSocketsSansIOProtocol, name, None)), f"WebSocketsSansIOProtocol.{name} is gone"


@pytest.mark.parametrize(
    ("method", "uses"),
    [
        ("handle_connect", ["self.run_asgi()", "self.scope", '"extensions"']),
        ("run_asgi", ["self.app(self.scope, self.receive, self.send)", "self.transport.close()"]),
        ("send", ["self.handshake_complete = True", "self.start_keepalive()", "websocket.http.response.start"]),
        ("data_received", ["self.conn.receive_data(data)"]),
    ],
)
def test_the_socket_protocol_goes_the_way_that_is_overridden(method: str, uses: list[str]) -> None:
    source = inspect.getsource(getattr(WebSocketsSansIOProtocol, method))
    assert [use for use in uses if use not in source] == [], f"WebSocketsSansIOProtocol.{method} does it otherwise now"


def test_the_server_ends_what_is_in_its_set_of_connections() -> None:
    source = inspect.getsource(uvicorn.Server.shutdown)
    assert "self.server_state.connections" in source
    assert "connection.shutdown()" in source
    assert callable(LiveSocket.shutdown)


def test_the_handshake_says_what_was_wrong_with_it() -> None:
    handshake = ServerProtocol()
    handshake.receive_data(b"nonsense\r\n\r\n")
    assert handshake.handshake_exc is not None


@pytest.mark.parametrize(
    "begin", [b"", b"\x81", b"\x81\x85", b"\x81\x85mask", b"\x81\x85maskabcd", b"\x01\x80mask\x80"]
)
def test_a_parser_tells_whether_it_stands_between_messages(begin: bytes) -> None:
    parser = Protocol(Side.SERVER, state=State.OPEN)
    parser.receive_data(b"\x89\x80mask" + begin)
    steps = parser.parser
    assert isinstance(steps, GeneratorType)
    assert isinstance(steps.gi_yieldfrom, GeneratorType)
    is_between = steps.gi_yieldfrom.gi_code is StreamReader.at_eof.__code__
    assert is_between is (begin == b"")
    for name in ("current_size", "close_rcvd", "close_sent", "parser_exc", "max_message_size"):
        assert hasattr(parser, name), f"websockets' Protocol has no `{name}` any more"
    steps.close()


@pytest.mark.parametrize(
    "name",
    [
        "on_message_begin", "on_headers_complete", "on_message_complete", "on_response_complete", "send_400_response",
        "handle_websocket_upgrade",
    ],
)  # fmt: skip
def test_the_http_protocol_does(name: str) -> None:
    assert callable(getattr(HttpToolsProtocol, name, None)), f"uvicorn's HttpToolsProtocol.{name} is gone"


async def test_the_http_protocol_has() -> None:
    protocol = HttpToolsProtocol(config(), ServerState(), {}, _loop=asyncio.get_running_loop())
    for name in ("cycle", "headers", "loop", "parser", "transport"):
        assert hasattr(protocol, name), f"uvicorn's HttpToolsProtocol has no `{name}` any more"
    assert protocol.cycle is None


def long_frame(head: int, payload: bytes, more: int = 0) -> bytes:
    return bytes((head, 0xFE)) + (len(payload) + more).to_bytes(2, "big") + b"\x37\xfa\x21\x3d" + payload


@given(
    st.one_of(
        st.binary(max_size=140),
        st.builds(short_frame, st.integers(0, 255), st.binary(max_size=130)),
        st.builds(long_frame, st.sampled_from([0x81, 0x82, 0x01, 0x8A, 0xC1]), st.binary(min_size=120, max_size=300)),
        st.builds(long_frame, st.just(0x81), st.binary(min_size=120, max_size=300), st.integers(-2, 2)),
    )
)
def test_the_short_way_takes_only_what_the_parser_takes_so(data: bytes) -> None:
    frame = sole_frame(data)
    if frame is not None:
        parser = Protocol(Side.SERVER, state=State.OPEN)
        parser.receive_data(data)
        assert parser.events_received() == [frame]
        assert parser.parser_exc is None
        parser.receive_data(b"\x89\x80mask")
        assert len(parser.events_received()) == 1, "nothing was left over"


def test_the_short_way_is_taken() -> None:
    assert sole_frame(short_frame(0x81, b"x" * 125)) is not None
    assert sole_frame(short_frame(0x8A, b"")) is not None
    assert sole_frame(short_frame(0x81, b"x" * 126)) is None
    for size in (126, 127, 128, 200, 4000):
        frame = sole_frame(long_frame(0x81, bytes(size)))
        assert frame is not None
        assert len(frame.data) == size
    assert sole_frame(long_frame(0x81, b"x" * 125)) is None
    assert sole_frame(long_frame(0x81, b"x" * 200, 1)) is None
    assert sole_frame(long_frame(0x8A, b"x" * 200)) is None
