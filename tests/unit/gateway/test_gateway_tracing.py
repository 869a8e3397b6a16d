"""Who comes and what is subscribed to is traced, and those events whose sender keeps their trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from livetape.events.channel import execution_channel
from livetape.events.codec import Envelope
from livetape.observability import Attribute, is_sampled
from unit.gateway.rig import NODE, Rig, rigged

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
NOT_SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00"


@dataclass
class Spanned:
    name: str
    traceparent: str | None
    attributes: dict[str, Any]
    ended: dict[str, Any] | None = None

    def end(self, **attributes: Attribute) -> None:
        if self.ended is None:
            self.ended = attributes


@dataclass
class Spans:
    """A tracer that writes everything down."""

    all: list[Spanned] = field(default_factory=list)

    def begin(self, name: str, *, traceparent: str | None = None, **attributes: Attribute) -> Spanned:
        made = Spanned(name, traceparent, attributes)
        self.all.append(made)
        return made

    def named(self, name: str) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
        return [(span.attributes, span.ended) for span in self.all if span.name == name]


async def publish(rig: Rig, traceparent: str | None) -> None:
    envelope = Envelope(NODE, "node_execution_update", traceparent=traceparent)
    await rig.bus.publish(execution_channel("U", "G", "E"), envelope.encode())


async def test_handshakes_and_subscribes() -> None:
    spans = Spans()
    async with rigged(parts={"tracer": spans}) as rig:
        await rig.publisher.create()
        client, foreign = rig.connect(), rig.connect(origin="https://evil.example")
        await client.subscribe()
        await client.subscribe("none", strict=True)
        assert client.task is not None
        assert not client.task.done()
        assert foreign.rejected == 403
    assert sorted(ended["outcome"] for _, ended in spans.named("gateway.handshake") if ended) == [
        "accepted",
        "turned away",
    ]
    assert spans.named("gateway.subscribe") == [
        ({"kind": "execution"}, {"outcome": "subscribed"}),
        ({"kind": "execution"}, {"outcome": "not_found"}),
    ]


async def test_of_events_those_that_are_sampled() -> None:
    spans = Spans()
    async with rigged(parts={"tracer": spans}) as rig:
        await rig.publisher.create()
        clients = [rig.connect() for _ in range(3)]
        for client in clients:
            await client.subscribe()
        for traceparent in (None, NOT_SAMPLED, SAMPLED):
            await publish(rig, traceparent)
        for client in clients:
            await client.take(3)
    (told,) = [span for span in spans.all if span.name == "gateway.fan_out"]
    assert (told.traceparent, told.attributes) == (SAMPLED, {"kind": "execution", "recipients": 3})
    assert told.ended == {}


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [(SAMPLED, True), (NOT_SAMPLED, False), (SAMPLED[:-2] + "03", True), ("", False), ("x", False), ("1", False)],
)
def test_the_flag(traceparent: str, *, expected: bool) -> None:
    assert is_sampled(traceparent) is expected
