"""What a socket asks of who may send past its transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Ways(Protocol):
    """Who may send past a transport (`Sender`), and so must know when there is none any more."""

    def open(self, transport: asyncio.Transport) -> Callable[[bytes], object]:
        """What everything that is written to the transport goes through from here on."""

    def cut(self, writer: Callable[[bytes], object]) -> None:
        """It does nothing more when this returns: its descriptor is about to be somebody else's. Idempotent."""
