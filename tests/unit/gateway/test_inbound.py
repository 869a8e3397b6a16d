"""What a client says, as bytes in any pieces, becomes frames in order, a slice at a time."""

from __future__ import annotations

import pytest
from websockets.frames import CloseCode, Opcode
from websockets.protocol import Protocol, Side, State

from livetape.gateway.transports.inbound import SLICE_BYTES, Inbound

MASK = b"\x00" * 4


def text(payload: bytes, *, fin: bool = True) -> bytes:
    assert len(payload) < 126
    return bytes((0x80 * fin | 1, 0x80 | len(payload))) + MASK + payload


def taken(inbound: Inbound) -> list[bytes]:
    found = []
    while (frame := inbound.take()) is not None:
        found.append(bytes(frame.data))
    return found


def test_one_slice_at_a_time() -> None:
    inbound = Inbound(1000)
    inbound.feed(text(b"x" * 100) * 100)
    most = 0
    heard: list[bytes] = []
    while inbound.unread:
        inbound.parse()
        part = taken(inbound)
        most = max(most, len(part))
        heard += part
    assert heard == [b"x" * 100] * 100
    assert most <= SLICE_BYTES // 106 + 1
    assert inbound.idle


@pytest.mark.parametrize("cut", range(1, 8))
def test_it_is_idle_only_between_messages(cut: int) -> None:
    assert Inbound(1000).idle
    inbound = Inbound(1000)
    whole = text(b"ab")
    inbound.feed(whole[:cut])
    assert not inbound.idle
    inbound.parse()
    assert (taken(inbound), inbound.idle) == ([], False)
    inbound.feed(whole[cut:])
    inbound.parse()
    assert not inbound.idle, "a frame waits to be taken"
    assert (taken(inbound), inbound.idle) == ([b"ab"], True)


def test_it_is_not_idle_within_a_fragmented_message() -> None:
    inbound = Inbound(1000)
    inbound.feed(text(b"ab", fin=False))
    inbound.parse()
    assert (taken(inbound), inbound.idle) == ([b"ab"], False)
    inbound.drop()


def test_a_fault_comes_after_what_was_right() -> None:
    inbound = Inbound(1000)
    inbound.feed(text(b"good") + b"\x83\x80" + MASK + text(b"not heard"))
    inbound.parse()
    assert taken(inbound) == [b"good"]
    assert inbound.fault is not None
    assert inbound.fault.code == CloseCode.PROTOCOL_ERROR
    assert not inbound.idle
    inbound.drop()


def test_a_frame_that_is_too_large_is_a_fault_before_it_has_come() -> None:
    inbound = Inbound(1000)
    inbound.feed(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK)
    inbound.parse()
    assert inbound.fault is not None
    assert inbound.fault.code == CloseCode.MESSAGE_TOO_BIG
    inbound.drop()


def test_with_a_parser_of_the_connection_it_is_never_idle() -> None:
    parser = Protocol(Side.SERVER, state=State.OPEN)
    inbound = Inbound(1000, parser)
    inbound.feed(text(b"x"))
    inbound.parse()
    frame = inbound.take()
    assert frame is not None
    assert frame.opcode is Opcode.TEXT
    assert not inbound.idle
    inbound.drop()
