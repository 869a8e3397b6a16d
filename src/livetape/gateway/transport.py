"""The Transport port: one client's WebSocket, whatever carries it. Nothing here waits for the client to read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from livetape.auth import ConnectionFacts
from livetape.gateway.messages import Push

EXTENSION: Final = "livetape.transport"
"""Under this name in `scope["extensions"]` a server offers a transport of its own."""

CUT: Final = "livetape.cut"
"""Under this name a server offers to end the connection of an HTTP request at once, whatever waits on it."""


class TransportClosedError(Exception):
    """The other end is gone."""


class Receiver(Protocol):
    """Whom an accepted transport tells what happens, in the thread of the event loop. None of these may raise."""

    def received(self, data: str | bytes) -> None:
        """A whole message of the client, text or bytes. Not called after `pause` until `resume`."""

    def congested(self) -> None:
        """What is sent does not leave quickly enough. From here on the sender should keep it back."""

    def drained(self) -> None:
        """The twin of `congested`: there is room again."""

    def ponged(self) -> None:
        """The newest ping was answered: what was sent before it has arrived. Only where `Transport.ping` asks."""

    def lost(self, *, clean: bool, left: bool = False) -> None:
        """The socket is gone; nothing else is called after this. Exactly once.

        `clean`: both sides have said goodbye, so everything that was sent before has arrived. `left`: the client has
        closed it by itself, and meant it (1000, or 1001: its page is gone).
        """


LEAVING_CODES: Final = frozenset({1000, 1001})
"""With these a client says that it does not mean to come back."""


class Transport(ABC):
    """A WebSocket as the gateway needs it. First either `reject` or `accept`; then `run`.

    What is sent leaves in order, one message of the client's protocol for each part of a push, never within another
    message and never after a close. Sending to a client that is gone does nothing; `lost` has been or will be called.
    """

    __slots__ = ()  # those that have them are small

    @property
    @abstractmethod
    def facts(self) -> ConnectionFacts:
        """What is known of the caller."""

    @abstractmethod
    async def reject(self, status: int, text: str) -> None:
        """Refuse the handshake with this HTTP status.

        Raises:
            TransportClosedError: the client has gone.
        """

    @abstractmethod
    async def accept(self, receiver: Receiver) -> None:
        """Complete the handshake. `receiver` is told from here on, `lost` included; but nothing before this returns.

        Raises:
            TransportClosedError: the client has gone; the receiver is told nothing.
        """

    @abstractmethod
    async def run(self) -> None:
        """Move bytes until the socket is gone. Returns at once where the server does so by itself."""

    @abstractmethod
    def send(self, push: Push) -> None:
        """Hand over. Buffers without limit while congested: the sender keeps to what `Receiver.congested` says."""

    @property
    def writer(self) -> Callable[[bytes], object] | None:
        """Takes frames (`Push.frame`) straight to the client, as `send` does but without a look at anything.

        None: there is no such way, or not now. It holds from `accept` or `Receiver.drained` until
        `Receiver.congested`, which a transport with such a way calls before anything else is to leave no more: its own
        close frame, and the answer to the client's.
        """
        return None

    @abstractmethod
    def pause(self) -> None:
        """Read no more messages of the client for now. Idempotent."""

    @abstractmethod
    def resume(self) -> None:
        """The twin of `pause`. Idempotent."""

    @abstractmethod
    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        """Close with this code after what was sent, or (`drop`) without what has not left yet. Returns at once.

        A client that has not taken it all and answered after `within` seconds is cut off.
        """

    @property
    @abstractmethod
    def heard_at(self) -> float | None:
        """When anything of the client last arrived, by the loop's clock. None: this transport does not know, and its
        server looks for dead sockets by itself (pings, and the close of whoever does not answer)."""

    @abstractmethod
    def ping(self) -> None:
        """Ask for a sign of life, which moves `heard_at`. Does nothing where the server does that by itself."""
