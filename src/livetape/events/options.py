"""What an event bus is given, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, TypedDict

from livetape.clock import Clock
from livetape.events.bus import Bus
from livetape.events.delivery import DeliveryPolicy, OnDrop, Sleep
from livetape.events.log import Position
from livetape.events.open import Backend
from livetape.observability import Metrics

Key: TypeAlias = str | tuple[str, ...]
"""Levels divided by `/`, or a tuple of levels, each of which may hold any character but control characters."""
OnError: TypeAlias = Literal["count", "raise"]
Start: TypeAlias = Position | Literal["earliest"] | None


class Options(TypedDict, total=False):
    """What an `EventBus` takes beside its model, name and codec. Times are seconds, sizes bytes.

    `clock`, `sleep` and `jitter` (a number from 0 to 1) are for tests. `on_drop` is told of every event that is given
    up, `on_gap` gets the channel when a listener may have missed events (empty: any).
    """

    url: str | None
    bus: Bus | None
    backend: Backend | None
    client: object | None
    on_error: OnError
    durable: bool
    max_message_bytes: int
    policy: DeliveryPolicy | None
    metrics: Metrics | None
    clock: Clock | None
    sleep: Sleep
    jitter: Callable[[], float]
    on_drop: OnDrop | None
    on_gap: Callable[[str], None] | None


class Stats(NamedTuple):
    """Counts since the beginning, and what waits now (`buffered`)."""

    failed: int
    dropped: int
    buffered: int
