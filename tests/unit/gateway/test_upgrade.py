"""Which requests are plain, and what the handshake of a socket reads of them."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from livetape.gateway.transports.facts import query_values
from livetape.gateway.transports.upgrade import accept_of

GOOD = {
    b"host": b"localhost",
    b"upgrade": b"websocket",
    b"connection": b"Upgrade",
    b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
    b"sec-websocket-version": b"13",
}


def accept(*more: tuple[bytes, bytes], compression: bool = False, **other: bytes) -> bytes | None:
    changed = GOOD | {name.replace("_", "-").encode(): value for name, value in other.items()}
    return accept_of([*changed.items(), *more], compression=compression)


def test_a_plain_request_is_answered_as_the_standard_says() -> None:
    assert accept() == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert accept(connection=b"keep-alive, Upgrade") == accept(), "as Firefox says it"
    assert accept(sec_websocket_protocol=b"livetape.v1, bearer.a.b-c_d") == accept()
    assert accept(sec_websocket_extensions=b"permessage-deflate") == accept()


@pytest.mark.parametrize(
    "other",
    [
        {"upgrade": b"h2c"},
        {"upgrade": b""},
        {"connection": b"close"},
        {"connection": b"Upgrade,, x"},
        {"sec_websocket_key": b"short"},
        {"sec_websocket_key": b"dGhlIHNhbXBsZSBub25jZQ==="},
        {"sec_websocket_key": b"dGhlIHNhbXBsZSBub25jZQ== "},
        {"sec_websocket_version": b"12"},
        {"sec_websocket_protocol": b"a,,b"},
        {"sec_websocket_protocol": b""},
        {"x": b"x" * 10_000},
    ],
)
def test_what_is_not_plain_goes_the_usual_way(other: dict[str, bytes]) -> None:
    changed = GOOD | {name.replace("_", "-").encode(): value for name, value in other.items()}
    assert accept_of(list(changed.items()), compression=False) is None


def test_what_must_not_come_twice_is_not_plain() -> None:
    for name in (b"origin", b"upgrade", b"sec-websocket-key", b"sec-websocket-version"):
        assert accept((name, GOOD.get(name, b"x")), origin=b"http://a") is None
    assert accept(*[(b"x", b"y")] * 100) is None


def test_compression_is_somebody_elses() -> None:
    assert accept(sec_websocket_extensions=b"permessage-deflate", compression=True) is None


header = st.tuples(
    st.sampled_from([*GOOD, b"origin", b"sec-websocket-protocol"]),
    st.one_of(st.sampled_from([*GOOD.values(), b"a, b", b"keep-alive, upgrade"]), st.binary(max_size=12)),
)


@given(st.lists(header, max_size=3), st.sets(st.sampled_from(list(GOOD)), max_size=1))
def test_only_what_websockets_takes_is_plain(more: list[tuple[bytes, bytes]], without: set[bytes]) -> None:
    headers = [(name, value) for name, value in GOOD.items() if name not in without] + more
    found = accept_of(headers, compression=False)
    if found is not None:
        told = Headers([(name.decode(), value.decode("latin-1").strip(" \t")) for name, value in headers])
        answer = ServerProtocol().accept(Request("/ws", told))
        assert (answer.status_code, answer.headers.get("Sec-WebSocket-Accept")) == (101, found.decode())


@given(st.lists(st.text("ab=&%+2é", max_size=4), max_size=6).map("&".join))
def test_a_query_is_read_as_ever(text: str) -> None:
    query = text.encode("latin-1")
    assert query_values(query) == {name: values[0] for name, values in parse_qs(query.decode("latin-1")).items()}


def test_an_absurd_query_says_nothing() -> None:
    assert query_values(b"&".join([b"token=x"] * 200)) == {}
