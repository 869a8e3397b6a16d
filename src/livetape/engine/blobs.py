"""The Blobs port: values that are too large for a row or an event, each in a place of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Place(NamedTuple):
    """Whose blob it is: the user and the execution. Nobody gets it under another."""

    owner: str
    execution_id: str


@dataclass(frozen=True, slots=True)
class Blob:
    """What is known of one: the SHA-256 of its content in 64 hexadecimal digits, its size in bytes, and when it was
    put there last (UTC)."""

    sha256: str
    size: int
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class Shelf:
    """All blobs of one execution. `name` is what the store knows it by."""

    execution_id: str
    name: str
    blobs: Sequence[Blob]


class Blobs(ABC):
    """Bytes under their own hash, for each execution apart. Safe for any number of processes at once.

    What `put` and `share` have returned from is durable and whole; what they were interrupted in is not there.

    Every method raises:
        BlobUnavailableError: the store cannot be read or written now.
    """

    @abstractmethod
    async def put(self, place: Place, content: bytes) -> str:
        """Keep it; returns its SHA-256. Putting it again begins its age anew, and is harmless."""

    @abstractmethod
    async def get(self, place: Place, sha256: str) -> bytes:
        """What was put.

        Raises:
            NotFoundError: there is nothing under this hash, in this place.
            BlobError: it is not what was put: the store is damaged.
        """

    @abstractmethod
    async def share(self, source: Place, target: Place, sha256s: Collection[str]) -> None:
        """Put these of one place into another as well. Raises NotFoundError when one is not there."""

    @abstractmethod
    async def sizes(self, place: Place) -> dict[str, int]:
        """The bytes of every blob in a place, by its hash."""

    @abstractmethod
    async def delete(self, place: Place) -> None:
        """Take away everything in a place. Idempotent."""

    @abstractmethod
    def shelves(self) -> AsyncIterator[Shelf]:
        """All places, as far as they are there during the whole call."""

    @abstractmethod
    async def clear(self, shelf: Shelf, sha256s: Collection[str]) -> None:
        """Take these away. Those that are gone already are no error."""
