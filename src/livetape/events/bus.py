"""The Bus port: live publish/subscribe of bytes, at most once, no memory."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias


class BusMessage(NamedTuple):
    """What a subscription yields.

    `gap` is True on a marker without data: messages may have been lost just before it (the subscriber was too slow,
    or the link to the server was down). Its channel is empty when it may be about any of them. A subscriber of
    durable channels then reads the log from its position.
    """

    channel: str
    data: bytes
    gap: bool = False


Sink: TypeAlias = Callable[[Sequence[BusMessage]], None]
"""Takes messages and gap markers as they come, all that arrived together in one call, in order. It is called in the
loop's thread and neither waits nor raises."""


class ExpressSink(ABC):
    """A sink with a shorter way for single messages, which a bus may use and need not.

    It offers what came on a channel to the lane of that channel, before it makes a `BusMessage` of it; True when that
    has taken it. It must not while messages may be missing, nor when somebody else on this bus listens to the channel.
    Lanes are offered theirs before the sink is called with the rest of what came together, in order; so a lane takes
    only what it can tell to be the very next. Like the sink it neither waits nor raises.
    """

    lanes: Mapping[bytes, Callable[[bytes], bool]]
    """By channel, as UTF-8. What stands in it changes at any time."""

    @abstractmethod
    def __call__(self, messages: Sequence[BusMessage], taken: int = 0, /) -> None:
        """As `Sink`. `taken`: so many of what came together went by the lanes, perhaps all."""


class Subscription(ABC):
    """A listener on a changing set of channels and patterns, read by one task; others may `add` and `remove`.

    Guarantees: a message published after `add` returned is yielded, in the order of publication per channel, each
    once even when several patterns match; unless a `gap` marker says otherwise. Memory is bounded: a reader that
    falls behind loses the oldest messages and gets a gap marker in their place.
    """

    @abstractmethod
    async def add(self, *patterns: str) -> None:
        """Listen to these channels or patterns too. Returns when the bus will deliver them. Idempotent."""

    @abstractmethod
    async def remove(self, *patterns: str) -> None:
        """Stop listening to these. Messages already waiting may still be yielded. Unknown ones are ignored."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[BusMessage]: ...

    @abstractmethod
    async def close(self) -> None:
        """End the iteration. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Bus(ABC):
    """Carries bytes between the processes (or tasks) that watch and those that publish.

    Safe for concurrent use by tasks of one event loop.
    """

    @abstractmethod
    async def publish(self, channel: str, data: bytes) -> int:
        """Deliver to everyone who listens now; returns how many that were (0 is no error).

        Raises:
            ChannelError: a `*` in the channel.
            BusUnavailableError: the bus cannot be reached; nothing is known about delivery.
            BusError: it refuses for a reason that waiting does not cure, a wrong password for instance.
            ClosedError: after `close`.
        """

    async def publish_many(self, messages: Sequence[tuple[str, bytes]]) -> Sequence[int | BaseException]:
        """`publish` for each `(channel, data)`, in order, without waiting for one before the next is sent.

        One outcome for each: how many listened, or what `publish` would have raised. What is on its way when the call
        is cancelled may arrive.
        """
        return await asyncio.gather(
            *(self.publish(channel, data) for channel, data in messages), return_exceptions=True
        )

    @abstractmethod
    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        """A new, independent subscription that is already listening to `patterns`.

        With a `sink` nothing waits in between: messages are handed to it, and the subscription itself yields nothing
        and ends when it is closed. A sink that takes its time slows the bus down instead of losing messages.
        """

    @abstractmethod
    async def close(self) -> None:
        """End all subscriptions. Idempotent."""
