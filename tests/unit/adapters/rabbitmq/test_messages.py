"""What stands in the messages to RabbitMQ, and the steps of which delays are made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from livetape.adapters.rabbitmq.messages import (
    MAX_BODY_BYTES,
    STEPS_S,
    NotADoorbellError,
    decode_doorbell,
    decode_hint,
    encode_doorbell,
    encode_hint,
    first_wait,
    left_ms,
)
from livetape.engine.queue import Doorbell

OLD_ENTRY = {
    "user_id": "3e53486c-cf57-477e-ba2a-cb02dc828e1a",
    "graph_exec_id": "5b1f8c1e-1f0c-4d4b-93a5-2a1f0c9f7a10",
    "graph_id": "a0e5",
    "graph_version": 3,
    "nodes_input_masks": {"node": {"priority": 9}},
    "nodes_to_skip": [],
    "execution_context": {"dry_run": False, "user_timezone": "UTC"},
}


@given(st.builds(Doorbell, st.text(min_size=1), st.integers(0, 2**31), st.text(min_size=1), st.integers(-9, 9)))
def test_a_doorbell_comes_back_as_it_was(bell: Doorbell) -> None:
    assert decode_doorbell(encode_doorbell(bell)) == bell


def test_of_an_old_entry_only_the_id_is_read() -> None:
    assert decode_doorbell(to_json(OLD_ENTRY)) == Doorbell("5b1f8c1e-1f0c-4d4b-93a5-2a1f0c9f7a10")


def test_the_body_never_holds_more_than_a_doorbell() -> None:
    assert from_json(encode_doorbell(Doorbell("e"))).keys() == {"graph_exec_id", "kind", "enqueue_no", "priority"}
    assert from_json(encode_hint("e")) == {"graph_exec_id": "e"}
    assert decode_hint(encode_hint("e")) == "e"


NO_DOORBELLS = [
    b"",
    b"no",
    b"[]",
    b"null",
    b'"e"',
    b"{}",
    b'{"graph_exec_id":""}',
    b'{"graph_exec_id":7}',
    b"\xff\xfe",
    b"{",
    b" " * (MAX_BODY_BYTES + 1),
]


@pytest.mark.parametrize("body", NO_DOORBELLS, ids=lambda body: repr(body[:12]))
def test_what_names_no_execution_is_no_doorbell(body: bytes) -> None:
    with pytest.raises(NotADoorbellError):
        decode_doorbell(body)


def test_odd_fields_beside_the_id_do_no_harm() -> None:
    body = b'{"graph_exec_id":"e","kind":null,"enqueue_no":"many","priority":[],"more":{}}'
    assert decode_doorbell(body) == Doorbell("e")


@given(st.floats(0.001, 90_000))
def test_a_delay_is_never_cut_short_and_hardly_longer(delay_s: float) -> None:
    waited, left = 0.0, delay_s
    for _ in range(2000):
        wait = first_wait(left)
        if wait is None:
            break
        assert wait.step_s in STEPS_S
        waited += wait.step_s
        left = wait.left_ms / 1000
    assert delay_s - 1e-6 <= waited <= delay_s + STEPS_S[0] + 0.01


def test_what_is_due_waits_nowhere() -> None:
    assert first_wait(0) is None
    assert first_wait(-1) is None


@pytest.mark.parametrize("headers", [None, {}, {"livetape-delay-left-ms": "x"}, {"livetape-delay-left-ms": -3}])
def test_odd_headers_are_no_delay(headers: dict[str, object] | None) -> None:
    assert left_ms(headers) == 0
