"""What a failed command means for the log. Pure."""

from __future__ import annotations

from typing import Final

from livetape.adapters.redis.commands import LoginRefusedError, RedisLinkError, RedisReplyError
from livetape.errors import LogError, LogUnavailableError

# The server may take the same command later: it starts, it is full, it follows another, its cluster changes.
PASSING: Final = frozenset(
    {
        "LOADING",
        "OOM",
        "READONLY",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "BUSY",
        "MISCONF",
        "NOREPLICAS",
        "NOSCRIPT",
        "MOVED",
        "ASK",
        "UNBLOCKED",
    }
)


def passes(error: BaseException) -> bool:
    """Whether the same command may succeed a little later."""
    if isinstance(error, RedisLinkError):
        return not isinstance(error, LoginRefusedError)
    return isinstance(error, RedisReplyError) and error.code in PASSING


def as_log_error(error: BaseException) -> LogError:
    """The error of the port for an error of the driver."""
    if isinstance(error, LogError):
        return error
    if isinstance(error, RedisReplyError) and passes(error):
        return LogUnavailableError(f"the event log refused it: {error}", refused=error.code)
    if passes(error):
        return LogUnavailableError(f"the event log cannot be used: {error}")
    return LogError(f"the event log failed: {error}")
