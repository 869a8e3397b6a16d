"""Faces of the typed event bus that break one promise each. `EventBusSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from pydantic import ConfigDict, TypeAdapter

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import BusError, CodecError
from livetape.events.bus import Bus
from livetape.events.codec import Codec, Encoded, JsonCodec
from livetape.events.event import CommunicationErrorEvent, Event
from livetape.events.event_listener import EventListener, ListenerState
from livetape.events.options import OnError
from livetape.events.result import Published
from livetape.events.typed import EventBus
from livetape.testing.broken_bus import CrossesLevels, LoneStarIsOneLevel
from livetape.testing.conformance.event_bus import MAX_MESSAGE_BYTES, Detail, Listening, Step, SuiteEvent


class SoftFace:
    """Keeps every promise; the broken ones change one step."""

    adapter_class: type[Bus] = MemoryBus
    on_error: OnError = "count"

    def __init__(self) -> None:
        self.events: EventBus[Any] = EventBus(
            TypeAdapter(SuiteEvent),
            name="suite",
            codec=self.codec(),
            bus=self.adapter_class(),
            on_error=self.on_error,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )

    def codec(self) -> Codec[Any]:
        return JsonCodec(TypeAdapter(SuiteEvent))

    async def publish(self, event: Any, key: str) -> Published:
        return await self.events.publish(event, key)

    def listen(self, key: str) -> Listening:
        return self.events.listen(key)

    async def wait_for(self, key: str, timeout: float | None = None) -> Any:
        return await self.events.wait_for(key, timeout)

    async def close(self) -> None:
        await self.events.close()


class SoftCodec:
    """The codec of the suite's events; the broken ones change one of its methods."""

    def __init__(self) -> None:
        self._json: JsonCodec[Any] = JsonCodec(TypeAdapter(SuiteEvent))

    def encode(self, event: Any, channel: str) -> Encoded:
        return self._json.encode(event, channel)

    def decode(self, payload: bytes, channel: str) -> Any:
        return self._json.decode(payload, channel)


class SoftListening:
    """A listener whose steps can be overridden."""

    def __init__(self, listener: EventListener[Any]) -> None:
        self.listener = listener

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await anext(self.listener)

    async def close(self) -> None:
        await self.listener.close()

    async def __aenter__(self) -> Self:
        await self.listener.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


# ---- what an event is ------------------------------------------------------------------------------------------------


class _WithoutNulls(SoftCodec):
    def encode(self, event: Any, channel: str) -> Encoded:
        payload, event_type, lossy = super().encode(event, channel)
        return Encoded(payload.replace(b"\\u0000", b""), event_type, lossy)


class LosesCharacters(SoftFace):
    """A zero character does not arrive."""

    def codec(self) -> Codec[Any]:
        return _WithoutNulls()


class _AnyEvent(Event):
    model_config = ConfigDict(extra="allow", frozen=True)

    event_type: str


class _OneClass(SoftCodec):
    def decode(self, payload: bytes, channel: str) -> Any:
        return _AnyEvent.model_validate_json(payload)


class ForgetsTheClass(SoftFace):
    """Whatever was published arrives as the base class."""

    def codec(self) -> Codec[Any]:
        return _OneClass()


class _DeclaredFields(SoftCodec):
    def encode(self, event: Any, channel: str) -> Encoded:
        if isinstance(event, Step) and isinstance(event.value, Detail):
            event = event.model_copy(update={"value": Detail(title=event.value.title)})
        return super().encode(event, channel)


class CutsSubclasses(SoftFace):
    """Only the fields of the class that was expected are sent."""

    def codec(self) -> Codec[Any]:
        return _DeclaredFields()


class RefusesSurrogates(SoftFace):
    """Half a character costs the whole event."""

    async def publish(self, event: Any, key: str) -> Published:
        try:
            str(getattr(event, "text", "")).encode()
        except UnicodeEncodeError:
            return self.events.failed(CodecError("half a character"))
        return await super().publish(event, key)


class HidesTheLarge(SoftFace):
    """An event over the limit is gone without a word."""

    def listen(self, key: str) -> Listening:
        return _WithoutNotices(self.events.listen(key))


class _WithoutNotices(SoftListening):
    async def __anext__(self) -> Any:
        while isinstance(event := await super().__anext__(), CommunicationErrorEvent):
            pass
        return event


# ---- what publish says -----------------------------------------------------------------------------------------------


class SaysYes(SoftFace):
    """Somebody got it, always."""

    async def publish(self, event: Any, key: str) -> Published:
        published = await super().publish(event, key)
        return published if published.error is not None else Published(receivers=max(1, published.receivers or 0))


class Raises(SoftFace):
    """What cannot be published raises."""

    on_error = "raise"


class TakesStars(SoftFace):
    """A `*` in a published key is taken as a name."""

    async def publish(self, event: Any, key: str) -> Published:
        return await super().publish(event, key.replace("*", "star"))


class TakesAnyKey(SoftFace):
    """A key that cannot be is made one that can."""

    async def publish(self, event: Any, key: str) -> Published:
        if "*" in key:
            return await super().publish(event, key)
        levels = ["".join(filter(str.isprintable, level))[:200] for level in key[:2000].split("/")]
        return await super().publish(event, "/".join(level for level in levels if level) or "none")


class TakesAnything(SoftFace):
    """What is no event of the bus is left out without a word."""

    async def publish(self, event: Any, key: str) -> Published:
        published = await super().publish(event, key)
        return published if isinstance(event, Event) else Published(receivers=0)


class BreaksForGood(SoftFace):
    """After one event that could not be written no other can."""

    broken = False

    async def publish(self, event: Any, key: str) -> Published:
        if self.broken:
            return self.events.failed(BusError("broken"))
        published = await super().publish(event, key)
        self.broken = published.error is not None
        return published


# ---- what arrives ----------------------------------------------------------------------------------------------------


class SwapsTwo(SoftFace):
    """The tenth event goes after the eleventh."""

    count = 0
    held: tuple[Any, str] | None = None

    async def publish(self, event: Any, key: str) -> Published:
        self.count += 1
        if self.count == 10:
            self.held = (event, key)
            return Published(receivers=1)
        published = await super().publish(event, key)
        if self.held is not None:
            late, self.held = self.held, None
            await super().publish(*late)
        return published


class LosesUnderPressure(SoftFace):
    """Of events that are published at the same time one arrives."""

    busy = False

    async def publish(self, event: Any, key: str) -> Published:
        if self.busy:
            return Published(receivers=1)
        self.busy = True
        try:
            await asyncio.sleep(0)
            return await super().publish(event, key)
        finally:
            self.busy = False


class StarsCrossLevels(SoftFace):
    """A `*` also matches `/`."""

    adapter_class = CrossesLevels


class LoneStarIsALevel(SoftFace):
    """The key `*` does not match keys of several levels."""

    adapter_class = LoneStarIsOneLevel


# ---- listeners -------------------------------------------------------------------------------------------------------


class OneForAll(SoftFace):
    """All listeners are one: closing it ends the others."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[EventListener[Any]] = []

    def listen(self, key: str) -> Listening:
        self.listeners.append(self.events.listen(key))
        return _Joined(self.listeners)


class _Joined(SoftListening):
    def __init__(self, listeners: list[EventListener[Any]]) -> None:
        super().__init__(listeners[-1])
        self.listeners = listeners

    async def close(self) -> None:
        for listener in self.listeners:
            await listener.close()


class GoesOnAfterClose(SoftFace):
    """A closed listener stays subscribed, and its iteration waits for ever."""

    def listen(self, key: str) -> Listening:
        return _Endless(self.events.listen(key))


class _Endless(SoftListening):
    async def close(self) -> None:
        pass


class LeavesWaiters(SoftFace):
    """Closing a listener unsubscribes it, and whoever waits for its next event waits for ever."""

    def listen(self, key: str) -> Listening:
        return _Deaf(self.events.listen(key))


class _Deaf(SoftListening):
    async def __anext__(self) -> Any:
        if self.listener.state is ListenerState.CLOSED:
            raise StopAsyncIteration
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await asyncio.Event().wait()


class WaitsInVain(SoftFace):
    """`wait_for` finds nothing."""

    async def wait_for(self, key: str, timeout: float | None = None) -> Any:
        return None


class LeavesListeners(SoftFace):
    """What `wait_for` listened with listens on."""

    async def wait_for(self, key: str, timeout: float | None = None) -> Any:
        listener = await self.events.listen(key).ready()
        self.kept = listener
        try:
            return await asyncio.wait_for(anext(listener), timeout)
        except TimeoutError:
            return None


class ForgetsListeners(SoftFace):
    """Closing the bus leaves its listeners waiting."""

    async def close(self) -> None:
        pass


BROKEN_EVENT_BUSES: Final[Mapping[Callable[[], SoftFace], str]] = {
    LosesCharacters: "test_an_event_arrives_as_what_it_was",
    ForgetsTheClass: "test_the_class_of_a_union_is_found",
    CutsSubclasses: "test_fields_of_a_subclass_are_sent",
    RefusesSurrogates: "test_a_lone_surrogate_does_not_cost_the_event",
    HidesTheLarge: "test_a_too_large_event_is_told_in_its_place",
    SaysYes: "test_nobody_listens_and_that_is_told",
    Raises: "test_a_key_with_a_star_is_a_failure",
    TakesStars: "test_a_key_with_a_star_is_a_failure",
    TakesAnyKey: "test_an_unusable_key_is_a_failure",
    TakesAnything: "test_what_is_no_event_of_the_bus_is_a_failure",
    BreaksForGood: "test_what_json_cannot_carry_is_a_failure_and_the_bus_goes_on",
    SwapsTwo: "test_events_arrive_in_order",
    LosesUnderPressure: "test_concurrent_events_all_arrive",
    StarsCrossLevels: "test_a_star_matches_within_one_level",
    LoneStarIsALevel: "test_a_star_alone_matches_every_key",
    OneForAll: "test_listeners_are_independent",
    GoesOnAfterClose: "test_closing_a_listener_ends_it",
    LeavesWaiters: "test_closing_a_listener_ends_who_waits",
    WaitsInVain: "test_waiting_for_an_event",
    LeavesListeners: "test_waiting_in_vain",
    ForgetsListeners: "test_closing_the_bus_ends_its_listeners",
}
"""Every one fails `EventBusSuite`, at least in the case that is named here."""
