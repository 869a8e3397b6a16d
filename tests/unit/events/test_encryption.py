"""Sealed payloads come back byte for byte, from their place only, or raise; whatever was done to them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from livetape.errors import CodecError, DecryptionError
from livetape.events.channel import job_channel, job_tape
from livetape.events.codec import Envelope, JsonCodec, split, too_large_payload
from livetape.events.encryption import EncryptedCodec, Sealer, place
from livetape.events.keyring import KEY_BYTES, KeyRing

RING = KeyRing({"old": b"o" * KEY_BYTES, "new": b"n" * KEY_BYTES}, current="new")
SEALER = Sealer(RING)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
KEYS = st.sampled_from(["event_type", "encrypted", "v", "kid", "nonce", "data"])
FORMS = st.recursive(st.none() | st.text(), lambda inner: st.dictionaries(KEYS, inner))


@given(st.binary(max_size=300), NAMES, NAMES)
def test_what_was_sealed_comes_back(payload, event_type, name):
    sealed = SEALER.seal(payload, event_type, name)
    assert SEALER.unseal(sealed, name, event_type=event_type) == payload
    assert json.loads(sealed)["event_type"] == event_type
    again = split(Envelope(sealed, event_type, 7, "epoch", final=True).encode())
    assert (again.payload, again.event_type, again.offset) == (sealed, event_type, 7)


@given(st.binary(max_size=50), NAMES, NAMES, NAMES, NAMES)
def test_it_cannot_be_moved(payload, event_type, name, other_type, other_name):
    sealed = SEALER.seal(payload, event_type, name)
    if place(other_name) != place(name):
        with pytest.raises(DecryptionError):
            SEALER.unseal(sealed, other_name)
    if other_type != event_type:
        with pytest.raises(DecryptionError):
            SEALER.unseal(sealed, name, event_type=other_type)
        renamed = json.dumps(json.loads(sealed) | {"event_type": other_type}).encode()
        with pytest.raises(DecryptionError):
            SEALER.unseal(renamed, name)


@given(st.text(st.characters(exclude_characters="*", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_the_tape_and_the_channel_of_a_job_are_one_place(job_id):
    assert place(job_tape(job_id)) == place(job_channel(job_id)) == job_channel(job_id)


@pytest.mark.parametrize(
    "name", ["job_events:", "job_events:a b", "job_events:*", "job_events:" + "x" * 500, "", ":", "a:b"]
)
def test_what_is_no_tape_of_a_job_is_its_own_place(name):
    assert place(name) == name


def test_no_byte_can_be_changed_unnoticed():
    sealed = SEALER.seal(b'{"event_type":"said","text":"secret"}', "said", "job_events:a")
    assert b"secret" not in sealed
    for sealer in (SEALER, Sealer(RING, max_bytes=10_000)):
        for at in range(len(sealed)):
            for bit in range(8):
                changed = bytearray(sealed)
                changed[at] ^= 1 << bit
                with pytest.raises(DecryptionError):
                    sealer.unseal(bytes(changed), "job_events:a")


def test_no_end_can_be_cut_off():
    sealed = SEALER.seal(b"payload", "said", "a")
    for size in range(len(sealed)):
        with pytest.raises(DecryptionError):
            SEALER.unseal(sealed[:size], "a")


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"v": True}, {"v": None}, {"kid": "gone"}, {"kid": "old"}, {"kid": 7}, {"nonce": None},
        {"nonce": "AAAA"}, {"nonce": "ä"}, {"data": ""}, {"data": "AAAA"}, {"data": 7},
        {"data": "A A A A="}, {"more": 1},
    ],
)  # fmt: skip
def test_a_form_that_is_not_ours_is_refused_even_where_plaintext_is_allowed(change):
    body = json.loads(SEALER.seal(b"payload", "said", "a"))
    body["encrypted"] |= change
    with pytest.raises(DecryptionError):
        Sealer(RING, allow_plaintext=True).unseal(json.dumps(body).encode(), "a")


@settings(max_examples=50)
@given(st.binary(max_size=100) | FORMS.map(lambda value: json.dumps(value).encode()))
def test_plaintext_is_refused_and_rubbish_raises_nothing_else(payload):
    with pytest.raises(DecryptionError):
        SEALER.unseal(payload, "a")


@pytest.mark.parametrize(
    "payload", [b'{"event_type":"said","text":"a"}', b'{"encrypted":{}}', b"", b'"encrypted"', b"{"]
)
def test_plaintext_passes_where_it_is_allowed(payload):
    assert Sealer(RING, allow_plaintext=True).unseal(payload, "a", event_type="said") is payload


def test_sizes_are_limited():
    small = Sealer(RING, max_bytes=100)
    assert small.unseal(small.seal(b"x" * 100, "t", "a"), "a") == b"x" * 100
    with pytest.raises(CodecError, match="too large"):
        small.seal(b"x" * 101, "t", "a")
    with pytest.raises(DecryptionError, match="too large"):
        small.unseal(SEALER.seal(b"x" * 10_000, "t", "a"), "a")


def test_an_event_type_that_utf8_cannot_carry_is_refused():
    with pytest.raises(CodecError):
        SEALER.seal(b"", "\ud800", "a")


class Said(BaseModel):
    event_type: str = "said"
    text: str


@dataclass
class Lossy:
    """A codec that says that it lost something."""

    def encode(self, event, channel):
        return JsonCodec(Said).encode(event, channel)._replace(lossy=True)

    def decode(self, payload, channel):
        return JsonCodec(Said).decode(payload, channel)


@given(st.text())
def test_a_codec_with_encryption_round_trips(text):
    codec = EncryptedCodec(JsonCodec(Said), RING)
    encoded = codec.encode(Said(text=text), "bus/a")
    kept = text.encode("utf-8", "backslashreplace").decode()
    assert codec.decode(encoded.payload, "bus/a") == Said(text=kept)
    assert (encoded.event_type, encoded.lossy) == ("said", kept != text)
    with pytest.raises(DecryptionError):
        codec.decode(encoded.payload, "bus/b")


def test_a_codec_passes_on_what_the_inner_one_says():
    codec = EncryptedCodec(Lossy(), RING)
    assert codec.encode(Said(text="a"), "bus/a").lossy
    with pytest.raises(DecryptionError):
        codec.decode(b'{"event_type":"said","text":"a"}', "bus/a")
    with pytest.raises(CodecError) as raised:
        codec.decode(SEALER.seal(b'{"text":7}', "said", "bus/a"), "bus/a")
    assert not isinstance(raised.value, DecryptionError)
    migrating = EncryptedCodec(Lossy(), RING, allow_plaintext=True)
    assert migrating.decode(b'{"event_type":"said","text":"a"}', "bus/a") == Said(text="a")


def test_the_stand_in_of_an_event_that_is_too_large_needs_no_key():
    class Error(BaseModel):
        error: str
        original_size_bytes: int

    codec = EncryptedCodec(JsonCodec(Error), RING)
    assert codec.decode(too_large_payload(30_000_000, 16_777_216), "bus/a").original_size_bytes == 30_000_000
    with pytest.raises(DecryptionError):
        codec.decode(too_large_payload(1, 2)[:-1] + b',"text":"forged"}', "bus/a")


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, livetape.events.encrypted; sys.exit(any(m.startswith('cryptography') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
