"""WebSocket frames as a server writes them (RFC 6455, section 5.2): whole, unmasked, uncompressed. Pure."""

from __future__ import annotations

from typing import Final

MAX_CONTROL_BYTES: Final = 125


def valid_text(payload: bytes) -> bytes:
    """The payload as valid UTF-8: what is not is replaced, because a client would close the socket for it."""
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            return payload.decode("utf-8", "replace").encode()
    return payload


def text_frame(payload: bytes) -> bytes:
    """One unfragmented text message, made valid UTF-8."""
    payload = valid_text(payload)
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65_536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def fitting_reason(reason: str) -> str:
    """The reason of a close as far as it fits into the frame."""
    return reason.encode("utf-8", "replace")[: MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore")


def close_payload(code: int, reason: str) -> bytes:
    """What stands in a close frame; the reason as far as it fits."""
    return code.to_bytes(2, "big") + fitting_reason(reason).encode()


def close_frame(payload: bytes) -> bytes:
    """A close with this payload (`close_payload`, or the one to echo)."""
    return b"\x88%c%b" % (len(payload), payload)


def ping_frame(payload: bytes) -> bytes:
    """A ping with this payload, of at most 125 bytes."""
    return b"\x89%c%b" % (len(payload), payload)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping with this payload."""
    return b"\x8a%c%b" % (len(payload), payload)
