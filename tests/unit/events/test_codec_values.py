"""Values that JSON, or a parser of it, does not have: refused where they are published."""

from __future__ import annotations

import dataclasses
from math import inf, nan
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import CodecError
from livetape.events.codec import JsonCodec
from livetape.events.typed import EventBus


class Inner(BaseModel):
    number: float = 0.0


class Measure(BaseModel):
    number: float = 0.0
    anything: Any = ""
    inner: Inner = Inner()
    note: str | None = None


class Said(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    number: float
    note: str | None = None


@dataclasses.dataclass
class Data:
    number: float


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("bad", [nan, inf, -inf])
async def test_what_is_no_number_is_a_failure_that_is_told(bad: float) -> None:
    events = [
        Measure(number=bad),
        Measure(inner=Inner(number=bad)),
        Measure(number=bad, note="\ud800"),
    ]
    async with EventBus(Measure, name="m", bus=MemoryBus()) as bus:
        for event in events:
            published = await bus.publish(event, "k")
            assert isinstance(published.error, CodecError)
            assert not published
            assert not bus.publish_soon(event, "k")
        assert bus.stats.failed == 2 * len(events)
        assert (await bus.publish(Measure(number=1.5), "k")).error is None
    with pytest.raises(CodecError):
        JsonCodec(Data).encode(Data(bad), "")


def test_a_null_that_the_model_takes_may_stand() -> None:
    assert JsonCodec(Measure).encode(Measure(anything=[nan]), "").payload.startswith(b'{"number":0.0,"anything":[null]')


def test_a_model_may_say_how_it_writes_them() -> None:
    codec = JsonCodec(Said)
    for _ in range(2):
        assert codec.decode(codec.encode(Said(number=inf), "").payload, "").number == inf


def test_what_is_taken_can_be_read() -> None:
    codec = JsonCodec(Measure)
    for levels in (1, 150, 190):
        event = Measure(anything=nested(levels))
        assert codec.decode(codec.encode(event, "").payload, "") == event
    flat = Measure(anything=["[" * 500, *[{"a": []}] * 500])
    assert codec.decode(codec.encode(flat, "").payload, "") == flat
    for levels in (200, 220, 250):
        with pytest.raises(CodecError):
            codec.encode(Measure(anything=nested(levels)), "")
