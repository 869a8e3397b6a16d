"""`POST /api/ws-tickets`: a signed-in caller gets a ticket for one socket (wire contract, section 3)."""

from __future__ import annotations

from typing import Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from livetape.auth import Authenticator, ConnectionFacts
from livetape.gateway.revocations import Revocations
from livetape.gateway.tickets import Tickets

TICKETS_PATH: Final = "/api/ws-tickets"


def ticket_route(
    authenticator: Authenticator, tickets: Tickets, revocations: Revocations | None = None, *, path: str = TICKETS_PATH
) -> Route:
    """The route, for any Starlette application: for the API (`create_api(routes=[…])`) and for a gateway alone.

    The caller signs in as everywhere else, with `Authorization: Bearer …`; a share token or another ticket is no
    login. No body is read. It raises the errors of `livetape.errors`, for the application's handler to answer
    (`gateway.problems.ERROR_HANDLERS` where there is none).
    """

    async def issue(request: Request) -> Response:
        peer = request.client.host if request.client else None
        principal = authenticator.authenticate(ConnectionFacts.of(request.headers, peer))
        if revocations is not None:
            await revocations.check(principal)
        ticket = await tickets.issue(principal)
        body = to_json({"ticket": ticket.text, "expires_at": ticket.expires_at})
        return Response(body, 201, {"Cache-Control": "no-store"}, "application/json")

    return Route(path, issue, methods=["POST"], name="ws_tickets")
