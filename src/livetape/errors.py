"""Every exception that livetape raises, in one tree.

    LivetapeError
    ├─ ConfigError                    refused before anything starts
    ├─ ClosedError                    used after close()
    ├─ BusError
    │  ├─ BusUnavailableError *
    │  ├─ CodecError                  bytes that are not an envelope, an event that cannot be encoded
    │  │  └─ DecryptionError          the key is missing or wrong, or the text was changed
    │  └─ ChannelError                a channel or key that may not be used this way
    ├─ LogError
    │  ├─ LogUnavailableError *
    │  ├─ PositionLostError           trimmed, or the epoch changed: start again from the state
    │  └─ TapeHoleError               a copy would leave a hole
    ├─ StoreError
    │  ├─ StoreUnavailableError *
    │  │  └─ CommitUnknownError       the connection broke at the commit: read before trying again
    │  ├─ LockTimeoutError *
    │  ├─ NotFoundError
    │  ├─ ConflictError               the state is not the one the command needs
    │  └─ LeaseLostError              somebody else owns the execution now
    ├─ BlobError
    │  └─ BlobUnavailableError *
    ├─ QueueError
    │  └─ QueueUnavailableError *
    ├─ AuthError
    │  ├─ UnauthenticatedError
    │  │  └─ TokenExpiredError
    │  └─ NotAuthorizedError
    ├─ LimitError
    │  └─ RateLimitedError *
    └─ GraphError
       ├─ GraphValidationError        with node_errors: {node_id: {field: message}}
       ├─ UnknownBlockError
       └─ BlockError
          ├─ BlockInputError
          └─ BlockExecutionError
    (* retryable)

The class docstring is the default message. `code` is stable and documented; `context` holds plain values for
logs and error bodies, never secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class LivetapeError(Exception):
    """Something in livetape failed."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, /, **context: object) -> None:
        self.message = message or (type(self).__doc__ or "").strip().partition("\n")[0]
        self.context = context
        super().__init__(self.message)


class ConfigError(LivetapeError):
    """The configuration cannot work."""

    code = "config"

    def __init__(
        self,
        message: str | None = None,
        /,
        *,
        because: str | None = None,
        set_by: str | None = None,
        fix: str | None = None,
        **context: object,
    ) -> None:
        super().__init__(message, **context)
        self.because = because
        self.set_by = set_by
        self.fix = fix


class ClosedError(LivetapeError):
    """Used after it was closed."""

    code = "closed"


class BusError(LivetapeError):
    """The event bus failed."""

    code = "bus"


class BusUnavailableError(BusError):
    """The event bus cannot be reached."""

    code = "bus_unavailable"
    retryable = True


class CodecError(BusError):
    """These bytes are not an event envelope."""

    code = "codec"


class DecryptionError(CodecError):
    """This event cannot be decrypted: its key is missing or wrong, or it was changed on the way."""

    code = "decryption"


class ChannelError(BusError):
    """This channel name or key may not be used here."""

    code = "channel"


class LogError(LivetapeError):
    """The event log failed."""

    code = "log"


class LogUnavailableError(LogError):
    """The event log cannot be reached."""

    code = "log_unavailable"
    retryable = True


class PositionLostError(LogError):
    """The position cannot be read any more: it was trimmed, or the tape has a new epoch."""

    code = "position_lost"


class TapeHoleError(LogError):
    """The copy would leave a hole in the tape."""

    code = "tape_hole"


class StoreError(LivetapeError):
    """The database failed."""

    code = "store"


class StoreUnavailableError(StoreError):
    """The database cannot be reached."""

    code = "store_unavailable"
    retryable = True


class CommitUnknownError(StoreUnavailableError):
    """The connection to the database broke at the commit: nobody knows whether it was written."""

    code = "commit_unknown"


class LockTimeoutError(StoreError):
    """Somebody else held the lock all the time."""

    code = "lock_timeout"
    retryable = True


class NotFoundError(StoreError):
    """Not found."""

    code = "not_found"


class ConflictError(StoreError):
    """The present state does not allow this."""

    code = "conflict"


class LeaseLostError(StoreError):
    """Another worker owns this execution now."""

    code = "lease_lost"


class BlobError(LivetapeError):
    """The store of large values failed."""

    code = "blob"


class BlobUnavailableError(BlobError):
    """The store of large values cannot be used."""

    code = "blob_unavailable"
    retryable = True


class QueueError(LivetapeError):
    """The queue failed."""

    code = "queue"


class QueueUnavailableError(QueueError):
    """The queue cannot be reached."""

    code = "queue_unavailable"
    retryable = True


class AuthError(LivetapeError):
    """Access was refused."""

    code = "auth"


class UnauthenticatedError(AuthError):
    """Authorization header is missing"""

    code = "unauthenticated"


class TokenExpiredError(UnauthenticatedError):
    """Token has expired"""

    code = "token_expired"


class NotAuthorizedError(AuthError):
    """Not allowed."""

    code = "not_authorized"


class LimitError(LivetapeError):
    """A limit was reached."""

    code = "limit"


class RateLimitedError(LimitError):
    """Too many requests."""

    code = "rate_limited"
    retryable = True


class GraphError(LivetapeError):
    """The graph cannot be used."""

    code = "graph"


class GraphValidationError(GraphError):
    """The graph is not valid."""

    code = "graph_validation"

    def __init__(
        self,
        message: str | None = None,
        /,
        *,
        node_errors: Mapping[str, Mapping[str, str]] | None = None,
        **context: object,
    ) -> None:
        super().__init__(message, **context)
        self.node_errors: dict[str, dict[str, str]] = {k: dict(v) for k, v in (node_errors or {}).items()}


class UnknownBlockError(GraphError):
    """No block with this id is installed."""

    code = "unknown_block"


class BlockError(GraphError):
    """A block failed."""

    code = "block"


class BlockInputError(BlockError):
    """The input does not fit the block."""

    code = "block_input"


class BlockExecutionError(BlockError):
    """The block said that it failed."""

    code = "block_execution"
