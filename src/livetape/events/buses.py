"""The event buses under the names of the seed: thin faces of `EventBus`.

They never raise from publishing: what failed is counted, logged and told by a result that is false.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Literal, Self, TypeAlias, TypeVar, Unpack

from livetape.errors import ConfigError
from livetape.events.channel import EXECUTION_BUS, NOTIFICATION_BUS
from livetape.events.delivery import CircuitState
from livetape.events.event import CommunicationErrorEvent
from livetape.events.event_listener import EventListener
from livetape.events.executions import (
    ExecutionEvent,
    ExecutionEventType,
    GraphExecutionEvent,
    GraphExecutionMeta,
    NodeExecutionEvent,
    NodeExecutionResult,
    NodeOutputEvent,
)
from livetape.events.notifications import NotificationEvent
from livetape.events.open import check_url
from livetape.events.options import Key, Options
from livetape.events.result import Published
from livetape.events.sync import Portal, SyncIterator
from livetape.events.typed import EventBus

M = TypeVar("M")
T = TypeVar("T")
Outputs: TypeAlias = Literal["each"] | None
AnyExecutionEvent: TypeAlias = GraphExecutionEvent | NodeExecutionEvent | NodeOutputEvent | CommunicationErrorEvent
Execution: TypeAlias = AnyExecutionEvent | GraphExecutionMeta | NodeExecutionResult
"""What may be published on an execution bus: events, or the state that an event is made of."""

_WITHOUT_OUTPUTS: Final = frozenset({ExecutionEventType.NODE_OUTPUT.value})


class BaseRedisEventBus(Generic[M]):
    """What the synchronous and the asynchronous bus have in common.

    Subclasses declare `Model` (a class, union or `TypeAdapter`) and `event_bus_name` (a class attribute or property).
    `connection` is a URL or a client of redis-py (of the asynchronous kind only for the asynchronous buses); the client
    stays the caller's. Instead of it `url=`, `client=`, `bus=` or `backend=` may be given, and everything else that
    `EventBus` takes.

    Raises:
        ConfigError: none of them, or an unusable URL; with the first use, a class without `Model` or name, or an
            adapter that cannot be opened.
    """

    Model: ClassVar[Any]

    def __init__(
        self,
        connection: object | None = None,
        *,
        event_bus_name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        if isinstance(connection, str):
            options["url"] = connection
        elif connection is not None:
            options["client"] = connection
        if not any(options.get(name) is not None for name in ("url", "client", "bus", "backend")):
            raise ConfigError(
                f"{type(self).__name__} needs a server", fix="give a URL or a client of redis-py, or bus= in tests"
            )
        url = options.get("url")
        if url is not None:
            check_url(url)
        self._name = event_bus_name
        if event_bus_name is not None and isinstance(getattr(type(self), "event_bus_name", None), str):
            self.__dict__["event_bus_name"] = event_bus_name  # a class attribute, for this object
        self._options = options

    @property
    def event_bus_name(self) -> str:
        """The first part of every channel.

        Raises:
            ConfigError: neither declared nor given.
        """
        if self._name is None:
            raise ConfigError(
                f"{type(self).__name__} has no name", fix='declare event_bus_name = "…", or give event_bus_name='
            )
        return self._name

    def _make(self) -> EventBus[M]:
        model = getattr(type(self), "Model", None)
        if model is None:
            raise ConfigError(f"{type(self).__name__} has no model", fix="declare Model = YourEvent")
        return EventBus(model, name=self.event_bus_name, **self._options)


class AsyncRedisEventBus(BaseRedisEventBus[M]):
    """The asynchronous bus. Listeners are independent of each other, any number of them on one object."""

    def __init__(
        self,
        connection: object | None = None,
        *,
        event_bus_name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(connection, event_bus_name=event_bus_name, **options)
        self._bus: EventBus[M] | None = None

    @property
    def events(self) -> EventBus[M]:
        """The bus behind this face: its state, local buffer and batches."""
        if self._bus is None:
            self._bus = self._make()
        return self._bus

    @property
    def state(self) -> CircuitState:
        """As `EventBus.state`; `closed`, which is the good one, before the first use."""
        return CircuitState.CLOSED if self._bus is None else self._bus.state

    async def publish_event(self, event: M, channel_key: Key) -> Published:
        """Publish an event; never raises (a key with `*` is a failure too)."""
        return await self.events.publish(event, channel_key)

    def listen_events(self, channel_key: Key) -> AsyncGenerator[M | CommunicationErrorEvent, None]:
        """The events of a key, for ever; `*` is a wildcard. Subscribed when the first one is waited for.

        It is an `EventListener`: `async with` it, or call its `ready`, to be subscribed before acting.
        """
        return self._listener(channel_key)

    async def wait_for_event(
        self, channel_key: Key, timeout: float | None = None
    ) -> M | CommunicationErrorEvent | None:
        """The next event of this key, None after `timeout` seconds without one."""
        return await self.events.wait_for(channel_key, timeout)

    async def close(self) -> None:
        """End the listeners and close what was opened for them. The object can be used again. Never raises."""
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _listener(self, key: Key, skip_types: frozenset[str] = frozenset()) -> EventListener[M]:
        return self.events.listen(key, skip_types=skip_types)


class RedisEventBus(BaseRedisEventBus[M]):
    """The synchronous bus, for any number of threads, also in forked children.

    It runs the asynchronous one in a background thread, which starts with the first use.
    """

    def __init__(
        self,
        connection: object | None = None,
        *,
        event_bus_name: str | None = None,
        portal: Portal | None = None,
        **options: Unpack[Options],
    ) -> None:
        """`portal`: a thread that several buses share; the bus then leaves it open.

        Raises:
            ConfigError: as the class says, and for an asynchronous client.
        """
        super().__init__(connection, event_bus_name=event_bus_name, **options)
        if iscoroutinefunction(getattr(self._options.get("client"), "execute_command", None)):
            raise ConfigError(
                f"{type(self).__name__} runs a loop of its own, in which this asynchronous client cannot be used",
                fix="pass a redis.Redis, or url=",
            )
        self._own_portal = portal is None
        self._portal = portal or Portal("livetape-events")
        # One bus per process: what a fork inherited is kept, so that nothing closes the parent's connections.
        self._buses: dict[int, EventBus[M]] = {}
        self._inherited: list[Portal] = []

    @property
    def state(self) -> CircuitState:
        """As `EventBus.state`; `closed`, which is the good one, before the first use in this process."""
        bus = self._buses.get(self._portal.generation)
        return CircuitState.CLOSED if bus is None else bus.state

    def publish_event(self, event: M, channel_key: Key) -> Published:
        """Publish an event; never raises (a key with `*` is a failure too)."""
        return self._call(self._events().publish(event, channel_key))

    def listen_events(self, channel_key: Key) -> Generator[M | CommunicationErrorEvent, None, None]:
        """The events of a key, for ever; `*` is a wildcard. Subscribed when this returns.

        Closing the result, also from another thread, ends it.
        """
        return self._listen(channel_key)

    def wait_for_event(self, channel_key: Key, timeout: float | None = None) -> M | CommunicationErrorEvent | None:
        """The next event of this key, None after `timeout` seconds without one."""
        return self._call(self._events().wait_for(channel_key, timeout))

    def flush(self, timeout: float | None = None) -> int:
        """Send what waits locally, for at most `timeout` seconds; returns how many events still wait."""
        return self._call(self._events().flush(timeout))

    def close(self) -> None:
        """End the listeners, close what was opened for them, and end the thread. The object can be used again."""
        bus = self._buses.pop(self._portal.generation, None)
        if bus is not None:
            self._call(bus.close())
        if self._own_portal:
            self._portal.close()
            if self._portal.is_inherited:
                self._inherited.append(self._portal)
            self._portal = Portal("livetape-events")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _events(self) -> EventBus[M]:
        bus = self._buses.get(self._portal.generation)
        if bus is None:
            # atomic: of two threads that come first, both get the same
            bus = self._buses.setdefault(self._portal.generation, self._make())
        return bus

    def _listen(self, key: Key, skip_types: frozenset[str] = frozenset()) -> SyncIterator[M | CommunicationErrorEvent]:
        listener = self._events().listen(key, skip_types=skip_types)
        self._call(listener.ready())
        return SyncIterator(self._portal, listener)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._portal.call(work)


class AsyncRedisNotificationEventBus(AsyncRedisEventBus[NotificationEvent]):
    """Notifications on `notification_event/{user_id}`."""

    Model: ClassVar[Any] = NotificationEvent

    @property
    def event_bus_name(self) -> str:
        return self._name or NOTIFICATION_BUS

    async def publish(self, event: NotificationEvent) -> Published:
        """To every listener of the event's user; never raises."""
        return await self.publish_event(event, (event.user_id,))

    def listen(self, user_id: str = "*") -> AsyncGenerator[NotificationEvent | CommunicationErrorEvent, None]:
        """The notifications of one user, or of all."""
        return self.listen_events((user_id,))


class RedisNotificationEventBus(RedisEventBus[NotificationEvent]):
    """`AsyncRedisNotificationEventBus` for synchronous code."""

    Model: ClassVar[Any] = NotificationEvent

    @property
    def event_bus_name(self) -> str:
        return self._name or NOTIFICATION_BUS

    def publish(self, event: NotificationEvent) -> Published:
        """To every listener of the event's user; never raises."""
        return self.publish_event(event, (event.user_id,))

    def listen(self, user_id: str = "*") -> Generator[NotificationEvent | CommunicationErrorEvent, None, None]:
        """The notifications of one user, or of all."""
        return self.listen_events((user_id,))


class AsyncRedisExecutionEventBus(AsyncRedisEventBus[AnyExecutionEvent]):
    """Events of executions on `execution_event/{user_id}/{graph_id}/{graph_exec_id}`."""

    Model: ClassVar[Any] = ExecutionEvent

    @property
    def event_bus_name(self) -> str:
        return self._name or EXECUTION_BUS

    async def publish(self, event: Execution) -> Published:
        """On the channel of its execution; never raises. A state is published as the event that it is the news of."""
        try:
            made = execution_event(event)
            key = execution_key(made)
        except Exception as error:
            return self.events.failed(error)
        return await self.publish_event(made, key)

    def listen(
        self, user_id: str, graph_id: str = "*", graph_exec_id: str = "*", *, outputs: Outputs = None
    ) -> AsyncGenerator[AnyExecutionEvent, None]:
        """The events of one execution, or of all that match. Single outputs of nodes only with `outputs="each"`."""
        return self._listener((user_id, graph_id, graph_exec_id), _WITHOUT_OUTPUTS if outputs is None else frozenset())


class RedisExecutionEventBus(RedisEventBus[AnyExecutionEvent]):
    """`AsyncRedisExecutionEventBus` for synchronous code."""

    Model: ClassVar[Any] = ExecutionEvent

    @property
    def event_bus_name(self) -> str:
        return self._name or EXECUTION_BUS

    def publish(self, event: Execution) -> Published:
        """On the channel of its execution; never raises. A state is published as the event that it is the news of."""
        try:
            made = execution_event(event)
            key = execution_key(made)
        except Exception as error:
            return self._events().failed(error)
        return self.publish_event(made, key)

    def listen(
        self, user_id: str, graph_id: str = "*", graph_exec_id: str = "*", *, outputs: Outputs = None
    ) -> Generator[AnyExecutionEvent, None, None]:
        """The events of one execution, or of all that match. Single outputs of nodes only with `outputs="each"`."""
        return self._listen((user_id, graph_id, graph_exec_id), _WITHOUT_OUTPUTS if outputs is None else frozenset())


def execution_event(event: Execution) -> AnyExecutionEvent:
    """The event itself, or the one that announces this state. Inputs and outputs that are missing become empty."""
    if isinstance(event, GraphExecutionMeta):
        fields = {name: getattr(event, name) for name in type(event).model_fields}
        for name in ("inputs", "outputs"):
            if fields.get(name) is None:
                fields[name] = {}
        return GraphExecutionEvent.model_validate(fields)
    if isinstance(event, NodeExecutionResult):
        return NodeExecutionEvent.model_validate({name: getattr(event, name) for name in type(event).model_fields})
    return event


def execution_key(event: AnyExecutionEvent) -> tuple[str, ...]:
    """The key of the execution that the event belongs to."""
    if isinstance(event, GraphExecutionEvent):
        return (event.user_id, event.graph_id, event.id)
    if isinstance(event, CommunicationErrorEvent):
        return event.key
    return (event.user_id, event.graph_id, event.graph_exec_id)
