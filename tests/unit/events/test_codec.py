"""Envelopes: exact bytes, any publisher's form, and nothing lost."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.errors import CodecError
from livetape.events.codec import Envelope, encode_payload, event_type_of, split, too_large_payload
from livetape.events.event import JobEvent
from livetape.events.executions import EXECUTION_EVENTS

json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["offset", "epoch", "payload", "final", "a"]) | st.text(max_size=6), inner, max_size=4
        )
    ),
    max_leaves=12,
)
payloads = st.dictionaries(st.text(max_size=8), json_values, max_size=5)


def test_the_envelope_is_the_seeds_and_positions_stand_beside_it() -> None:
    payload = b'{"event_type":"x"}'
    assert Envelope(payload, "x").encode() == b'{"payload":{"event_type":"x"}}'
    assert Envelope(payload, "x", 7, "ep", 3, "gr", final=True, lossy=True, traceparent="00-1").encode() == (
        b'{"payload":{"event_type":"x"},"offset":7,"epoch":"ep","graph_offset":3,"graph_epoch":"gr",'
        b'"final":true,"lossy":true,"traceparent":"00-1"}'
    )


@given(
    payloads,
    st.none() | st.tuples(st.integers(1, 2**60), st.text("abc", min_size=1, max_size=8)),
    st.none() | st.tuples(st.integers(1, 2**60), st.text("abc", min_size=1, max_size=8)),
    st.booleans(),
    st.booleans(),
)
def test_what_was_joined_is_split_again_byte_for_byte(
    payload: dict[str, Any], at: Any, graph_at: Any, final: bool, lossy: bool
) -> None:
    body, _ = encode_payload(payload)
    envelope = Envelope(body, event_type_of(body), *(at or (None, None)), *(graph_at or (None, None)), final, lossy)
    assert split(envelope.encode()) == envelope


@given(payloads, st.booleans(), st.integers(0, 3))
def test_any_publishers_form_is_read(payload: dict[str, Any], first: bool, indent: int) -> None:
    beside = {"offset": 4, "epoch": "e"}
    message = {"payload": payload} | beside if first else beside | {"payload": payload}
    envelope = split(json.dumps(message, indent=indent or None).encode())
    assert (json.loads(envelope.payload), envelope.offset, envelope.epoch) == (payload, 4, "e")
    envelope = split(json.dumps({"payload": payload}).encode())
    assert (json.loads(envelope.payload), envelope.offset, envelope.final) == (payload, None, False)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"[]", b"{}", b'{"payload":1}', b'{"payload":', b'{"payload":{},"offset":1', b'\xff{"payload":{}}'],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        split(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    for candidate in (data, b'{"payload":' + data, b'{"payload":{"a":' + data + b'},"offset":1}'):
        with contextlib.suppress(CodecError):
            split(candidate)


def test_nested_keys_are_not_taken_for_the_envelopes() -> None:
    inner = {"a": {"x": 1}, "offset": 5, "epoch": "wrong"}
    body, _ = encode_payload(inner)
    assert split(Envelope(body, "").encode()).offset is None
    assert split(Envelope(body, "", final=True).encode()) == Envelope(body, "", final=True)
    text, _ = encode_payload({"s": '},"offset":9,"epoch":"no"}'})
    assert split(Envelope(text, "").encode()).offset is None


def test_a_position_of_the_wrong_kind_is_none() -> None:
    envelope = split(b'{"payload":{"a":{}},"offset":"7","epoch":"e"}')
    assert (envelope.offset, envelope.epoch) == (None, None)


def test_a_lone_surrogate_becomes_text_and_is_told() -> None:
    payload, lossy = encode_payload(JobEvent(event_type="t", job_id="j", data={"bad\ud800": ["\udfff", "fine ä"]}))
    assert lossy
    assert json.loads(payload)["data"] == {"bad\\ud800": ["\\udfff", "fine ä"]}
    assert encode_payload({"ok": "ä\x00𝄞"}) == ('{"ok":"ä\\u0000𝄞"}'.encode(), False)


def test_what_json_cannot_carry_is_refused() -> None:
    with pytest.raises(CodecError):
        encode_payload({"x": object()})


def test_the_event_type_is_found_wherever_it_stands() -> None:
    assert event_type_of(b'{"event_type":"first","a":1}') == "first"
    assert event_type_of(b'{"a":{"event_type":"inner"},"event_type":"last"}') == "last"
    assert event_type_of(b'{"event_type":"esc\\"aped"}') == 'esc"aped'
    assert event_type_of(b"[]") == event_type_of(b"{") == event_type_of(b"{}") == ""


def test_the_stand_in_for_a_large_message_is_exact_and_typed() -> None:
    payload = too_large_payload(20_000_000, 16_777_216)
    assert Envelope(payload, "error_comms_update").encode() == (
        b'{"payload":{"event_type":"error_comms_update","error":"Payload too large for Redis transmission",'
        b'"original_size_bytes":20000000,"max_size_bytes":16777216}}'
    )
    assert EXECUTION_EVENTS.validate_json(payload).event_type == "error_comms_update"
