"""The bytes of the wire. Golden lines: the seed's recorded traffic, written out here, never our own output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import to_json

from livetape.gateway import messages
from livetape.gateway.messages import (
    Push,
    SinceLast,
    SincePosition,
    SinceSeconds,
    TapeEvent,
    WSMessage,
    WSMethod,
    WSSubscribeGraphExecutionRequest,
    WSUnsubscribeRequest,
)
from livetape.gateway.subjects import Kind, Subject

CHANNEL = b'"U|graph_exec#E"'

GOLDEN_REPLIES = {
    '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#E","error":null}': (
        lambda: messages.reply(WSMethod.SUBSCRIBE_GRAPH_EXEC, channel="U|graph_exec#E")
    ),
    '{"method":"subscribe_graph_executions","data":null,"success":true,"channel":"U|graph#G|executions",'
    '"error":null}': (lambda: messages.reply(WSMethod.SUBSCRIBE_GRAPH_EXECS, channel="U|graph#G|executions")),
    '{"method":"unsubscribe","data":null,"success":true,"channel":"U|graph_exec#E","error":null}': (
        lambda: messages.reply(WSMethod.UNSUBSCRIBE, channel="U|graph_exec#E")
    ),
    '{"method":"unsubscribe","data":null,"success":true,"channel":null,"error":null}': (
        lambda: messages.reply(WSMethod.UNSUBSCRIBE, channel=None)
    ),
    '{"method":"heartbeat","data":"pong","success":true}': messages.heartbeat_reply,
    '{"method":"error","data":null,"success":false,"channel":null,"error":"Subscription data missing"}': (
        lambda: messages.error_push("Subscription data missing")
    ),
    '{"method":"notification","data":{"type":"info","event":"hey"},"success":null,"channel":null,"error":null}': (
        lambda: messages.message(WSMethod.NOTIFICATION, data=b'{"type":"info","event":"hey"}')
    ),
}


@pytest.mark.parametrize("line", GOLDEN_REPLIES)
def test_golden_lines(line: str) -> None:
    assert GOLDEN_REPLIES[line]().decode() == line


@pytest.mark.parametrize(
    ("event_type", "method"),
    [
        ("node_execution_update", "node_execution_event"),
        ("graph_execution_update", "graph_execution_event"),
        ("node_output_update", "node_output_event"),
    ],
)
def test_a_push_has_the_five_keys_of_the_seed(event_type: str, method: str) -> None:
    pushed = messages.event_push(TapeEvent(event_type, b'{"x": 1}'), CHANNEL)
    assert pushed is not None
    # The payload is spliced in as it is, white space and all.
    assert pushed.decode() == (
        '{"method":"' + method + '","data":{"x": 1},"success":null,"channel":"U|graph_exec#E","error":null}'
    )


def test_the_position_follows_the_five_keys() -> None:
    event = TapeEvent("graph_execution_update", b"{}", 7, "k3v9x0aq")
    five = b'{"method":"graph_execution_event","data":{},"success":null,"channel":"U|graph_exec#E","error":null'
    assert messages.event_push(event, CHANNEL) == five + b',"offset":7,"epoch":"k3v9x0aq"}'
    last = TapeEvent("graph_execution_update", b"{}", 8, "k3v9x0aq", final=True)
    assert messages.event_push(last, CHANNEL) == five + b',"offset":8,"epoch":"k3v9x0aq","final":true}'


def test_every_event_of_a_job_is_a_job_event() -> None:
    pushed = messages.event_push(TapeEvent("task_progress", b"{}", 1, "e"), b'"U|job#J"', is_job=True)
    assert pushed is not None
    assert json.loads(pushed)["method"] == "job_event"


def test_other_event_types_of_an_execution_are_not_pushed() -> None:
    assert messages.event_push(TapeEvent("error_comms_update", b"{}"), CHANNEL) is None


def test_what_is_ours_follows_the_five_keys_too() -> None:
    assert messages.gap_push(CHANNEL, 3, None, "e").decode() == (
        '{"method":"gap","data":{"from":3,"to":null,"epoch":"e"},"success":null,"channel":"U|graph_exec#E","error":null}'
    )
    assert messages.replay_complete_push(CHANNEL, 9, "e").decode() == (
        '{"method":"replay_complete","data":null,"success":null,"channel":"U|graph_exec#E","error":null,'
        '"offset":9,"epoch":"e"}'
    )
    assert messages.error_push("x", code="unavailable", retry=True, request_id=4, correlation_id="c").decode() == (
        '{"method":"error","data":null,"success":false,"channel":null,"error":"x",'
        '"id":4,"code":"unavailable","retry":true,"correlation_id":"c"}'
    )


def test_an_id_is_given_back() -> None:
    assert messages.heartbeat_reply("a") == b'{"method":"heartbeat","data":"pong","success":true,"id":"a"}'
    assert messages.heartbeat_reply(0) == b'{"method":"heartbeat","data":"pong","success":true,"id":0}'
    assert messages.reply(WSMethod.UNSUBSCRIBE, channel=None, request_id=7).endswith(b'"error":null,"id":7}')


def test_the_public_model_writes_the_same_bytes() -> None:
    """`WSMessage` is the seed's model: what its users build by it equals what we splice."""
    assert WSMessage(method=WSMethod.UNSUBSCRIBE, success=True, channel='a"b').model_dump_json().encode() == (
        messages.reply(WSMethod.UNSUBSCRIBE, channel='a"b')
    )
    assert WSMessage(method=WSMethod.ERROR, success=False, error="ü").model_dump_json().encode() == (
        messages.error_push("ü")
    )


@given(st.text(), st.text(), st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=4))
def test_any_text_makes_valid_json(channel: str, text: str, data: dict[str, Any]) -> None:
    def clean(value: str) -> str:
        return value.encode("utf-8", "replace").decode()

    data = {clean(key): clean(value) if isinstance(value, str) else value for key, value in data.items()}
    event = TapeEvent("x", to_json(data), 1, clean(text))
    pushed = messages.event_push(event, to_json(clean(channel)), is_job=True)
    assert pushed is not None
    body = json.loads(pushed)
    assert (body["channel"], body["data"], body["epoch"]) == (clean(channel), data, clean(text))
    assert list(body)[:5] == ["method", "data", "success", "channel", "error"]
    assert json.loads(messages.error_push(clean(text), channel=to_json(clean(channel))))["error"] == clean(text)


def test_a_push_is_made_once_in_every_form() -> None:
    push = Push("ä".encode())
    assert push.text == "ä"
    assert push.text is push.text
    assert push.size == 2


# ---- requests ----


def request(**data: Any) -> WSSubscribeGraphExecutionRequest:
    return WSSubscribeGraphExecutionRequest.model_validate({"graph_exec_id": "E", **data})


@pytest.mark.parametrize(
    ("since", "parsed"),
    [
        (None, None),
        ("earliest", "earliest"),
        ("latest", "latest"),
        ({"epoch": "e", "offset": 0}, SincePosition(epoch="e", offset=0)),
        ({"epoch": "e", "offset": 2**61}, SincePosition(epoch="e", offset=2**61)),
        ({"epoch": "e", "offset": str(2**61)}, SincePosition(epoch="e", offset=2**61)),
        ({"last": 20}, SinceLast(last=20)),
        ({"seconds": 60}, SinceSeconds(seconds=60)),
        ({"seconds": 0.5}, SinceSeconds(seconds=0.5)),
    ],
)
def test_every_form_of_since(since: Any, parsed: Any) -> None:
    assert request(since=since).since == parsed


@pytest.mark.parametrize(
    "data",
    [
        {"since": "yesterday"},
        {"since": {"offset": 4}},
        {"since": {"epoch": "e", "offset": -1}},
        {"since": {"epoch": "", "offset": 4}},
        {"since": {"epoch": "e", "offset": 2**63}},
        {"since": {"epoch": "e", "offset": "1" * 20}},
        {"since": {"epoch": "e", "offset": "-1"}},
        {"since": {"epoch": "e", "offset": "٣"}},
        {"since": {"last": 1, "seconds": 1}},
        {"since": {"seconds": float("inf")}},
        {"since": []},
        {"outputs": "all"},
        {"strict": "yes"},
        {"graph_exec_id": ""},
        {"graph_exec_id": "x" * 201},
        {"graph_exec_id": "*"},
        {"graph_exec_id": 7},
    ],
)
def test_what_does_not_fit_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**data)


def test_unknown_keys_are_ignored() -> None:
    assert request(whatever=1).subject == Subject(Kind.EXECUTION, "E")


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        ({"graph_exec_id": "E"}, Subject(Kind.EXECUTION, "E")),
        ({"graph_id": "G"}, Subject(Kind.GRAPH, "G")),
        ({"job_id": "J"}, Subject(Kind.JOB, "J")),
        ({"channel": "U|job#J"}, None),
    ],
)
def test_unsubscribe_names_one_of_four(data: dict[str, str], subject: Subject | None) -> None:
    assert WSUnsubscribeRequest.model_validate(data).subject == subject


def test_unsubscribe_names_something() -> None:
    with pytest.raises(ValidationError):
        WSUnsubscribeRequest.model_validate({"graph_version": 1})
