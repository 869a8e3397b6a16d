"""What every typed event bus does, whatever its face and its adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol, Self, TypeAlias

from pydantic import BaseModel, Field

from livetape.events.event import CommunicationErrorEvent, Event
from livetape.events.result import Published

MAX_MESSAGE_BYTES = 20_000
"""The limit that the bus under test is made with."""


class Detail(BaseModel):
    """What a step says about itself."""

    title: str


class LongDetail(Detail):
    """More than the bus was told of."""

    lines: list[str]


class Step(Event):
    """An event with values of every kind."""

    event_type: Literal["step"] = "step"
    number: int
    text: str = ""
    value: Any = None
    detail: Detail | None = None


class Done(Event):
    """Another event of the same bus."""

    event_type: Literal["done"] = "done"
    result: str


SuiteEvent: TypeAlias = Annotated[Step | Done, Field(discriminator="event_type")]


class Listening(Protocol):
    """A listener under test."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def __anext__(self) -> Any: ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Face(Protocol):
    """A bus under test, with the model `SuiteEvent` and messages of at most `MAX_MESSAGE_BYTES`.

    It does not raise from `publish`.
    """

    async def publish(self, event: Any, key: str) -> Published: ...

    def listen(self, key: str) -> Listening: ...

    async def wait_for(self, key: str, timeout: float | None = None) -> Any: ...

    async def close(self) -> None: ...


class EventBusSuite:
    """The cases. Give the fixture `bus`, a `Face` that nobody else uses."""

    patience_s = 5.0

    async def test_an_event_arrives_as_what_it_was(self, bus: Face) -> None:
        event = Step(number=1, text="ä\x00𝄞 \u2028", value={"deep": [None, True, 1.5, {"": "*"}]})
        async with bus.listen("a/b") as listener:
            published = await bus.publish(event, "a/b")
            assert published
            assert (published.receivers, published.on_bus, published.error) == (1, True, None)
            assert await self._next(listener) == event

    async def test_the_class_of_a_union_is_found(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            await bus.publish(Done(result="x"), "a")
            await bus.publish(Step(number=2), "a")
            assert [type(await self._next(listener)) for _ in range(2)] == [Done, Step]

    async def test_fields_of_a_subclass_are_sent(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            await bus.publish(Step(number=1, value=LongDetail(title="t", lines=["one"])), "a")
            assert (await self._next(listener)).value == {"title": "t", "lines": ["one"]}

    async def test_nobody_listens_and_that_is_told(self, bus: Face) -> None:
        published = await bus.publish(Step(number=1), "nobody")
        assert not published
        assert published.on_bus
        assert (published.receivers, published.error) == (0, None)

    async def test_events_arrive_in_order(self, bus: Face) -> None:
        async with bus.listen("a/*") as listener:
            for number in range(50):
                await bus.publish(Step(number=number), f"a/{number % 3}")
            assert [(await self._next(listener)).number for _ in range(50)] == list(range(50))

    async def test_concurrent_events_all_arrive(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            outcomes = await asyncio.gather(*(bus.publish(Step(number=number), "a") for number in range(50)))
            assert all(outcomes)
            assert {(await self._next(listener)).number for _ in range(50)} == set(range(50))

    async def test_a_star_matches_within_one_level(self, bus: Face) -> None:
        async with bus.listen("user_*/x") as listener:
            await bus.publish(Step(number=1), "user_1/x/y")
            await bus.publish(Step(number=2), "user_1/y/x")
            await bus.publish(Step(number=3), "guest/x")
            await bus.publish(Step(number=4), "user_2/x")
            assert (await self._next(listener)).number == 4

    async def test_a_star_alone_matches_every_key(self, bus: Face) -> None:
        async with bus.listen("*") as listener:
            await bus.publish(Step(number=1), "a/b/c")
            await bus.publish(Step(number=2), "d")
            assert [(await self._next(listener)).number for _ in range(2)] == [1, 2]

    async def test_listeners_are_independent(self, bus: Face) -> None:
        async with bus.listen("a") as one, bus.listen("a") as other, bus.listen("b") as third:
            assert (await bus.publish(Step(number=1), "a")).receivers == 2
            assert [(await self._next(x)).number for x in (one, other)] == [1, 1]
            await one.close()
            await bus.publish(Step(number=2), "a")
            await bus.publish(Step(number=3), "b")
            assert (await self._next(other)).number == 2
            assert (await self._next(third)).number == 3

    async def test_closing_a_listener_ends_it(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            await listener.close()
            await listener.close()
            assert await asyncio.wait_for(self._all(listener), self.patience_s) == []
            assert (await bus.publish(Step(number=1), "a")).receivers == 0

    async def test_closing_a_listener_ends_who_waits(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            waiting = asyncio.ensure_future(self._all(listener))
            await asyncio.sleep(0.05)
            await listener.close()
            assert await asyncio.wait_for(waiting, self.patience_s) == []

    async def test_a_key_with_a_star_is_a_failure(self, bus: Face) -> None:
        for key in ("a/*", "*", "a*b"):
            published = await bus.publish(Step(number=1), key)
            assert not published
            assert published.error is not None
            assert published.error.code == "channel"

    async def test_an_unusable_key_is_a_failure(self, bus: Face) -> None:
        for key in ("", "a//b", "a\nb", "x" * 10_000, "x/" * 5_000, "a\x00"):
            published = await bus.publish(Step(number=1), key)
            assert published.error is not None, key[:20]
            assert published.error.code == "channel"

    async def test_what_is_no_event_of_the_bus_is_a_failure(self, bus: Face) -> None:
        for wrong in (Detail(title="t"), "text", None, {"event_type": "other"}, object()):
            published = await bus.publish(wrong, "a")
            assert published.error is not None
            assert published.error.code == "codec"

    async def test_what_json_cannot_carry_is_a_failure_and_the_bus_goes_on(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            published = await bus.publish(Step(number=1, value=object()), "a")
            assert published.error is not None
            assert published.error.code == "codec"
            assert await bus.publish(Step(number=2), "a")
            assert (await self._next(listener)).number == 2

    async def test_a_lone_surrogate_does_not_cost_the_event(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            assert await bus.publish(Step(number=1, text="bad \ud800", value={"k\udfff": "v"}), "a")
            event = await self._next(listener)
            assert (event.text, event.value) == ("bad \\ud800", {"k\\udfff": "v"})

    async def test_a_too_large_event_is_told_in_its_place(self, bus: Face) -> None:
        async with bus.listen("u/*/x") as listener:
            published = await bus.publish(Step(number=1, text="ä" * MAX_MESSAGE_BYTES), "u/g/x")
            assert published.replaced
            assert published.receivers == 1
            event = await self._next(listener)
            assert isinstance(event, CommunicationErrorEvent)
            assert event.error == "Payload too large for Redis transmission"
            assert event.max_size_bytes == MAX_MESSAGE_BYTES
            assert event.original_size_bytes > 2 * MAX_MESSAGE_BYTES
            assert event.key == ("u", "g", "x")

    async def test_waiting_for_an_event(self, bus: Face) -> None:
        waiting = asyncio.ensure_future(bus.wait_for("w/*", self.patience_s))
        while not waiting.done() and not await bus.publish(Step(number=7), "w/1"):
            await asyncio.wait([waiting], timeout=0.01)
        event = await waiting
        assert event is not None, "who was counted gets it"
        assert event.number == 7

    async def test_waiting_in_vain(self, bus: Face) -> None:
        assert await bus.wait_for("w", 0.05) is None
        assert (await bus.publish(Step(number=1), "w")).receivers == 0

    async def test_closing_the_bus_ends_its_listeners(self, bus: Face) -> None:
        async with bus.listen("a") as listener:
            waiting = asyncio.ensure_future(self._all(listener))
            await asyncio.sleep(0.05)
            await bus.close()
            await bus.close()
            assert await asyncio.wait_for(waiting, self.patience_s) == []

    # ---- how cases wait --------------------------------------------------------------------------------------------

    async def _next(self, listener: Listening) -> Any:
        async with asyncio.timeout(self.patience_s):
            return await listener.__anext__()

    async def _all(self, listener: Listening) -> list[Any]:
        return [event async for event in listener]
