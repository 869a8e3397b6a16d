"""Payloads that only those with the key can read: the wire form, and a codec for typed buses. Pure.

An encrypted payload is itself an event, so that everything which routes, stores or replays events takes it as one:

    {"event_type":"task_progress","encrypted":{"v":1,"kid":"2026-01","nonce":"…","data":"…"}}

`event_type`, channel, tape, owner, position and time stay readable; all else is in `data`. The text is bound to its
event type and to its place (the channel, or the tape): moved elsewhere it cannot be decrypted. It is not bound to its
number: who can write to the server can still repeat, reorder or remove events of one tape.
"""

from __future__ import annotations

import binascii
import re
from functools import lru_cache
from typing import Final, Generic, TypeVar

from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.errors import ChannelError, CodecError, DecryptionError
from livetape.events.channel import job_channel, job_tape, split_tape
from livetape.events.codec import Codec, Encoded, too_large_payload
from livetape.events.keyring import KeyRing, Sealed

VERSION: Final = 1
DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024

M = TypeVar("M")

_STAND_IN: Final = re.compile(re.escape(too_large_payload(0, 0)).replace(b"0", rb"\d{1,18}"))


@lru_cache(maxsize=8192)
def place(name: str) -> str:
    """What a text is bound to: the channel, or the tape. A job's tape and its channel are one place.

    So what a recorder puts on the tape of a job and pushes on its channel is encrypted once.
    """
    kind, identity = split_tape(name)
    if kind and identity:
        try:
            if job_tape(identity) == name:
                return job_channel(identity)
        except ChannelError:
            pass
    return name


class Sealer:
    """Encrypts payloads and decrypts them.

    `allow_plaintext` lets payloads through that are not encrypted, for the time of a migration; without it they are
    refused. `max_bytes` bounds a payload before encryption (on the wire it is a third longer).
    """

    def __init__(self, keyring: KeyRing, *, allow_plaintext: bool = False, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._keyring = keyring
        self.allow_plaintext = allow_plaintext
        self._max_bytes = max_bytes

    def seal(self, payload: bytes, event_type: str, name: str) -> bytes:
        """The encrypted form of the payload of an event for this channel or tape.

        Raises:
            CodecError: it is too large, or the event type is not text.
        """
        if len(payload) > self._max_bytes:
            raise CodecError("this event is too large to be encrypted", size=len(payload), limit=self._max_bytes)
        try:
            shown = to_json(event_type)
        except (PydanticSerializationError, UnicodeError, ValueError):
            raise CodecError("the type of an event is text that UTF-8 can carry") from None
        kid, nonce, data = self._keyring.encrypt(payload, _bound_to(shown, name))
        return b'{"event_type":%b,"encrypted":{"v":%d,"kid":"%b","nonce":"%b","data":"%b"}}' % (
            shown,
            VERSION,
            kid.encode(),
            binascii.b2a_base64(nonce, newline=False),
            binascii.b2a_base64(data, newline=False),
        )

    def unseal(self, payload: bytes, name: str, *, event_type: str | None = None) -> bytes:
        """The payload that was sealed for this channel or tape, byte for byte.

        `event_type`: what a log knows of it beside the payload; it must be the same.

        Raises:
            DecryptionError: its key is missing or another, it was changed or moved, it is too large, or it is not
                encrypted (unless plaintext is allowed).
        """
        if len(payload) > self._max_bytes * 4 // 3 + 4096:
            raise DecryptionError("this event is too large to be decrypted", size=len(payload), limit=self._max_bytes)
        found = _parse(payload)
        if found is None:
            if self.allow_plaintext:
                return payload
            raise DecryptionError("this event is not encrypted, and here only encrypted ones are read", place=name)
        shown, sealed = found
        if event_type is not None and event_type != shown:
            raise DecryptionError("the type of this event was changed", place=name, kid=sealed.kid)
        return self._keyring.decrypt(sealed, _bound_to(to_json(shown), name))


class EncryptedCodec(Generic[M]):
    """A codec whose payloads are encrypted: `EventBus(Model, codec=EncryptedCodec(JsonCodec(Model), keyring))`.

    What stands in for an event over the size limit holds no data, and is decoded without encryption.
    """

    def __init__(
        self,
        codec: Codec[M],
        keyring: KeyRing,
        *,
        allow_plaintext: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._codec = codec
        self._sealer = Sealer(keyring, allow_plaintext=allow_plaintext, max_bytes=max_bytes)

    def encode(self, event: M, channel: str) -> Encoded:
        """The event, encrypted for this channel.

        Raises:
            CodecError: not an event of this codec, data that JSON cannot carry, or too large.
        """
        payload, event_type, lossy = self._codec.encode(event, channel)
        return Encoded(self._sealer.seal(payload, event_type, channel), event_type, lossy)

    def decode(self, payload: bytes, channel: str) -> M:
        """The event again.

        Raises:
            CodecError: not such an event.
            DecryptionError: its key is missing or another, it was changed or moved, or it is not encrypted.
        """
        if not _STAND_IN.fullmatch(payload):
            payload = self._sealer.unseal(payload, channel)
        return self._codec.decode(payload, channel)


def _bound_to(shown_type: bytes, name: str) -> bytes:
    return b"%d:%b%b" % (len(shown_type), shown_type, place(name).encode("utf-8", "surrogatepass"))


def _parse(payload: bytes) -> tuple[str, Sealed] | None:
    """The event type and the sealed text; None: not the encrypted form at all.

    Raises:
        DecryptionError: it means to be the encrypted form and is not quite.
    """
    if b'"encrypted"' not in payload:
        return None
    try:
        body = from_json(payload)
    except ValueError:
        return None
    if not isinstance(body, dict) or body.keys() != {"event_type", "encrypted"}:
        return None
    shown, inner = body["event_type"], body["encrypted"]
    if not isinstance(inner, dict) or "kid" not in inner or "data" not in inner:
        return None
    if inner.get("v") != VERSION or isinstance(inner["v"], bool):
        raise DecryptionError("this event is encrypted in a way that is not known here", version=str(inner.get("v")))
    kid, nonce, data = inner["kid"], _bytes(inner.get("nonce")), _bytes(inner["data"])
    if not isinstance(shown, str) or not isinstance(kid, str) or nonce is None or data is None or len(inner) != 4:
        raise DecryptionError("this is not a well-formed encrypted event")
    return shown, Sealed(kid, nonce, data)


def _bytes(text: object) -> bytes | None:
    """From base64, in its only canonical spelling: no bit of the wire form can be changed unnoticed."""
    if not isinstance(text, str):
        return None
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # also text that is not ASCII
        return None
    return data if binascii.b2a_base64(data, newline=False) == text.encode() else None
