"""The one decision who opens a socket, and who goes on with another token."""

from __future__ import annotations

from livetape.auth import Authenticator, ConnectionFacts, OriginPolicy, Principal
from livetape.errors import UnauthenticatedError
from livetape.gateway.control import TokensRevoked
from livetape.gateway.revocations import Revocations
from livetape.gateway.tickets import Tickets


class Doorkeeper:
    """Tokens, tickets, share tokens and revocations together. Without `tickets` every ticket is refused, without
    `revocations` none is looked for."""

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        tickets: Tickets | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._tickets = tickets
        self._revocations = revocations

    @property
    def auth_enabled(self) -> bool:
        """Whether callers are asked who they are."""
        return self._authenticator.auth_enabled

    @property
    def origins(self) -> OriginPolicy:
        """Which web pages may call."""
        return self._authenticator.origins

    async def authenticate(self, facts: ConnectionFacts) -> Principal:
        """Who opens a socket. A ticket goes before a token; a bad one is not made good by the other.

        Raises:
            UnauthenticatedError: context `reason` says why (`auth.Refusal`); `close_code_of` knows them all.
            TokenExpiredError: its time is over.
            NotAuthorizedError: a page of a foreign site tried to act without a token.
            StoreUnavailableError: a ticket cannot be looked up now.
        """
        if facts.ticket is not None and self.auth_enabled:
            principal = await self._redeem(facts.ticket)
        else:
            principal = self._authenticator.authenticate(facts, guests=True)
        await self._check(principal)
        return principal

    async def refresh(self, principal: Principal, token: str) -> Principal:
        """The holder of a socket goes on with this token: all its rights and its end are the new token's.

        Raises:
            UnauthenticatedError, TokenExpiredError: it does not hold, or (reason "other_user") it is somebody else's.
        """
        if not token:
            raise UnauthenticatedError(reason="missing")
        following = self._authenticator.authenticate(ConnectionFacts(token=token), guests=True)
        # A key with scopes does not become its user on an open socket, nor the other way round.
        if following.user_id != principal.user_id or following.is_limited != principal.is_limited:
            raise UnauthenticatedError("Invalid token: it belongs to another user", reason="other_user")
        await self._check(following)
        return following

    def learn(self, event: TokensRevoked) -> None:
        """Another process has revoked these."""
        if self._revocations is not None:
            self._revocations.learn(event)

    def knows_revoked(self, principal: Principal) -> bool:
        """Whether this process has heard that its token was revoked. Asks nobody: to be called once more when a socket
        has been entered where `learn` is followed, since it may have been told after `authenticate` looked."""
        return self._revocations is not None and self._revocations.is_known(principal)

    async def is_revoked(self, principal: Principal) -> bool:
        """Whether the token that this principal came with holds no longer: for open sockets, after the bus may have
        lost control events."""
        return self._revocations is not None and await self._revocations.is_revoked(principal, fresh=True)

    async def settle(self) -> set[Principal]:
        """Who was let in while revocations could not be looked up, and came with a revoked token. Ask now and then."""
        return set() if self._revocations is None else await self._revocations.settle()

    async def _redeem(self, ticket: str) -> Principal:
        if self._tickets is None:
            raise UnauthenticatedError("Invalid ticket: this server takes none", reason="invalid")
        return await self._tickets.redeem(ticket)

    async def _check(self, principal: Principal) -> None:
        if self._revocations is not None:
            await self._revocations.check(principal, fresh=True)
