"""`POST /api/token-revocations`: tokens are refused from now on (wire contract, section 3)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from livetape.auth import Authenticator, ConnectionFacts, Principal
from livetape.errors import CodecError, NotAuthorizedError
from livetape.events.strict import parse_json
from livetape.gateway.revocations import Revocations

REVOCATIONS_PATH: Final = "/api/token-revocations"
MAX_BODY_BYTES: Final = 16 * 1024

Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class RevocationRequest(BaseModel):
    """Everything that a user was given until now, or one token (its claim `jti`, and `until` its `exp`)."""

    model_config = ConfigDict(extra="forbid")

    user_id: Name | None = None
    token_id: Name | None = None
    until: AwareDatetime | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.user_id is None) == (self.token_id is None):
            raise ValueError("either user_id or token_id")
        if self.until is not None and self.token_id is None:
            raise ValueError("until belongs to token_id")
        return self


def revocation_route(authenticator: Authenticator, revocations: Revocations, *, path: str = REVOCATIONS_PATH) -> Route:
    """The route, for any Starlette application, beside `ticket_route`.

    Administrators may revoke anything; everybody else their own: all tokens of their user id, or the one that they
    come with. 204 when it is remembered and every gateway process has been told. A key with scopes may revoke nothing.
    """

    async def revoke(request: Request) -> Response:
        peer = request.client.host if request.client else None
        principal = authenticator.authenticate(ConnectionFacts.of(request.headers, peer))
        await revocations.check(principal)
        body = await _body(request)
        if not _may(principal, body):
            raise NotAuthorizedError("Only administrators revoke tokens of others")
        if body.user_id is not None:
            await revocations.revoke_user(body.user_id)
        elif body.token_id is not None:
            await revocations.revoke_token(body.token_id, _end(principal, body))
        return Response(status_code=204)

    return Route(path, revoke, methods=["POST"], name="token_revocations")


def _may(principal: Principal, body: RevocationRequest) -> bool:
    if principal.is_limited:
        return False
    return principal.is_admin or body.user_id == principal.user_id or _is_own(principal, body)


def _is_own(principal: Principal, body: RevocationRequest) -> bool:
    return body.token_id is not None and body.token_id == principal.token_id


def _end(principal: Principal, body: RevocationRequest) -> datetime | None:
    """Of one's own token the end is known: what the body says must not make it shorter."""
    return principal.expires_at if _is_own(principal, body) else body.until


async def _body(request: Request) -> RevocationRequest:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "The body must be JSON", headers={"Accept-Post": "application/json"})
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise HTTPException(413, f"The body is larger than {MAX_BODY_BYTES} bytes", {"Connection": "close"})
    try:
        return RevocationRequest.model_validate(parse_json(bytes(raw)))
    except CodecError as error:
        raise HTTPException(422, f"JSON decode error: {error.message}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = "/".join(["body", *map(str, first["loc"])])
        raise HTTPException(422, f"{place}: {first['msg']}") from None
