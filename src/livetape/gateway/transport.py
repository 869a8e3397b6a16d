"""The Transport port: one client's connection, whatever carries it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from livetape.auth import ConnectionFacts
from livetape.gateway.messages import Push


class TransportClosedError(Exception):
    """The other end is gone."""


class Transport(ABC):
    """A WebSocket as the gateway needs it. Owned by one connection: one task reads, one writes.

    First either `reject` or `accept`. Everything but `facts` raises `TransportClosedError` when the client is gone.
    """

    @property
    @abstractmethod
    def facts(self) -> ConnectionFacts:
        """What is known of the caller."""

    @abstractmethod
    async def reject(self, status: int, text: str) -> None:
        """Refuse the handshake with this HTTP status."""

    @abstractmethod
    async def accept(self) -> None:
        """Complete the handshake."""

    @abstractmethod
    async def receive(self) -> str | bytes:
        """The next message."""

    @abstractmethod
    async def write(self, pushes: Sequence[Push]) -> None:
        """Send these, each as one message, in order. Returns when there is room for more."""

    @abstractmethod
    async def close(self, code: int, reason: str) -> None:
        """Close with this code after what was written."""
