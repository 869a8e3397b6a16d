"""The EventLog port: durable, numbered events, one tape per execution, graph or job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, Self, TypeAlias

from livetape.errors import PositionLostError

PutResult: TypeAlias = Literal["stored", "duplicate"]

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MAX_READ: Final = 1000
"""The most entries that one `read` returns."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place on a tape: after the event with this offset. Offset 0 is before the first event.

    The epoch is born with the tape; positions of different epochs cannot be compared.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `<epoch>-<offset>`.

        Raises:
            PositionLostError: not of this form.
        """
        epoch, dash, digits = text.rpartition("-")
        if not dash or not epoch or not digits.isascii() or not digits.isdigit() or len(digits) > 19:
            raise PositionLostError("a position is <epoch>-<offset>", position=text[:100])
        return cls(epoch, int(digits))


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append: its JSON, its name, and whether nothing follows it on this tape.

    `at_us`: when it happened, for `put` of an older event (microseconds since 1970); None: now.
    """

    event_type: str
    payload: bytes
    final: bool = False
    at_us: int | None = None


class Entry(NamedTuple):
    """An event on a tape. `payload` is the event's JSON exactly as it was appended.

    `at_us` is when it was appended, in microseconds since 1970 (UTC), as well as the log knows.
    """

    offset: int
    event_type: str
    payload: bytes
    final: bool
    at_us: int

    @property
    def time(self) -> datetime:
        """`at_us` as a date, in UTC."""
        return _UNIX_EPOCH + timedelta(microseconds=self.at_us)


@dataclass(frozen=True, slots=True)
class Tape:
    """What is known of a tape.

    `owner` is a user id, None for a tape without an owner. `channel` is where its events are published live (a
    pattern for a graph's tape). `offset` is that of the newest event, 0 when there is none. `first_offset` is that
    of the oldest event that can still be read. `final`: its last event has been written.

    `mixed`: somebody else writes to it too (a plain Redis client, for instance). Its offsets rise but not by one, and
    are larger than JSON numbers carry exactly; a hole cannot be told from none.
    """

    name: str
    owner: str | None
    graph_id: str | None
    channel: str
    epoch: str
    offset: int
    first_offset: int
    final: bool
    mixed: bool = False

    @property
    def position(self) -> Position:
        """The newest position."""
        return Position(self.epoch, self.offset)


class EventLog(ABC):
    """Durable ordered events per tape. Safe for concurrent use by tasks of one event loop.

    Offsets of a tape are 1, 2, 3 … without gap. What `append` or `put` has acknowledged survives the death of the
    process. One tape has one numbering authority for life: either `append` allots, or somebody else does and `put`
    copies.
    """

    @abstractmethod
    async def create(
        self,
        tape: str,
        *,
        owner: str | None,
        channel: str,
        graph_id: str | None = None,
        epoch: str | None = None,
    ) -> Tape:
        """Make the tape with its metadata, or return what is there: the first writer wins.

        A tape that exists without an owner (because events came before its metadata) gets this one.
        """

    @abstractmethod
    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        """Add one event at the end and return its position, after it is durable.

        Concurrent calls get different, consecutive offsets. The same `idempotency_key` (per tape) returns the first
        call's position and adds nothing. A tape that does not exist is made, without owner.

        Raises:
            LogUnavailableError: nothing is known about whether it was written; retry with an idempotency key.
        """

    @abstractmethod
    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        """Copy an event with the offset that another authority gave it.

        Returns "duplicate" when this offset is there already (the copy is not compared).

        Raises:
            NotFoundError: the tape does not exist.
            PositionLostError: the tape has another epoch.
            TapeHoleError: an earlier offset is missing; context `missing_from` names the first.
        """

    @abstractmethod
    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        """The next entries after this offset, in order, at most `limit` (and never more than `MAX_READ`).

        An absent tape reads as empty. Entries that were trimmed are simply not there: compare with
        `Tape.first_offset`.

        Raises:
            PositionLostError: `epoch` is given, and the tape has another or is absent.
        """

    @abstractmethod
    async def describe(self, tape: str) -> Tape | None:
        """Its metadata, or None when there is no such tape."""

    @abstractmethod
    def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        """Names of the tapes that begin so, each once, in no order; perhaps without those made or lost meanwhile."""

    @abstractmethod
    async def trim(self, tape: str, *, keep_after: int) -> int:
        """Forget entries with an offset up to and including `keep_after`; returns how many. Offsets go on."""

    @abstractmethod
    async def offset_at(self, tape: str, time: datetime) -> int:
        """The offset of the newest event that was there at this time, for `trim` by age; 0 when none is known.

        Perhaps that of an event some seconds older, where an adapter remembers times coarsely; never of one that was
        appended later.
        """

    @abstractmethod
    async def close(self) -> None:
        """Idempotent."""
