"""How this adapter speaks to Redis: commands in, replies out, over whatever connection there is."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeAlias

Word: TypeAlias = bytes | str | int | float


class RedisLinkError(Exception):
    """The server cannot be reached, or the link broke before the answer came.

    `sent` says whether the command may have been carried out: False when it certainly was not.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class LoginRefusedError(RedisLinkError):
    """The server is there and does not let us in; trying again soon is of no use."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class RedisReplyError(Exception):
    """The server refused a command: `code` is the first word of its answer (`OOM`, `READONLY`, `NOSCRIPT`, `ERR` …)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.partition(" ")[0]


class Commands(Protocol):
    """Sends commands. Replies are RESP3 or RESP2 values with `bytes` for strings.

    Commands that were sent one after the other, with the same `key`, are carried out in that order; they need not
    wait for each other.
    """

    def send(self, words: Sequence[Word], key: str = "") -> Awaitable[Any]:
        """Hand over one command; the awaitable gives its reply. In a cluster it goes to the node that serves `key`.

        Raises, when awaited:
            RedisLinkError: no answer.
            RedisReplyError: the server's refusal.
        """
        ...

    async def masters(self) -> Sequence[Commands]:
        """One for each server that holds a part of the keys: only this one itself when it is no cluster.

        Raises:
            RedisLinkError: the servers of the cluster are not known.
        """
        ...

    async def close(self) -> None:
        """Idempotent. What still waits for an answer gets a RedisLinkError."""
        ...
