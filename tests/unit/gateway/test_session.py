"""The protocol of the wire contract, section 3, message by message, without a socket."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.auth import Principal
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.messages import SinceLast, WSMethod
from livetape.gateway.options import GatewayOptions
from livetape.gateway.session import (
    ClientError,
    Close,
    Effect,
    Pause,
    Refresh,
    Send,
    Session,
    Stop,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from livetape.gateway.subjects import Kind, Subject

NOW = datetime(2030, 1, 1, tzinfo=UTC)
FIVE = ["method", "data", "success", "channel", "error"]
OPENED = Subscribed("k3v9x0aq", 41, recovered=True, count=3)


def session(expires_in: float | None = None, **options: Any) -> Session:
    expires = None if expires_in is None else NOW + timedelta(seconds=expires_in)
    return Session(Principal("U", expires_at=expires), GatewayOptions(**options), NOW, 0.0)


def say(open_session: Session, message: Any, at: float = 0.0) -> list[Effect]:
    return open_session.receive(message if isinstance(message, str | bytes) else json.dumps(message), at)


def sent(effects: list[Effect]) -> list[str]:
    return [effect.data.decode() for effect in effects if isinstance(effect, Send)]


def subscribe(open_session: Session, graph_exec_id: str = "E", **data: Any) -> list[Effect]:
    """Ask, and let the shell open it."""
    effects = say(
        open_session, {"method": "subscribe_graph_execution", "data": {"graph_exec_id": graph_exec_id, **data}}
    )
    (asked,) = effects
    assert isinstance(asked, Subscribe)
    return open_session.subscribed(asked, OPENED)


# ---- subscribe ----


def test_a_subscribe_asks_the_shell_and_is_then_answered() -> None:
    open_session = session()
    (asked,) = say(open_session, '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}')
    assert asked == Subscribe(
        WSMethod.SUBSCRIBE_GRAPH_EXEC,
        Subject(Kind.EXECUTION, "E"),
        "U|graph_exec#E",
        since=None,
        each=False,
        strict=False,
        request_id=None,
    )
    assert sent(open_session.subscribed(asked, OPENED)) == [
        '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#E","error":null}'
    ]


@pytest.mark.parametrize(
    ("method", "data", "subject", "channel"),
    [
        ("subscribe_graph_executions", {"graph_id": "G"}, Subject(Kind.GRAPH, "G"), "U|graph#G|executions"),
        ("subscribe_job", {"job_id": "J"}, Subject(Kind.JOB, "J"), "U|job#J"),
    ],
)
def test_graphs_and_jobs(method: str, data: dict[str, str], subject: Subject, channel: str) -> None:
    open_session = session()
    (asked,) = say(open_session, {"method": method, "data": data})
    assert isinstance(asked, Subscribe)
    assert (asked.subject, asked.channel, asked.each) == (subject, channel, False)
    assert sent(open_session.subscribed(asked, OPENED)) == [
        f'{{"method":"{method}","data":null,"success":true,"channel":"{channel}","error":null}}'
    ]


def test_with_since_the_reply_says_where_it_begins() -> None:
    open_session = session()
    data = {"graph_exec_id": "E", "since": {"last": 3}, "outputs": "each", "strict": True}
    (asked,) = say(open_session, {"method": "subscribe_graph_execution", "id": 7, "data": data})
    assert isinstance(asked, Subscribe)
    assert (asked.since, asked.each, asked.strict, asked.request_id) == (SinceLast(last=3), True, True, 7)
    assert sent(open_session.subscribed(asked, OPENED)) == [
        '{"method":"subscribe_graph_execution","data":{"epoch":"k3v9x0aq","offset":41,"recovered":true,"count":3},'
        '"success":true,"channel":"U|graph_exec#E","error":null,"id":7}'
    ]


def test_what_is_open_is_not_opened_twice() -> None:
    open_session = session()
    subscribe(open_session)
    again = say(open_session, {"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E"}})
    assert sent(again) == [
        '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#E","error":null}'
    ]
    for more in ({"since": "earliest"}, {"outputs": "each"}, {"strict": True}):
        (asked,) = say(open_session, {"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", **more}})
        assert isinstance(asked, Subscribe), "it is another subscription"


def test_a_refused_subscribe_says_why() -> None:
    open_session = session()
    (asked,) = say(open_session, {"method": "subscribe_job", "id": "a", "data": {"job_id": "J", "strict": True}})
    assert isinstance(asked, Subscribe)
    (line,) = sent(open_session.refused(asked, "Not found", "not_found"))
    assert line == (
        '{"method":"error","data":null,"success":false,"channel":null,"error":"Not found",'
        '"id":"a","code":"not_found","retry":false}'
    )
    (line,) = sent(open_session.failed("a", "corr"))
    assert json.loads(line)["code"] == "internal"
    assert json.loads(line)["correlation_id"] == "corr"


# ---- unsubscribe ----


@pytest.mark.parametrize("data", [{"graph_exec_id": "E"}, {"channel": "U|graph_exec#E"}])
def test_unsubscribe(data: dict[str, str]) -> None:
    open_session = session()
    subscribe(open_session)
    effects = say(open_session, {"method": "unsubscribe", "data": data})
    assert effects[0] == Unsubscribe(Subject(Kind.EXECUTION, "E"))
    assert sent(effects) == [
        '{"method":"unsubscribe","data":null,"success":true,"channel":"U|graph_exec#E","error":null}'
    ]
    assert sent(say(open_session, {"method": "unsubscribe", "data": data})) == [
        '{"method":"unsubscribe","data":null,"success":true,"channel":null,"error":null}'
    ]


@pytest.mark.parametrize("data", [{"graph_exec_id": "*"}, {"graph_id": "G"}, {"job_id": "J"}, {"channel": "x"}])
def test_unsubscribe_from_what_was_never_subscribed(data: dict[str, str]) -> None:
    assert sent(say(session(), {"method": "unsubscribe", "data": data})) == [
        '{"method":"unsubscribe","data":null,"success":true,"channel":null,"error":null}'
    ]


# ---- heartbeat ----


@pytest.mark.parametrize("data", ["ping", None, 5, {"a": 1}, [1]])
def test_a_heartbeat_is_answered_whatever_its_data(data: Any) -> None:
    assert sent(say(session(), {"method": "heartbeat", "data": data, "success": True})) == [
        '{"method":"heartbeat","data":"pong","success":true}'
    ]


def test_bytes_are_read_like_text() -> None:
    assert sent(say(session(), b'{"method":"heartbeat","id":"x"}')) == [
        '{"method":"heartbeat","data":"pong","success":true,"id":"x"}'
    ]


# ---- the table of errors: the socket stays ----

INVALID_FORMAT = "Invalid message format. Review the schema and retry"
DATA_MISSING = "Subscription data missing"
INVALID_DATA = "Invalid message data. Refer to the API schema"
NOT_PROCESSED = "Message type is not processed by the server"
SUBSCRIBE = "subscribe_graph_execution"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("hello", INVALID_FORMAT),
        ("", INVALID_FORMAT),
        (b"\xff\xfe", INVALID_FORMAT),
        ("[]", INVALID_FORMAT),
        ("null", INVALID_FORMAT),
        ("[" * 5000, INVALID_FORMAT),
        ('{"a":' * 5000, INVALID_FORMAT),
        ("{}", INVALID_FORMAT),
        ({"method": "fly"}, INVALID_FORMAT),
        ({"method": ["heartbeat"]}, INVALID_FORMAT),
        ({"method": "refresh", "data": {}}, INVALID_DATA),
        ({"method": "refresh", "data": {"token": ""}}, INVALID_DATA),
        ({"method": "refresh", "data": {"token": "t" * 20_000}}, INVALID_DATA),
        ({"method": "stop_graph_execution"}, INVALID_DATA),
        ({"method": "stop_graph_execution", "data": {"graph_exec_id": "*"}}, INVALID_DATA),
        ({"method": SUBSCRIBE, "data": 5}, INVALID_FORMAT),
        ({"method": SUBSCRIBE, "channel": 5}, INVALID_FORMAT),
        ('{"method":"subscribe_job","data":{"job_id":"\\ud800"}}', INVALID_FORMAT),
        ({"method": SUBSCRIBE}, DATA_MISSING),
        ({"method": SUBSCRIBE, "data": {}}, DATA_MISSING),
        ({"method": SUBSCRIBE, "data": ""}, DATA_MISSING),
        ({"method": "subscribe_graph_executions", "data": None}, DATA_MISSING),
        ({"method": "subscribe_job", "data": []}, DATA_MISSING),
        ({"method": "unsubscribe"}, DATA_MISSING),
        ({"method": "unsubscribe", "data": {}}, DATA_MISSING),
        ({"method": SUBSCRIBE, "data": {"graph_id": "G"}}, INVALID_DATA),
        ({"method": SUBSCRIBE, "data": {"graph_exec_id": 5}}, INVALID_DATA),
        ({"method": SUBSCRIBE, "data": {"graph_exec_id": "*"}}, INVALID_DATA),
        ({"method": SUBSCRIBE, "data": "E"}, INVALID_DATA),
        ({"method": SUBSCRIBE, "data": ["E"]}, INVALID_DATA),
        ({"method": SUBSCRIBE, "data": {"graph_exec_id": "E", "since": 5}}, INVALID_DATA),
        ({"method": "unsubscribe", "data": {"x": 1}}, INVALID_DATA),
        ({"method": "graph_execution_event", "data": {}}, NOT_PROCESSED),
        ({"method": "node_execution_event"}, NOT_PROCESSED),
        ({"method": "notification", "data": {"a": 1}}, NOT_PROCESSED),
        ({"method": "replay_complete"}, NOT_PROCESSED),
    ],
)
def test_errors(message: Any, text: str) -> None:
    (line,) = sent(say(session(), message))
    assert line == f'{{"method":"error","data":null,"success":false,"channel":null,"error":"{text}"}}'


def test_an_error_gives_the_id_back() -> None:
    (line,) = sent(say(session(), {"method": "fly", "id": 3}))
    assert list(json.loads(line)) == [*FIVE, "id"]


@pytest.mark.parametrize("odd", [True, 1.5, None, {"a": 1}, [1]])
def test_an_id_is_text_or_a_whole_number(odd: Any) -> None:
    assert sent(say(session(), {"method": "heartbeat", "id": odd})) == [
        '{"method":"heartbeat","data":"pong","success":true}'
    ]


def test_an_error_of_the_client_is_logged_and_not_answered() -> None:
    assert say(session(), {"method": "error", "error": "oops", "success": False}) == [ClientError("oops")]


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_have_a_documented_outcome(data: bytes | str) -> None:
    for effect in say(session(), data):
        assert isinstance(effect, Send)
        assert json.loads(effect.data)["method"] in {"error", "heartbeat"}


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
IDS = dict.fromkeys(("graph_exec_id", "graph_id", "job_id", "channel", "since", "outputs", "strict"), json_values)


@given(
    st.sampled_from([*WSMethod, "x"]), st.fixed_dictionaries({}, optional=IDS) | json_values, json_values, json_values
)
def test_any_message_has_a_documented_outcome(method: str, data: Any, success: Any, request_id: Any) -> None:
    message = {"method": method, "data": data, "success": success, "id": request_id}
    for effect in session().receive(json.dumps(message), 0.0):
        if isinstance(effect, Send):
            json.loads(effect.data)
        else:
            assert isinstance(effect, Subscribe | ClientError)


# ---- limits ----


@pytest.mark.parametrize("message", ["x" * 65_537, b"x" * 65_537, "ü" * 32_769, "\ud800" * 30_000])
def test_a_message_that_is_too_big_closes(message: str | bytes) -> None:
    open_session = session()
    assert say(open_session, message) == [Close(CloseCode.MESSAGE_TOO_BIG)]
    assert say(open_session, '{"method":"heartbeat"}') == [], "nothing after a close"
    assert open_session.wake_at is None


def test_64_kib_are_not_too_big() -> None:
    text = '{"method":"heartbeat","data":"' + "x" * (65_536 - 32) + '"}'
    assert len(text) == 65_536
    assert sent(say(session(), text))


def test_so_many_channels_and_no_more() -> None:
    open_session = session(max_channels=2)
    for name in ("A", "B"):
        subscribe(open_session, name)
    (line,) = sent(say(open_session, {"method": SUBSCRIBE, "data": {"graph_exec_id": "C"}}))
    assert json.loads(line)["code"] == "too_many_channels"
    assert list(json.loads(line))[:5] == FIVE
    subscribe(open_session, "B", since="earliest")  # one that is open may be opened anew
    open_session.finished(Subject(Kind.EXECUTION, "A"))
    assert isinstance(say(open_session, {"method": SUBSCRIBE, "data": {"graph_exec_id": "C"}})[0], Subscribe)


def test_finished_channels_are_free_but_not_without_end() -> None:
    open_session = session(max_channels=2)
    dropped: list[Effect] = []
    for number in range(10):
        dropped += [e for e in subscribe(open_session, f"E{number}") if isinstance(e, Unsubscribe)]
        open_session.finished(Subject(Kind.EXECUTION, f"E{number}"))
    assert dropped == [Unsubscribe(Subject(Kind.EXECUTION, f"E{number}")) for number in range(7)]
    open_session.finished(Subject(Kind.EXECUTION, "unknown"))


def test_a_fast_client_is_slowed_then_closed() -> None:
    open_session = session(messages_per_second=10, message_burst=5, flood_seconds=2)
    assert [say(open_session, '{"method":"heartbeat"}')[0] for _ in range(5)] == [
        Send(b'{"method":"heartbeat","data":"pong","success":true}')
    ] * 5
    time, pauses = 0.0, 0.0
    while True:
        effects = say(open_session, '{"method":"heartbeat"}', time)
        if isinstance(effects[-1], Close):
            break
        pause = effects[0]
        assert isinstance(pause, Pause)
        assert len(sent(effects)) == 1, "slowed, but answered"
        time += pause.seconds
        pauses += 1
    assert time == pytest.approx(2.0, abs=0.2)
    assert pauses == pytest.approx(20, abs=2)
    told = json.loads(sent(effects)[0])
    assert (told["code"], told["retry"], told["retry_after"] > 0) == ("rate_limited", True, True)
    assert effects[-1] == Close(CloseCode.TOO_MANY)


def test_a_client_that_rests_is_forgiven() -> None:
    open_session = session(messages_per_second=10, message_burst=5, flood_seconds=2)
    for _ in range(6):
        say(open_session, '{"method":"heartbeat"}')
    assert not isinstance(say(open_session, '{"method":"heartbeat"}', 1.0)[0], Pause)
    for _ in range(20):
        assert not isinstance(say(open_session, '{"method":"heartbeat"}', 2.5)[-1], Close)


# ---- the end of the token ----


def test_a_token_that_ends_is_announced_and_then_closes() -> None:
    open_session = session(expires_in=3600)
    assert open_session.wake_at == NOW + timedelta(seconds=3540)
    assert open_session.tick(NOW + timedelta(seconds=3539)) == []
    assert sent(open_session.tick(NOW + timedelta(seconds=3540))) == [
        '{"method":"token_expiring","data":{"expires_at":"2030-01-01T01:00:00Z"},"success":null,"channel":null,"error":null}'
    ]
    assert open_session.wake_at == NOW + timedelta(seconds=3630)
    assert open_session.tick(NOW + timedelta(seconds=3629)) == []
    assert open_session.tick(NOW + timedelta(seconds=3630)) == [Close(CloseCode.INVALID_TOKEN)]
    assert open_session.tick(NOW + timedelta(seconds=9999)) == []


def test_a_short_token_is_announced_at_once() -> None:
    open_session = session(expires_in=5)
    assert len(sent(open_session.tick(NOW))) == 1


def test_a_token_without_end_needs_no_clock() -> None:
    assert session().wake_at is None
    assert session().tick(NOW) == []


# ---- refresh and stop ----


def test_a_refresh_asks_the_shell_and_then_the_new_end_counts() -> None:
    open_session = session(expires_in=100)
    (asked,) = say(open_session, {"method": "refresh", "data": {"token": "new"}, "id": 7})
    assert asked == Refresh("new", 7)
    assert "new" not in repr(asked), "a token is not shown"
    later = Principal("U", expires_at=NOW + timedelta(seconds=1000))
    (answer,) = sent(open_session.refreshed(asked, later))
    assert json.loads(answer) == {
        "method": "refresh",
        "data": {"expires_at": "2030-01-01T00:16:40Z"},
        "success": True,
        "channel": None,
        "error": None,
        "id": 7,
    }
    assert open_session.tick(NOW + timedelta(seconds=500)) == []
    assert open_session.wake_at == NOW + timedelta(seconds=940)


def test_a_token_that_does_not_hold_changes_nothing() -> None:
    open_session = session(expires_in=100)
    (asked,) = say(open_session, {"method": "refresh", "data": {"token": "bad"}})
    assert isinstance(asked, Refresh)
    body = json.loads(sent(open_session.not_refreshed(asked))[0])
    assert (body["method"], body["code"], body["retry"]) == ("error", "invalid_token", False)
    assert open_session.tick(NOW + timedelta(seconds=131)) == [Close(CloseCode.INVALID_TOKEN)]


def test_a_stop_asks_the_shell_and_is_answered_when_it_is_committed() -> None:
    open_session = session()
    (asked,) = say(open_session, {"method": "stop_graph_execution", "data": {"graph_exec_id": "E"}, "id": "a"})
    assert asked == Stop("E", "a")
    assert sent(open_session.stopped(asked)) == [
        '{"method":"stop_graph_execution","data":{"accepted":true},"success":true,"channel":null,"error":null,"id":"a"}'
    ]
    body = json.loads(sent(open_session.not_stopped(asked, "Unavailable, retry", "unavailable", retry=True))[0])
    assert (body["code"], body["retry"], body["id"]) == ("unavailable", True, "a")


def test_what_may_not_be_watched_any_more_is_told_and_forgotten() -> None:
    open_session = session()
    subscribe(open_session)
    gone, told = open_session.withdrawn(Subject(Kind.EXECUTION, "E"))
    assert gone == Unsubscribe(Subject(Kind.EXECUTION, "E"))
    assert isinstance(told, Send)
    assert json.loads(told.data) == {
        "method": "unsubscribed",
        "data": None,
        "success": None,
        "channel": "U|graph_exec#E",
        "error": None,
    }
    assert open_session.withdrawn(Subject(Kind.EXECUTION, "E")) == []


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ({"method": "heartbeat", "data": "ping"}, True),
        ({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E"}}, True),
        ({"method": "subscribe_graph_executions", "data": {"graph_id": "G"}}, True),
        ({"method": "unsubscribe", "data": {"graph_exec_id": "E"}}, True),
        ("rubbish", True),
        ({"method": "heartbeat", "id": 1}, False),
        ({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "since": "latest"}}, False),
        ({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "outputs": "each"}}, False),
        ({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "strict": False}}, False),
        ({"method": "subscribe_job", "data": {"job_id": "J"}}, False),
        ({"method": "refresh", "data": {"token": "t"}}, False),
        ({"method": "stop_graph_execution", "data": {"graph_exec_id": "E"}}, False),
    ],
)
def test_what_tells_a_page_that_knows_how_to_continue(message: Any, plain: bool) -> None:
    open_session = session()
    say(open_session, message)
    assert open_session.is_plain is plain
