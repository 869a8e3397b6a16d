"""What an error of PostgreSQL, or of the way to it, means for the transaction in which it came."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Final

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError


class Fate(Enum):
    """What to do with a unit whose transaction was not committed."""

    AGAIN = auto()
    """Another transaction was in the way. Run it again."""

    TAKEN = auto()
    """A row with this key is there. Run it again, so that it sees the row; after some times it is the unit's fault."""

    AWAY = auto()
    """The server, or the way to it, is gone or about to go, or it takes no writes just now. Try again for a while."""

    BUSY = auto()
    """The server is there and cannot now (time limits, disk, memory, all connections in use)."""

    LOCKED = auto()
    """Somebody else held a lock for too long."""

    REFUSED = auto()
    """It will fail again."""


READ_ONLY: Final = "25006"

_STATES: Final = {
    "40001": Fate.AGAIN,  # serialization failure
    "40P01": Fate.AGAIN,  # deadlock
    "23505": Fate.TAKEN,  # unique violation
    READ_ONLY: Fate.AWAY,  # a server that takes no writes: a standby that was, or is about to be, the primary
    "25P03": Fate.AWAY,  # idle in transaction for too long: the session was ended
    "57P01": Fate.AWAY,
    "57P02": Fate.AWAY,
    "57P03": Fate.AWAY,  # starting up, shutting down
    "57P05": Fate.AWAY,
    "53300": Fate.AWAY,  # too many connections: after a restart everybody comes at once
    "57014": Fate.BUSY,  # statement time-out
    "55P03": Fate.LOCKED,
    "58030": Fate.BUSY,  # input or output failed
}
_CLASSES: Final = {"08": Fate.AWAY, "53": Fate.BUSY, "40": Fate.AGAIN}


def state_of(error: BaseException) -> str | None:
    """The five characters of SQL that name the error; None when the server did not name one."""
    original = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return state if isinstance(state, str) else None


def fate_of(error: BaseException) -> Fate | None:
    """None: not an error of the database at all, but of the unit."""
    state = state_of(error)
    if state is not None:
        return _STATES.get(state) or _CLASSES.get(state[:2]) or Fate.REFUSED
    if isinstance(error, DBAPIError):
        return Fate.AWAY if error.connection_invalidated or _is_of_the_way(error.orig) else Fate.REFUSED
    if isinstance(error, PoolTimeoutError):
        return Fate.BUSY
    return Fate.AWAY if _is_of_the_way(error) else None


def _is_of_the_way(error: BaseException | None) -> bool:
    """A connection that cannot be made or used, seen from this side."""
    while error is not None:
        if isinstance(error, OSError | TimeoutError | asyncio.IncompleteReadError):
            return True
        if isinstance(error, asyncpg.InterfaceError | asyncpg.PostgresConnectionError) and "clos" in str(error).lower():
            return True
        # The driver lost count of what the server says. So it does in the moment between the server's word that it
        # ends the session and the end itself.
        if isinstance(error, asyncpg.InternalClientError):
            return True
        error = error.__cause__
    return False
