"""The ConsumerGroups port: several workers share the events of a tape, each event to one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

from livetape.errors import ChannelError
from livetape.events.log import MAX_READ, Entry

MAX_NAME_CHARS: Final = 200


class Delivered(NamedTuple):
    """An entry that was handed to a consumer. `deliveries` counts how often this entry was, this time included."""

    entry: Entry
    deliveries: int


class Pending(NamedTuple):
    """An entry that somebody took and has not acknowledged. `idle_s` is how long ago it was handed over, in seconds."""

    offset: int
    consumer: str
    idle_s: float
    deliveries: int


class ConsumerGroups(ABC):
    """Work shared among the consumers of a group: at least once, in order of hand-over. Groups outlive the process.

    Names of groups and consumers are 1 to 200 characters, any that Unicode has; every method raises ChannelError for
    others, whether or not there is such a group (see `check_names`). Safe for concurrent use by tasks of one event
    loop.
    """

    @abstractmethod
    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        """Make the group; it begins after this offset. False when it is there already (nothing changes).

        The tape need not exist yet.
        """

    @abstractmethod
    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        """The next entries that nobody of the group was given, in order, at most `limit` (and `MAX_READ`).

        Waits up to `wait_s` seconds for the first. They are pending until `ack`.

        Raises:
            NotFoundError: there is no such group.
        """

    @abstractmethod
    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        """These are done; returns how many were pending. Unknown ones are ignored."""

    @abstractmethod
    async def claim(
        self, tape: str, group: str, consumer: str, *, idle_s: float, limit: int = 100
    ) -> Sequence[Delivered]:
        """Take over entries that were handed to anybody at least `idle_s` seconds ago and are still pending.

        In order, at most `limit`. Entries that were trimmed meanwhile are dropped from the pending ones.

        Raises:
            NotFoundError: there is no such group.
        """

    @abstractmethod
    async def pending(self, tape: str, group: str, *, limit: int = MAX_READ) -> Sequence[Pending]:
        """What is pending, by rising offset. Empty when there is no such group."""

    @abstractmethod
    async def drop(self, tape: str, group: str) -> bool:
        """Forget the group; False when there was none."""


def check_names(*names: str) -> None:
    """What every adapter asks of the names of groups and consumers that it is given.

    Raises:
        ChannelError: empty, longer than 200 characters, or with half a character (a lone surrogate).
    """
    for name in names:
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            raise ChannelError(f"the name of a group or consumer has 1 to {MAX_NAME_CHARS} characters, not {len(name)}")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ChannelError("the name of a group or consumer has half a character", name=ascii(name)) from None
