"""Frames as RFC 6455 has them, and never text that a client must refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from livetape.gateway.frames import (
    close_frame,
    close_payload,
    fitting_reason,
    ping_frame,
    pong_frame,
    text_frame,
    valid_text,
)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_text_frame_is_what_a_library_writes(size: int) -> None:
    payload = b"x" * size
    assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


def test_the_header_counts_what_was_made_valid() -> None:
    payload = b"\xff" * 60  # three bytes each, then
    assert text_frame(payload) == b"\x81\x7e\x00\xb4" + "\ufffd".encode() * 60


@given(st.binary())
def test_text_becomes_valid_and_what_is_valid_stays(payload: bytes) -> None:
    valid = valid_text(payload)
    assert valid.decode() == payload.decode("utf-8", "replace")
    assert valid_text(valid) is valid


@given(st.sampled_from([1000, 1012, 4000, 4999]), st.text())
def test_a_close_fits_and_can_be_parsed(code: int, reason: str) -> None:
    payload = close_payload(code, reason)
    assert len(payload) <= 125
    close = Close.parse(payload)
    assert close.code == code
    assert close.reason == fitting_reason(reason)
    if len(reason.encode("utf-8", "replace")) <= 123:
        assert close.reason.encode() == reason.encode("utf-8", "replace")
    assert close_frame(payload) == Frame(Opcode.CLOSE, payload).serialize(mask=False)


def test_pings_and_pongs() -> None:
    for payload in (b"", b"abcd", b"x" * 125):
        assert ping_frame(payload) == Frame(Opcode.PING, payload).serialize(mask=False)
        assert pong_frame(payload) == Frame(Opcode.PONG, payload).serialize(mask=False)
