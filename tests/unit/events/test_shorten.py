"""Execution events that are too large for the bus lose the middle of their values, and say so."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from livetape.events.codec import JsonCodec, split
from livetape.events.event import JobEvent
from livetape.events.executions import GraphExecutionEvent, NodeExecutionEvent
from livetape.events.packing import Packer
from livetape.events.shorten import VALUE_FIELDS, shorten_event, shorten_payload, shorten_value

values: Any = st.recursive(
    st.none() | st.integers() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=40,
)


def node(**data: Any) -> NodeExecutionEvent:
    return NodeExecutionEvent.model_validate(
        {
            "user_id": "u",
            "graph_id": "g",
            "graph_version": 1,
            "graph_exec_id": "x",
            "node_exec_id": "ne",
            "node_id": "n",
            "block_id": "b",
            "status": "RUNNING",
            "input_data": {},
            "output_data": {},
            "add_time": datetime(2026, 1, 1, tzinfo=UTC),
        }
        | data
    )


def shortened(event: Any, limit: int) -> Any:
    return shorten_event(event, len(event.model_dump_json().encode()), limit)


def keys_of(value: Any) -> Any:
    return {key: keys_of(item) for key, item in value.items()} if isinstance(value, dict) else None


def test_a_text_keeps_head_and_tail() -> None:
    text = "head" + "x" * 100_000 + "tail"
    cut = shorten_value(text, 1000)
    assert cut.startswith("headxxx")
    assert cut.endswith("xxxtail")
    assert 900 < len(to_json(cut)) <= 1000
    omitted = int(cut.split("(omitted ")[1].split(" ")[0])
    assert len(cut) - len(f"… (omitted {omitted} chars)…") + omitted == len(text)


def test_a_list_keeps_head_and_tail() -> None:
    cut = shorten_value(list(range(100_000)), 2000)
    assert cut[0] == 0
    assert cut[-1] == 99_999
    (mark,) = [item for item in cut if isinstance(item, str)]
    assert mark == f"… (omitted {100_000 - (len(cut) - 1)} items)…"
    assert len(to_json(cut)) <= 2000


@given(values, st.integers(60, 4000))
def test_it_fits_or_cannot_fit_and_no_key_is_lost(value: Any, budget: int) -> None:
    cut = shorten_value(value, budget)
    if len(to_json(value)) <= budget:
        assert cut == value
    elif isinstance(value, dict):
        assert set(cut) == set(value)
        assert all(keys_of(cut[key]) == keys_of(value[key]) for key in value)


def test_every_pin_stays() -> None:
    data = {f"pin{number}": ["ä" * 10_000, {"deep": ["y" * 10_000], "n": number}] for number in range(20)}
    event = node(output_data=data, input_data={"in": ["small"]})
    cut = shortened(event, 50_000)
    assert len(cut.model_dump_json().encode()) <= 50_000
    assert list(cut.output_data) == list(data)
    assert cut.input_data == {"in": ["small"]}
    assert cut.output_data["pin3"][1]["n"] == 3
    assert all(isinstance(items, list) for items in cut.output_data.values())
    assert event.output_data == data, "the event itself is as it was"
    assert len(to_json(cut.output_data)) <= 25_000, "half of the limit for one field"


def test_two_large_fields_share_the_room() -> None:
    event = node(output_data={"a": ["x" * 90_000]}, input_data={"b": ["y" * 90_000]}, status_reason="r" * 5_000)
    cut = shortened(event, 50_000)
    assert len(cut.model_dump_json().encode()) <= 50_000
    assert len(to_json(cut.output_data)) > 20_000
    assert len(to_json(cut.input_data)) > 20_000


def test_the_graphs_event_too() -> None:
    event = GraphExecutionEvent(
        id="x",
        user_id="u",
        graph_id="g",
        graph_version=1,
        status="COMPLETED",
        inputs={"q": "z" * 50_000},
        outputs={"o": ["w" * 50_000]},
    )
    cut = shortened(event, 20_000)
    assert cut.id == "x"
    assert cut.inputs["q"].startswith("zzz")
    assert len(cut.model_dump_json()) <= 20_000


@pytest.mark.parametrize(
    "event",
    [
        JobEvent(event_type="t", job_id="j", data="x" * 10_000),
        node(status_reason="x" * 10_000),
        node(output_data={f"a pin with a long name {n}": [n] for n in range(1000)}),
    ],
)
def test_where_there_is_nothing_to_cut(event: Any) -> None:
    assert shortened(event, 5_000) is None


def test_the_bus_gets_the_cut_copy_and_the_tape_the_event() -> None:
    packer = Packer(JsonCodec(NodeExecutionEvent), 10_000)
    event = node(output_data={"a": ["x" * 50_000], "s": ["\ud800"]})
    packed = packer.pack(event, "c", recorded=False)
    message = packer.message(packed)
    assert len(message) <= 10_000
    assert not packed.replaced
    assert len(packed.whole.payload) > 50_000
    envelope = split(message)
    assert envelope.lossy
    received = JsonCodec(NodeExecutionEvent).decode(envelope.payload, "c")
    assert "omitted" in received.output_data["a"][0]
    assert packer.pack(node(status_reason="x" * 20_000), "c", recorded=False).replaced


@given(st.dictionaries(st.sampled_from([*VALUE_FIELDS, "status", "other"]), values, max_size=6), st.integers(20, 2_000))
def test_a_payload_is_cut_to_the_limit_or_not_at_all(event: dict[str, Any], limit: int) -> None:
    cut = shorten_payload(to_json(event), limit)
    if cut is None:
        return
    assert len(cut) <= limit
    told = from_json(cut)
    assert list(told) == list(event)
    assert {name: value for name, value in told.items() if name not in VALUE_FIELDS} == {
        name: value for name, value in event.items() if name not in VALUE_FIELDS
    }


@pytest.mark.parametrize("field", VALUE_FIELDS)
def test_every_kind_of_event_loses_the_middle_of_its_values(field: str) -> None:
    event = {"event_type": "x", field: {"pin": ["start" + "m" * 5_000 + "end"]}, "status": "RUNNING"}
    cut = shorten_payload(to_json(event), 1_000)
    assert cut is not None
    assert len(cut) <= 1_000
    told = from_json(cut)
    assert (list(told), list(told[field]), told["status"]) == (list(event), ["pin"], "RUNNING")
    (text,) = told[field]["pin"]
    assert text.startswith("start")
    assert text.endswith("end")
    assert "omitted" in text


@pytest.mark.parametrize(
    "payload",
    [
        b'"' + b"x" * 200 + b'"',
        b"x" * 200,
        b'{"event_type":"' + b"x" * 200 + b'"}',
        b'{"event_type":"x","data":{"' + b"k" * 200 + b'":1}}',
        b'{"event_type":"x","encrypted":{"data":"' + b"x" * 200 + b'"},"data":"' + b"y" * 200 + b'"}',
        b'{"data":"\\ud800' + b"x" * 200 + b'"}',
    ],
    ids=["a text", "no JSON", "nothing to cut", "a long key", "encrypted", "a lone surrogate"],
)
def test_what_cannot_be_cut(payload: bytes) -> None:
    assert shorten_payload(payload, 100) is None
