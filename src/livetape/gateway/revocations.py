"""Tokens that hold no longer, although they are genuine and their time is not over."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from livetape.auth import Principal
from livetape.clock import Clock, SystemClock
from livetape.errors import StoreUnavailableError, UnauthenticatedError
from livetape.events.answer_limit import AnswerLimit
from livetape.events.bus import Bus
from livetape.gateway.control import Control, TokensRevoked
from livetape.observability import Metrics, NoMetrics, get_logger
from livetape.store.ephemeral import Ephemeral

logger = get_logger(__name__)

LONGEST_TOKEN_SECONDS: Final = 400 * 86_400.0
CACHE_SECONDS: Final = 1.0
STORE_SECONDS: Final = 2.0
MAX_KNOWN: Final = 10_000
MARGIN_S: Final = 60.0
"""Clocks differ, and an expired token is taken for some seconds more: a revocation outlives its token by this."""

_TokenKey: TypeAlias = tuple[str, str | None, datetime | None]


class Revocations:
    """Remembers them in the ephemeral store, for all processes, and tells every gateway process over the bus.

    The store may forget (a Redis without persistence that starts again does): a token is then good again until its
    own end. Short-lived tokens are what bounds that.

    When the store cannot be asked, callers are let in (`gateway_revocation_failures_total` counts it): their tokens
    are genuine and not expired, and a store that is down must not lock out everybody. What this process has heard of
    stays refused, and who was let in for longer is looked up later (`settle`).

    Safe for concurrent use by tasks of one event loop.
    """

    def __init__(
        self,
        ephemeral: Ephemeral,
        bus: Bus,
        *,
        clock: Clock | None = None,
        longest_token_seconds: float = LONGEST_TOKEN_SECONDS,
        cache_seconds: float = CACHE_SECONDS,
        store_seconds: float = STORE_SECONDS,
        metrics: Metrics | None = None,
    ) -> None:
        self._ephemeral = ephemeral
        self._control = Control(bus)
        self._clock = clock or SystemClock()
        self._longest = longest_token_seconds
        self._cache_seconds = cache_seconds
        self._store_seconds = store_seconds
        self._metrics = metrics or NoMetrics()
        self._tokens: OrderedDict[str, None] = OrderedDict()
        self._users: OrderedDict[str, TokensRevoked] = OrderedDict()
        self._passed: dict[_TokenKey, float] = {}
        self._unchecked: set[Principal] = set()
        self._is_down = False

    # ---- revoke ----------------------------------------------------------------------------------------------------

    async def revoke_token(self, token_id: str, until: datetime | None = None) -> None:
        """The token with this id (claim `jti`) is refused from now on; sockets that came with it are closed (4003).

        `until`: when it ends by itself (`exp`); None: not known.

        Raises:
            StoreUnavailableError: nothing is known about whether it was remembered; revoke it again.
            BusUnavailableError: it is remembered, but open sockets may not have been closed; revoke it again.
        """
        now = self._clock.now()
        event = TokensRevoked(token_id=token_id, at=now, until=until or now + timedelta(seconds=self._longest))
        await self._revoke(event, _token_name(token_id), b"1")

    async def revoke_user(self, user_id: str) -> None:
        """Everything that was issued to this user until now is refused; its sockets are closed (4003).

        A token counts whole seconds: one that is issued within this second is refused as well.

        Raises: as `revoke_token`.
        """
        now = self._clock.now()
        event = TokensRevoked(user_id=user_id, at=now, until=now + timedelta(seconds=self._longest))
        await self._revoke(event, _user_name(user_id), repr(now.timestamp()).encode())

    async def _revoke(self, event: TokensRevoked, name: str, value: bytes) -> None:
        assert event.until is not None
        left = (event.until - self._clock.now()).total_seconds() + MARGIN_S
        if left > 0:
            await self._ephemeral.put(name, value, ttl_s=left)
        self.learn(event)
        await self._control.publish(event)

    def learn(self, event: TokensRevoked) -> None:
        """Another process has revoked these. To be called for each such control event."""
        if event.token_id is not None:
            self._tokens[event.token_id] = None
            self._tokens.move_to_end(event.token_id)
            _bound(self._tokens)
        elif event.user_id is not None:
            at = event.at or self._clock.now()
            known = self._users.get(event.user_id)
            if known is None or known.at is None or known.at < at:
                self._users[event.user_id] = event.model_copy(update={"at": at})
            self._users.move_to_end(event.user_id)
            _bound(self._users)

    # ---- ask -------------------------------------------------------------------------------------------------------

    async def is_revoked(self, principal: Principal, *, fresh: bool = False) -> bool:
        """Whether it came with a token that holds no longer. Never raises because of the store (see the class).

        An answer "no" may be a second old. With `fresh` it is not: for who is let in for longer than one request.
        """
        if self.is_known(principal):
            return True
        key = (principal.user_id, principal.token_id, principal.issued_at)
        asked_at = self._clock.monotonic()
        if not fresh and asked_at - self._passed.get(key, -math.inf) < self._cache_seconds:
            return False
        try:
            async with AnswerLimit(self._store_seconds):
                revoked = await self._ask(principal)
        except (StoreUnavailableError, TimeoutError) as error:
            self._store_failed(error)
            if fresh and len(self._unchecked) < MAX_KNOWN:
                self._unchecked.add(principal)
            return self.is_known(principal)
        self._is_down = False
        if revoked or self.is_known(principal):  # it may have been told meanwhile
            return True
        if len(self._passed) >= MAX_KNOWN:
            self._passed.clear()
        self._passed[key] = asked_at
        return False

    async def check(self, principal: Principal, *, fresh: bool = False) -> None:
        """As `is_revoked`.

        Raises:
            UnauthenticatedError: it is (reason "revoked").
        """
        if await self.is_revoked(principal, fresh=fresh):
            raise UnauthenticatedError("Invalid token: it was revoked", reason="revoked")

    async def settle(self) -> set[Principal]:
        """Look up those who were let in while the store could not be asked; returns who came with a revoked token.

        To be called now and then; it costs nothing when there are none.
        """
        revoked: set[Principal] = set()
        while self._unchecked:
            principal = self._unchecked.pop()
            if await self.is_revoked(principal, fresh=True):
                revoked.add(principal)
            if principal in self._unchecked:  # still nobody answers
                break
        return revoked

    def is_known(self, principal: Principal) -> bool:
        """Whether this process has heard that its token was revoked. Asks nobody."""
        if principal.token_id is not None and principal.token_id in self._tokens:
            return True
        event = self._users.get(principal.user_id)
        return event is not None and event.affects(principal)

    async def _ask(self, principal: Principal) -> bool:
        names = [_user_name(principal.user_id)]
        if principal.token_id is not None:
            names.append(_token_name(principal.token_id))
        before, *token = await self._ephemeral.get_all(names)
        if any(value is not None for value in token):
            return True
        if before is None:
            return False
        try:
            at = datetime.fromtimestamp(float(before), UTC)
        except (ValueError, OverflowError, OSError):
            return True  # it says that there is something, and not what
        return TokensRevoked(user_id=principal.user_id, at=at).affects(principal)

    def _store_failed(self, error: Exception) -> None:
        self._metrics.count("gateway_revocation_failures_total")
        if not self._is_down:
            self._is_down = True
            logger.warning(
                "revoked tokens cannot be looked up, callers are let in: %s",
                str(error) or type(error).__name__,
                extra={"action": "revocations_unavailable"},
            )


def _bound(known: OrderedDict[str, None] | OrderedDict[str, TokensRevoked]) -> None:
    """The oldest go: the store still has them."""
    while len(known) > MAX_KNOWN:
        known.popitem(last=False)


def _token_name(token_id: str) -> str:
    return f"revoked:token:{_digest(token_id)}"


def _user_name(user_id: str) -> str:
    return f"revoked:user:{_digest(user_id)}"


def _digest(text: str) -> str:
    """Ids are of any length and may have any character."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
