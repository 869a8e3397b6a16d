"""Tickets: a socket is opened with one instead of a token, because an address ends up in logs and histories."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from livetape.auth import Principal
from livetape.clock import Clock, SystemClock
from livetape.errors import RateLimitedError, TokenExpiredError, UnauthenticatedError
from livetape.store.ephemeral import Ephemeral

TICKET_SECONDS: Final = 30.0
MAX_TICKETS: Final = 100
TICKET_BYTES: Final = 32
MAX_TICKET_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Ticket:
    """`text` opens one socket, once, until `expires_at`. It is a secret for as long."""

    text: str = field(repr=False)
    expires_at: datetime


class Tickets:
    """Exchanges a principal for a ticket and back. The ephemeral store keeps the principal under the ticket's hash:
    who reads the store has no ticket.

    A ticket is taken by exactly one of those who come with it, in whichever process. When the store cannot be asked,
    nobody gets in by a ticket. Safe for concurrent use by tasks of one event loop.
    """

    def __init__(
        self,
        ephemeral: Ephemeral,
        *,
        clock: Clock | None = None,
        ttl_seconds: float = TICKET_SECONDS,
        max_per_user: int | None = MAX_TICKETS,
    ) -> None:
        """`max_per_user`: of one user within `ttl_seconds`; None with authentication off, where all are one user."""
        self._ephemeral = ephemeral
        self._clock = clock or SystemClock()
        self._ttl = ttl_seconds
        self._max_per_user = max_per_user

    async def issue(self, principal: Principal) -> Ticket:
        """A ticket with all the rights of this principal, and no more.

        Raises:
            RateLimitedError: this user has had too many just now; context `retry_after` is in seconds.
            StoreUnavailableError: the store cannot be reached.
        """
        if self._max_per_user is not None:
            count = await self._ephemeral.incr(f"tickets:{_digest(principal.user_id)}", ttl_s=self._ttl)
            if count > self._max_per_user:
                text = f"At most {self._max_per_user} tickets in {self._ttl:g} seconds"
                raise RateLimitedError(text, retry_after=self._ttl)
        text = secrets.token_urlsafe(TICKET_BYTES)
        expires_at = self._clock.now() + timedelta(seconds=self._ttl)
        await self._ephemeral.put(_name(text), _Held.of(principal).encode(), ttl_s=self._ttl)
        return Ticket(text, expires_at)

    async def redeem(self, text: str) -> Principal:
        """Whom the ticket was given to. It is used up then.

        Whether the token behind it was revoked meanwhile is for the caller to check.

        Raises:
            UnauthenticatedError: no such ticket, or not any more (reason "invalid").
            TokenExpiredError: the token that it was given for has expired meanwhile.
            StoreUnavailableError: the store cannot be reached; nothing is known about the ticket.
        """
        data = await self._ephemeral.take(_name(text)) if len(text) <= MAX_TICKET_CHARS else None
        if data is None:
            raise UnauthenticatedError("Invalid ticket: it was used, has expired, or is none", reason="invalid")
        try:
            principal = _Held.model_validate_json(data).principal()
        except ValidationError:
            raise UnauthenticatedError("Invalid ticket: it cannot be read", reason="invalid") from None
        if principal.expires_at is not None and principal.expires_at <= self._clock.now():
            raise TokenExpiredError(reason="expired")
        return principal


class _Held(BaseModel):
    """A principal as it waits in the store. A field that is not known makes it invalid: it may be a limit."""

    model_config = ConfigDict(extra="forbid")

    user_id: str
    role: str
    expires_at: float | None
    token_id: str | None
    issued_at: float | None
    scopes: tuple[str, ...] | None
    shares: tuple[str, ...]

    @classmethod
    def of(cls, principal: Principal) -> Self:
        return cls(
            user_id=principal.user_id,
            role=principal.role,
            expires_at=_seconds(principal.expires_at),
            token_id=principal.token_id,
            issued_at=_seconds(principal.issued_at),
            scopes=None if principal.scopes is None else tuple(sorted(principal.scopes)),
            shares=tuple(sorted(principal.shares)),
        )

    def encode(self) -> bytes:
        return self.model_dump_json().encode()

    def principal(self) -> Principal:
        return Principal(
            self.user_id,
            self.role,
            expires_at=_moment(self.expires_at),
            token_id=self.token_id,
            issued_at=_moment(self.issued_at),
            scopes=None if self.scopes is None else frozenset(self.scopes),
            shares=frozenset(self.shares),
        )


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _name(text: str) -> str:
    return f"ticket:{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
