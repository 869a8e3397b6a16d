"""The trace that a published event belongs to."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.events.codec import split
from livetape.events.event import Event
from livetape.events.typed import EventBus
from livetape.observability import TRACEPARENT, current_traceparent

W3C = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7
OF_SPAN = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
GIVEN = "00-11111111111111111111111111111111-2222222222222222-00"


@pytest.fixture(autouse=True)
def without_a_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    token = TRACEPARENT.set("")
    yield
    TRACEPARENT.reset(token)


def load_opentelemetry(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", module)


def with_span(*, is_valid: bool = True, **context: Any) -> Any:
    """The part of `opentelemetry.trace` that is used, in the middle of a span."""
    found = SimpleNamespace(is_valid=is_valid, **{"trace_id": TRACE, "span_id": SPAN, "trace_flags": 1, **context})
    return SimpleNamespace(get_current_span=lambda: SimpleNamespace(get_span_context=lambda: found))


def is_fresh(trace: str) -> bool:
    return W3C.fullmatch(trace) is not None and trace.endswith("-00") and trace != current_traceparent()


def test_without_any_it_is_fresh_and_not_sampled() -> None:
    assert is_fresh(current_traceparent())


def test_the_span_of_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    load_opentelemetry(monkeypatch, with_span())
    assert current_traceparent() == OF_SPAN


def test_what_the_application_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    load_opentelemetry(monkeypatch, with_span())
    TRACEPARENT.set(GIVEN)
    assert current_traceparent() == GIVEN


def test_outside_of_a_span_it_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    load_opentelemetry(monkeypatch, with_span(is_valid=False, trace_id=0, span_id=0))
    assert is_fresh(current_traceparent())


@pytest.mark.parametrize(
    "module",
    [SimpleNamespace(), None, with_span(trace_id="text"), with_span(trace_flags=None)],
    ids=["empty", "none", "trace-id-of-text", "no-flags"],
)
def test_another_version_of_opentelemetry_costs_nothing(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    load_opentelemetry(monkeypatch, module)
    assert is_fresh(current_traceparent())


async def test_a_published_event_carries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    load_opentelemetry(monkeypatch, with_span())
    adapter = MemoryBus()
    async with EventBus(Event, name="traced", bus=adapter) as bus, await adapter.subscribe("traced/*") as subscription:
        await bus.publish(Event(), "a")
        message = await anext(aiter(subscription))
    assert split(message.data).traceparent == OF_SPAN
    await adapter.close()
