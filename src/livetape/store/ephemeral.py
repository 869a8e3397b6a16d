"""The Ephemeral port: small values that all processes share and that go away by themselves: tickets, counters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

MAX_VALUE_BYTES: Final = 64 * 1024


class Ephemeral(ABC):
    """Values of bytes under keys, each with a time to live. Nothing here may be the only copy of anything.

    Each method is one atomic step for all processes. Keys are 1 to 500 characters, values at most 64 KiB, a time to
    live is more than 0 seconds. Safe for concurrent use by tasks of one event loop.

    Every method raises:
        StoreUnavailableError: the store cannot be reached; nothing is known about a change.
        ValueError: a key, value or time outside of these limits.
    """

    @abstractmethod
    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Set it, whatever was there; its time to live begins anew."""

    @abstractmethod
    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Set it only if nothing is there. Of concurrent callers exactly one gets True."""

    @abstractmethod
    async def get(self, key: str) -> bytes | None:
        """What is there; None when nothing is, or not any more."""

    async def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """`get` of each of these, not in one step."""
        return [await self.get(key) for key in keys]

    @abstractmethod
    async def take(self, key: str) -> bytes | None:
        """What is there, and remove it. Of concurrent callers exactly one gets it."""

    @abstractmethod
    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        """Add to a counter and return its new value. A new counter begins at 0; its time to live is not prolonged."""

    @abstractmethod
    async def close(self) -> None:
        """Idempotent."""


def check(key: str, value: bytes = b"", ttl_s: float = 1.0) -> None:
    """The limits of the port. Raises ValueError."""
    if not 1 <= len(key) <= 500:
        raise ValueError(f"a key has 1 to 500 characters, not {len(key)}")
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {MAX_VALUE_BYTES} bytes, not {len(value)}")
    if not 0 < ttl_s < 10 * 365 * 86400:
        raise ValueError(f"a time to live is more than 0 and less than ten years, not {ttl_s} s")
