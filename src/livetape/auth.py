"""Who is calling: tokens to principals. No framework, no I/O; the gateway and the API ask the same `Authenticator`."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import jwt

from livetape.clock import Clock, SystemClock
from livetape.errors import ConfigError, NotAuthorizedError, TokenExpiredError, UnauthenticatedError
from livetape.signed_tokens import SignedTokens, quiet

DEFAULT_USER_ID: Final = "3e53486c-cf57-477e-ba2a-cb02dc828e1a"
"""The user of every call while authentication is off, and of the owner of a development machine."""

ADMIN_ROLE: Final = "admin"
GUEST: Final = "share:"
"""So begin the ids of guests; a login token with such a user is refused."""

SHARE_AUDIENCE: Final = "livetape-share"
"""The audience of share tokens: no login has it, and no share token has that of logins."""

MAX_SHARED: Final = 100
"""So many tapes a share token opens at most."""

READ_GRAPH: Final = "READ_GRAPH"
EXECUTE_GRAPH: Final = "EXECUTE_GRAPH"
READ_BLOCK: Final = "READ_BLOCK"
EXECUTE_BLOCK: Final = "EXECUTE_BLOCK"
SCOPES: Final = frozenset({READ_GRAPH, EXECUTE_GRAPH, READ_BLOCK, EXECUTE_BLOCK})
"""What an API key can be limited to. What runs (executions, graphs, jobs) is read with READ_GRAPH."""

MIN_KEY_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 16 * 1024
LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Refusal: TypeAlias = Literal["missing", "no_user", "invalid", "expired", "revoked", "other_user"]
"""Why a caller is not known; stands in the error's context as `reason`. "other_user": a token that was sent to go on
with belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is acting. `expires_at` is None when the right to act does not end by itself.

    `scopes`: all that it may do (`READ_GRAPH`, …), None for everything that its user may. `shares`: the tapes, by
    name, that a share token opens; whoever has any is a guest, who may read these and do nothing else.
    """

    user_id: str
    role: str = ""
    expires_at: datetime | None = None
    token_id: str | None = None
    issued_at: datetime | None = None
    scopes: frozenset[str] | None = None
    shares: frozenset[str] = frozenset()

    @property
    def is_admin(self) -> bool:
        """Whether the token says so (claim `role`)."""
        return self.role == ADMIN_ROLE

    @property
    def is_guest(self) -> bool:
        """Whether it is whoever holds a share token, and no user."""
        return bool(self.shares) or self.user_id.startswith(GUEST)

    @property
    def is_limited(self) -> bool:
        """Whether it is less than its user: a guest, or a key with scopes. Notifications are not for such."""
        return self.scopes is not None or self.is_guest

    def may(self, scope: str) -> bool:
        """Whether its scopes allow this. A guest has none."""
        return not self.is_guest and (self.scopes is None or scope in self.scopes)

    def without_token(self) -> Principal:
        """The same rights, whichever token they came with."""
        return Principal(self.user_id, self.role, scopes=self.scopes, shares=self.shares)


@dataclass(frozen=True, slots=True)
class User:
    """The signed-in user as the seed's dependencies give it."""

    user_id: str
    email: str
    phone_number: str
    role: str

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """From the claims of a verified token."""
        return cls(
            user_id=str(payload["sub"]),
            email=str(payload.get("email") or ""),
            phone_number=str(payload.get("phone") or ""),
            role=str(payload.get("role") or ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOptions:
    """How tokens are checked. One algorithm is pinned: what a token's own header says is never followed."""

    verify_key: str = field(repr=False)
    algorithm: str = "HS256"
    audience: str = "authenticated"
    leeway_seconds: float = 5.0


def check_key(options: TokenOptions) -> list[str]:
    """What is weak about the key, as sentences for the log. An empty list is good.

    Raises:
        ConfigError: no key, or an algorithm that cannot be used.
    """
    if not options.verify_key.strip():
        raise ConfigError("there is no key to check tokens with", fix="set JWT_VERIFY_KEY")
    if options.algorithm not in jwt.algorithms.get_default_algorithms() or options.algorithm == "none":
        raise ConfigError(
            f"tokens cannot be signed with {options.algorithm!r}", fix="set JWT_SIGN_ALGORITHM, for instance to ES256"
        )
    try:
        jwt.algorithms.get_default_algorithms()[options.algorithm].prepare_key(options.verify_key)
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise ConfigError(
            f"this key cannot check {options.algorithm} tokens",
            because="it is of another kind",
            fix="HS algorithms take a secret, all others a public key in PEM form",
        ) from error
    found: list[str] = []
    if options.algorithm.startswith("HS"):
        if len(options.verify_key.encode()) < MIN_KEY_BYTES:
            found.append(f"the key for tokens is weak: use at least {MIN_KEY_BYTES} random bytes")
        found.append(
            f"{options.algorithm} is symmetric: whoever can check tokens can also make them; "
            "with several services prefer ES256"
        )
    return found


class TokenVerifier:
    """Turns a JWT into a `Principal`. Safe for concurrent use."""

    def __init__(self, options: TokenOptions, clock: Clock | None = None) -> None:
        check_key(options)
        if options.audience == SHARE_AUDIENCE:
            raise ConfigError(f"logins cannot have the audience {SHARE_AUDIENCE}", because="share tokens have it")
        self._options = options
        self._clock = clock or SystemClock()
        self._signed = SignedTokens(options.verify_key, options.algorithm)

    def __repr__(self) -> str:
        return f"TokenVerifier({self._options.algorithm})"

    def claims(self, token: str) -> dict[str, Any]:
        """The claims of a token that is genuine, meant for us and valid now.

        Raises:
            TokenExpiredError: "Token has expired".
            UnauthenticatedError: "Invalid token: …".
        """
        return self._claims(token, [self._options.audience])

    def verify(self, token: str, *, guests: bool = False) -> Principal:
        """The principal that a token stands for. `guests`: a share token is taken as well, and is one.

        Raises:
            TokenExpiredError: "Token has expired".
            UnauthenticatedError: "Invalid token: …", or "User ID not found in token" (reason "no_user").
        """
        audiences = [self._options.audience]
        claims = self._claims(token, [*audiences, SHARE_AUDIENCE] if guests else audiences)
        audience = claims["aud"]
        if audience == SHARE_AUDIENCE:
            return _guest(claims)
        if isinstance(audience, list) and SHARE_AUDIENCE in audience:  # never both
            raise _invalid("Audience doesn't match")
        user_id = claims.get("sub")
        if not isinstance(user_id, str) or not user_id or "\0" in user_id:
            raise UnauthenticatedError("User ID not found in token", reason="no_user")
        if user_id.startswith(GUEST):
            raise _invalid(f"A user's id does not begin with {GUEST}")
        role, token_id = claims.get("role"), claims.get("jti")
        return Principal(
            user_id,
            role=role if isinstance(role, str) else "",
            expires_at=_moment(claims.get("exp")),
            token_id=token_id if isinstance(token_id, str) else None,
            issued_at=_moment(claims.get("iat")),
        )

    def _claims(self, token: str, audiences: Sequence[str]) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_CHARS:
            raise _invalid("Token is too long")
        try:
            claims = self._signed.claims(token, audiences)
        except jwt.InvalidTokenError as error:
            raise _invalid(str(error)) from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _invalid("Token cannot be read") from None
        self._check_times(claims)
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now, leeway = self._clock.now().timestamp(), self._options.leeway_seconds
        for name in ("exp", "nbf", "iat"):
            value = claims.get(name)
            if value is None:
                continue
            # An integer may be beyond every float; it can still be compared with one.
            is_nan = isinstance(value, float) and math.isnan(value)
            if isinstance(value, bool) or not isinstance(value, int | float) or is_nan:
                raise _invalid(f"The claim {name} must be a number")
            if name == "exp":
                if value <= now - leeway:
                    raise TokenExpiredError(reason="expired")
            elif value > now + leeway:
                raise _invalid(f"The token is not yet valid ({name})")


def issue_token(
    key: str,
    *,
    user_id: str,
    now: datetime,
    ttl: timedelta,
    role: str = "user",
    algorithm: str = "HS256",
    audience: str = "authenticated",
    token_id: str | None = None,
) -> str:
    """A signed token for this user.

    Raises:
        ConfigError: the key cannot sign with this algorithm, or is too weak to do so.
    """
    claims: dict[str, Any] = {
        "sub": user_id,
        "role": role,
        "aud": audience,
        "iat": int(now.timestamp()),
        "exp": int((now + ttl).timestamp()),
    }
    if token_id is not None:
        claims["jti"] = token_id
    return _signed(claims, key, algorithm)


def issue_share_token(
    key: str,
    *,
    tapes: Collection[str],
    now: datetime,
    ttl: timedelta,
    algorithm: str = "HS256",
    token_id: str | None = None,
) -> str:
    """A signed token for whoever gets it: it opens these tapes (`execution_tape(…)`, …) for reading, and nothing else.

    It names no user. `token_id`, by which it can be revoked, is made up when it is not given. Whether the tapes may be
    shared is for the caller to check.

    Raises:
        ConfigError: the key cannot sign with this algorithm, or is too weak to do so.
        ValueError: no tape, more than 100, a name that is none, or names too long for a token.
    """
    names = sorted(set(tapes))
    if not _are_shared(names):
        raise ValueError(f"a share token opens 1 to {MAX_SHARED} tapes")
    claims: dict[str, Any] = {
        "share": names,
        "aud": SHARE_AUDIENCE,
        "jti": token_id or secrets.token_urlsafe(16),
        "iat": int(now.timestamp()),
        "exp": int((now + ttl).timestamp()),
    }
    token = _signed(claims, key, algorithm)
    if len(token) > MAX_TOKEN_CHARS:
        raise ValueError("the names of these tapes are too long for one token")
    return token


def _signed(claims: Mapping[str, Any], key: str, algorithm: str) -> str:
    if algorithm.startswith("HS") and len(key.encode()) < MIN_KEY_BYTES:
        raise ConfigError(
            f"the key for tokens is weak: it needs at least {MIN_KEY_BYTES} bytes", fix="set a longer JWT_VERIFY_KEY"
        )
    try:
        with quiet():
            return jwt.encode(dict(claims), key, algorithm=algorithm)
    except (jwt.PyJWTError, AttributeError, ValueError, TypeError) as error:  # a public key has no `sign`
        raise ConfigError(
            f"cannot sign a token with {algorithm}",
            because="the key is of another kind",
            fix="sign with the private key; a public key only checks",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFacts:
    """What is known of a caller before it is believed.

    `peer` is the IP address of the other end of the connection, `host` and `origin` are the headers of these names.
    `forwarded`: a proxy stands in between (any of `Forwarded`, `X-Forwarded-For`, `X-Real-IP`).
    """

    token: str | None = field(default=None, repr=False)
    ticket: str | None = field(default=None, repr=False)
    host: str | None = None
    origin: str | None = None
    peer: str | None = None
    forwarded: bool = False

    @classmethod
    def of(
        cls, headers: Mapping[str, str], peer: str | None, token: str | None = None, *, ticket: str | None = None
    ) -> Self:
        """From headers with lower-case names. Without `token`, `Authorization: Bearer …` is looked at."""
        if token is None:
            scheme, _, value = headers.get("authorization", "").partition(" ")
            token = value.strip() if scheme.lower() == "bearer" else None
        return cls(
            token=token or None,
            ticket=ticket or None,
            host=headers.get("host"),
            origin=headers.get("origin"),
            peer=peer,
            forwarded=any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip")),
        )


class OriginPolicy:
    """Which web pages may call. A caller that is no page (no `Origin` header) always may.

    A page may call the host that it came from, and those listed: exact origins, or `regex:<pattern>` for a full match.

    Raises:
        ConfigError: a pattern that cannot be compiled.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._exact = frozenset(entry.rstrip("/").lower() for entry in allowed if not entry.startswith("regex:"))
        try:
            patterns = [re.compile(entry.removeprefix("regex:")) for entry in allowed if entry.startswith("regex:")]
        except re.error as error:
            raise ConfigError(f"an allowed origin is no regular expression: {error}") from error
        self._patterns = tuple(patterns)

    def permits(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of this origin may call a server that it reached under this host name."""
        if origin is None:
            return True
        origin = origin.lower()
        if host and origin in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return True
        return origin in self._exact or any(pattern.fullmatch(origin) for pattern in self._patterns)


class Authenticator:
    """Decides who a caller is, for every way in.

    - `verifier`: tokens are checked by it. A token that was sent and is bad is refused in every mode but the next.
    - `enable_auth=False`: everybody is the default user.
    - `dev_user=True` (set only on a loopback bind): a caller without a token is the default user when it is on this
      machine, came by a name of this machine (`Host`), through no proxy, and is no page of another site.
    """

    def __init__(
        self,
        verifier: TokenVerifier | None,
        *,
        enable_auth: bool = True,
        dev_user: bool = False,
        allowed_hosts: Sequence[str] = (),
        origins: OriginPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        if enable_auth and verifier is None:
            raise ConfigError("there is no key to check tokens with", fix="set JWT_VERIFY_KEY")
        self._verifier = verifier
        self._dev_user = dev_user
        self._clock = clock or SystemClock()
        self._hosts = LOCAL_HOSTS | {host.lower().strip("[]") for host in allowed_hosts}
        self.auth_enabled = enable_auth
        self.origins = origins or OriginPolicy()

    def authenticate(self, facts: ConnectionFacts, *, guests: bool = False) -> Principal:
        """The caller. `guests`: who comes with a share token is let in, too. Tickets are not looked at.

        Raises:
            UnauthenticatedError: no token, or one that does not hold; context `reason` (see `Refusal`) says why.
            TokenExpiredError: its time is over.
            NotAuthorizedError: a page of a foreign site tried to act without a token.
        """
        if not self.auth_enabled:
            return self._default_user(facts)
        if facts.token is not None and self._verifier is not None:
            return self._verifier.verify(facts.token, guests=guests)
        if self._dev_user and self._is_own_machine(facts):
            return self._default_user(facts)
        raise UnauthenticatedError(reason="missing")

    def _default_user(self, facts: ConnectionFacts) -> Principal:
        # Nothing secret was sent, so a browser may have been sent here by anybody's page.
        if not self.origins.permits(facts.origin, facts.host):
            raise NotAuthorizedError("This origin may not call without a token")
        # Issued now: it is known by being here, so what was revoked before does not concern it.
        return Principal(DEFAULT_USER_ID, role=ADMIN_ROLE, issued_at=self._clock.now())

    def _is_own_machine(self, facts: ConnectionFacts) -> bool:
        return not facts.forwarded and _is_loopback(facts.peer) and host_name(facts.host) in self._hosts


def host_name(host: str | None) -> str:
    """The name in a `Host` header, in lower case, without port and brackets; empty when it is none."""
    try:
        return urlsplit(f"//{host or ''}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(peer: str | None) -> bool:
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _guest(claims: Mapping[str, Any]) -> Principal:
    """Of a share token. Everything that ours have must be there: nothing else is signed for this audience."""
    names, token_id, end = claims.get("share"), claims.get("jti"), claims.get("exp")
    if not isinstance(names, list) or not _are_shared(names) or not isinstance(token_id, str) or end is None:
        raise _invalid("This share token is incomplete")
    return Principal(
        GUEST + hashlib.sha256(token_id.encode("utf-8", "surrogatepass")).hexdigest()[:32],
        expires_at=_moment(end),
        token_id=token_id,
        issued_at=_moment(claims.get("iat")),
        shares=frozenset(names),
    )


def _are_shared(names: Sequence[object]) -> bool:
    return 1 <= len(names) <= MAX_SHARED and all(isinstance(name, str) and ":" in name for name in names)


def _invalid(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"Invalid token: {why}", reason="invalid")


def _moment(exp: object) -> datetime | None:
    if not isinstance(exp, int | float):
        return None
    try:
        return datetime.fromtimestamp(exp, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # beyond the calendar
