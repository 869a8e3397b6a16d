"""The JSON codec: every event of a model, and nothing of it lost."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, field_serializer
from typing_extensions import TypedDict

from livetape.errors import CodecError
from livetape.events.codec import Encoded, JsonCodec, live_message, live_payload, split
from livetape.events.event import CommunicationErrorEvent, Event, JobEvent
from livetape.events.executions import ExecutionEvent, NodeOutputEvent
from livetape.events.packing import POSITION_BYTES, Packer
from livetape.events.publisher import Publisher
from livetape.observability import current_traceparent

json_values: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
any_text = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates too


class Colour(Enum):
    RED = "red"


class Kind(StrEnum):
    GOOD = "good"


class Base(BaseModel):
    name: str


class Derived(Base):
    more: int
    at: datetime

    @field_serializer("more")
    def _more(self, value: int) -> str:
        return f"<{value}>"


class Holder(Event):
    event_type: Literal["holder"] = "holder"
    one: Base | None = None
    many: list[Base] = Field(default_factory=list)
    named: dict[str, Base] = Field(default_factory=dict)
    anything: Any = None
    colour: Colour = Colour.RED
    at: datetime = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


class Named(BaseModel):
    event_type: Kind = Kind.GOOD
    value: Any = None


class Plain(BaseModel):
    value: Any = None


T = TypeVar("T")


class Wrapped(BaseModel, Generic[T]):
    inner: T


@dataclasses.dataclass
class Record:
    number: int


class Loose(TypedDict):
    number: int


Either = Annotated[Holder | JobEvent, Field(union_mode="left_to_right")]


@given(json_values)
def test_any_json_value_comes_back(value: Any) -> None:
    codec = JsonCodec(Holder)
    event = Holder(anything=value)
    payload, event_type, lossy = codec.encode(event, "c")
    assert (event_type, lossy) == ("holder", False)
    assert json.loads(payload)["anything"] == value
    assert codec.decode(payload, "c") == event


@given(any_text, st.dictionaries(any_text, any_text, max_size=3))
def test_any_text_is_sent(text: str, texts: dict[str, str]) -> None:
    codec = JsonCodec(Named)
    payload, event_type, lossy = codec.encode(Named(value=[text, texts]), "c")
    readable = [text, texts]
    try:
        json.dumps(readable, ensure_ascii=False).encode()
        assert not lossy
        assert codec.decode(payload, "c").value == readable
    except UnicodeEncodeError:
        assert lossy
        assert codec.decode(payload, "c").value[0] == text.encode("utf-8", "backslashreplace").decode()
    assert event_type == "good"


def test_what_stands_in_a_field_is_sent_as_what_it_is() -> None:
    derived = Derived(name="n", more=1, at=datetime(2026, 1, 1, tzinfo=UTC))
    sent = {"name": "n", "more": "<1>", "at": "2026-01-01T00:00:00Z"}
    body = json.loads(JsonCodec(Holder).encode(Holder(one=derived, many=[derived], named={"a": derived}), "c").payload)
    assert body["one"] == body["many"][0] == body["named"]["a"] == sent
    assert (body["colour"], body["at"]) == ("red", "2026-01-02T03:04:05.678000Z")
    generic = Wrapped[Base](inner=derived)
    assert json.loads(JsonCodec(Wrapped[Base]).encode(generic, "c").payload) == {"inner": sent}
    lossy = JsonCodec(Holder).encode(Holder(one=Derived(name="\ud800", more=1, at=derived.at)), "c")
    assert (json.loads(lossy.payload)["one"], lossy.lossy) == (sent | {"name": "\\ud800"}, True)


def test_a_subclass_of_the_model_is_an_event_of_the_bus() -> None:
    codec = JsonCodec(Base)
    assert json.loads(codec.encode(Derived(name="n", more=2, at=datetime(2026, 1, 1, tzinfo=UTC)), "c").payload) == {
        "name": "n",
        "more": "<2>",
        "at": "2026-01-01T00:00:00Z",
    }


def test_every_kind_of_model() -> None:
    assert JsonCodec(Record).encode(Record(1), "c") == Encoded(b'{"number":1}', "")
    assert JsonCodec(Record).decode(b'{"number":1}', "c") == Record(1)
    loose: Loose = {"number": 1}
    assert JsonCodec(TypeAdapter(Loose)).encode(loose, "c").payload == b'{"number":1}'
    union = JsonCodec(TypeAdapter[Holder | JobEvent](Either))
    job = JobEvent(event_type="task_started", job_id="j", data={"a": float("nan")})
    encoded = union.encode(job, "c")
    assert (encoded.event_type, json.loads(encoded.payload)["data"]) == ("task_started", {"a": None})
    assert isinstance(union.decode(encoded.payload, "c"), JobEvent)
    executions: JsonCodec[Any] = JsonCodec(TypeAdapter(ExecutionEvent))
    output = NodeOutputEvent(
        user_id="u", graph_id="g", graph_exec_id="x", node_id="n", node_exec_id="ne", index=0, name="o", value=1
    )
    assert executions.decode(executions.encode(output, "c").payload, "c") == output


def test_a_dictionary_becomes_an_event_if_it_is_one() -> None:
    codec: JsonCodec[Any] = JsonCodec(Plain)
    assert codec.encode({"value": 1}, "c").payload == b'{"value":1}'
    assert codec.encode({"value": "\ud800"}, "c") == Encoded(b'{"value":"\\\\ud800"}', "", True)


@pytest.mark.parametrize("wrong", [Holder(), {"number": 1}, "text", None, 1, object(), [Plain()]])
def test_what_is_no_event_of_the_model_is_refused(wrong: Any) -> None:
    codec: JsonCodec[Any] = JsonCodec(Plain) if not isinstance(wrong, dict) else JsonCodec(Base)
    with pytest.raises(CodecError, match="not an event of this bus"):
        codec.encode(wrong, "c")


def test_only_objects_are_events() -> None:
    with pytest.raises(CodecError, match="JSON object"):
        JsonCodec(int).encode(1, "c")
    with pytest.raises(CodecError):
        JsonCodec(Plain).encode(Plain(value=object()), "c")
    assert JsonCodec(Plain).encode(Plain(value=float("inf")), "c").payload == b'{"value":null}'


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"one":1}', b'{"event_type":"other"}', b"\xff", b"null"])
def test_what_is_not_such_an_event_is_refused_without_quoting_it(payload: bytes) -> None:
    with pytest.raises(CodecError, match="not an event of this model"):
        JsonCodec(Holder).decode(payload, "c")
    with pytest.raises(CodecError) as caught:
        JsonCodec(Holder).decode(b'{"one":"secret"}', "c")
    assert "secret" not in str(caught.value)


# ---- traces ----


def test_a_live_message_is_found_by_its_bytes() -> None:
    trace = current_traceparent()
    data = live_message(b'{"event_type":"x","a":{}}', trace)
    assert data == b'{"payload":{"event_type":"x","a":{}},"traceparent":"%b"}' % trace.encode()
    assert live_payload(data) == b'{"event_type":"x","a":{}}'
    envelope = split(data)
    assert (envelope.payload, envelope.event_type, envelope.traceparent) == (live_payload(data), "x", trace)
    assert split(data, by_parser=True) == envelope


def test_a_trace_beside_a_position() -> None:
    trace = current_traceparent()
    data = b'{"payload":{"a":{}},"offset":7,"epoch":"e","final":true,"lossy":true,"traceparent":"%b"}' % trace.encode()
    envelope = split(data)
    assert envelope == split(data, by_parser=True)
    assert (envelope.offset, envelope.final, envelope.lossy, envelope.traceparent) == (7, True, True, trace)


def test_an_objects_key_is_no_trace() -> None:
    inner = b'{"a":{},"traceparent":"%b"}' % current_traceparent().encode()
    assert live_payload(b'{"payload":' + inner + b"}") is None
    assert split(b'{"payload":' + inner + b"}").payload == inner
    text = json.dumps({"s": '},"traceparent":"' + current_traceparent() + '"}'}, separators=(",", ":")).encode()
    assert split(b'{"payload":' + text + b"}").payload == text


def test_the_parser_knows_better_when_others_write_keys_of_their_own() -> None:
    data = b'{"payload":{"a":1},"headers":{},"traceparent":"%b"}' % current_traceparent().encode()
    assert split(data, by_parser=True).payload == b'{"a":1}'


# ---- the size limit ----


@given(st.integers(0, 400), st.integers(60, 400))
def test_the_limit_is_that_of_the_whole_message(length: int, limit: int) -> None:
    packer = Packer(JsonCodec(Plain), limit)
    event = Plain(value="ä" * length)
    plain = b'{"payload":' + JsonCodec(Plain).encode(event, "c").payload + b"}"
    packed = packer.pack(event, "c", recorded=False)
    message = packer.message(packed)
    assert packed.replaced == (len(plain) > limit)
    if packed.replaced:
        assert message == (
            b'{"payload":{"event_type":"error_comms_update","error":"Payload too large for Redis transmission",'
            b'"original_size_bytes":%d,"max_size_bytes":%d}}' % (len(plain), limit)
        )
    else:
        assert len(message) <= limit, "what is optional never makes it too large"
        assert split(message).payload == packed.whole.payload
    recorded = packer.pack(event, "c", recorded=True)
    assert recorded.whole == packed.whole, "the tape has the whole event"
    assert recorded.replaced == (len(plain) + POSITION_BYTES > limit)


def test_the_notice_knows_where_it_was_received() -> None:
    payload = b'{"event_type":"error_comms_update","error":"e","original_size_bytes":2,"max_size_bytes":1}'
    event = CommunicationErrorEvent.received(payload, "execution_event/u/g%2F1/x")
    assert (event.key, event.channel) == (("u", "g/1", "x"), "execution_event/u/g%2F1/x")
    assert event.model_dump_json().encode() == payload
    assert CommunicationErrorEvent(error="e", original_size_bytes=2, max_size_bytes=1).key == ()


def test_the_publisher_of_tapes_follows_the_same_rules() -> None:
    assert Publisher.__init__.__kwdefaults__["max_message_bytes"] == 16 * 1024 * 1024
