"""Every error of the REST interface, in one shape (wire contract, section 5).

    {"message", "detail", "hint", "type", "title", "status", "instance", "code", "errors"}

`message`, `detail` and `hint` are the seed's; `detail` is a string, a list (validation) or an object (graph
validation). The others are those of RFC 9457. A client that asks for `application/problem+json` gets the same with a
`detail` that is always a string. `instance` names this one occurrence: the id that is also in `X-Request-ID` and in
the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from livetape import errors as tree
from livetape.api.bodies import ErrorItem
from livetape.api.negotiation import asks_for
from livetape.observability import get_logger

logger = get_logger(__name__)

ADJUST: Final = "Adjust the request and retry."
CHECK_LOGS: Final = "Check server logs and dependent services."
MATCH_SCHEMA: Final = "Ensure the request matches the API schema."
SIGN_IN: Final = "Send a valid token in the header `Authorization: Bearer <token>`."
LATER: Final = "Retry in a moment; nothing is known to be lost."

MAX_ERRORS: Final = 100
MAX_IN_SENTENCE: Final = 5
MAX_TEXT: Final = 500
MAX_INPUT: Final = 100


@dataclass(frozen=True, slots=True)
class Rule:
    """How a class of `livetape.errors` is answered. The nearest class in its ancestry that has a rule decides."""

    status: int
    hint: str = ADJUST


RULES: Final[Mapping[type[tree.LivetapeError], Rule]] = {
    tree.LivetapeError: Rule(500, CHECK_LOGS),
    tree.ConfigError: Rule(500, CHECK_LOGS),
    tree.ClosedError: Rule(503, "The server is shutting down. Retry in a moment."),
    tree.BusError: Rule(500, CHECK_LOGS),
    tree.BusUnavailableError: Rule(503, LATER),
    tree.CodecError: Rule(500, CHECK_LOGS),
    tree.DecryptionError: Rule(500, CHECK_LOGS),
    tree.ChannelError: Rule(400, "Use an id of 1 to 200 characters without `*`."),
    tree.LogError: Rule(500, CHECK_LOGS),
    tree.LogUnavailableError: Rule(503, LATER),
    tree.PositionLostError: Rule(410, "Read the state again and continue from the position that comes with it."),
    tree.TapeHoleError: Rule(500, CHECK_LOGS),
    tree.StoreError: Rule(500, CHECK_LOGS),
    tree.StoreUnavailableError: Rule(503, LATER),
    tree.CommitUnknownError: Rule(503, LATER),
    tree.LockTimeoutError: Rule(503, LATER),
    tree.BlobError: Rule(500, CHECK_LOGS),
    tree.BlobUnavailableError: Rule(503, LATER),
    tree.QueueError: Rule(500, CHECK_LOGS),
    tree.QueueUnavailableError: Rule(503, LATER),
    tree.NotFoundError: Rule(404),
    tree.ConflictError: Rule(409),
    tree.LeaseLostError: Rule(409),
    tree.AuthError: Rule(403),
    tree.UnauthenticatedError: Rule(401, SIGN_IN),
    tree.TokenExpiredError: Rule(401, SIGN_IN),
    tree.NotAuthorizedError: Rule(403, "Use an account that may do this."),
    tree.LimitError: Rule(413, "Send less, or put large values in a file and send its name."),
    tree.RateLimitedError: Rule(429, "Slow down and retry after the time in `Retry-After`."),
    tree.GraphError: Rule(400),
    tree.GraphValidationError: Rule(400, "Correct the nodes named in `errors` and retry."),
    tree.UnknownBlockError: Rule(400, "List the installed blocks with GET /api/blocks."),
    tree.BlockError: Rule(400),
    tree.BlockInputError: Rule(400),
    tree.BlockExecutionError: Rule(400),
}
"""Exhaustive: a test fails for a class of `livetape.errors` that is not here."""

STATUSES: Final[Mapping[int, tuple[str, str]]] = {
    400: ("bad_request", "Bad request"),
    401: ("unauthenticated", "Not signed in"),
    402: ("payment_required", "Payment required"),
    403: ("not_authorized", "Not allowed"),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "Method not allowed"),
    406: ("not_acceptable", "Not acceptable"),
    408: ("timeout", "Request timed out"),
    409: ("conflict", "Conflict"),
    410: ("gone", "Gone"),
    413: ("too_large", "Request too large"),
    415: ("unsupported_media_type", "Unsupported content type"),
    421: ("misdirected", "Wrong host"),
    422: ("invalid_request", "Invalid request"),
    428: ("precondition_required", "Precondition required"),
    429: ("rate_limited", "Too many requests"),
    500: ("internal", "Internal error"),
    501: ("not_implemented", "Not implemented"),
    503: ("unavailable", "Temporarily unavailable"),
}


class ApiError(HTTPException):
    """A fault of a request that only the REST interface knows."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        hint: str = ADJUST,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[ErrorItem] = (),
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = errors
        self.code = code or _names(status)[0]
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Problem:
    """An error before it is written for one request."""

    status: int
    code: str
    detail: str | list[Any] | dict[str, Any]
    hint: str
    errors: Sequence[ErrorItem] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "Failed to process {request}"

    def with_headers(self, **headers: str) -> Problem:
        return replace(self, headers={**self.headers, **headers})


class InvalidRequestError(Exception):
    """A request that is not what the interface describes.

    `faults` are as Pydantic tells them; the first part of their `loc` is the part of the request (path, query, body).
    """

    def __init__(self, faults: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(faults)
        self.faults = faults


def problem_of(error: Exception) -> Problem | None:
    """How this exception is answered; None for one that nobody foresaw, or whose text is not for clients."""
    if isinstance(error, InvalidRequestError):
        return _invalid(error.faults)
    if isinstance(error, HTTPException):
        return problem_of_http(error)
    if isinstance(error, tree.LivetapeError):
        return _of_tree(error)
    return None


def unexpected(request_id: str) -> Problem:
    """The answer to an exception that nobody foresaw: no details, only where to find them."""
    return Problem(
        500, "internal", f"An unexpected error happened. It is in the log of the server under {request_id}.", CHECK_LOGS
    )


def error_response(scope: Scope, problem: Problem) -> Response:
    """The problem as the answer to this request, in the form that its `Accept` asks for."""
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
    as_problem = asks_for(accept, "application/problem+json")
    request = f"{scope['method']} {scope['path'][:MAX_TEXT]}"
    code = problem.code
    body = {
        "message": problem.message.format(request=request),
        "detail": _sentence(problem) if as_problem else problem.detail,
        "hint": problem.hint,
        "type": f"urn:livetape:error:{code}",
        "title": _names(problem.status)[1],
        "status": problem.status,
        "instance": f"urn:livetape:request:{request_id_of(scope)}",
        "code": code,
        "errors": [item.model_dump() for item in problem.errors],
    }
    # ASCII escapes: a lone surrogate in an id or a message cannot break the answer
    return Response(
        json.dumps(body, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode(),
        status_code=problem.status,
        headers=dict(problem.headers),
        media_type="application/problem+json" if as_problem else "application/json",
    )


def request_id_of(scope: Scope) -> str:
    """The id that the request tracker gave this request."""
    return str(scope.get("state", {}).get("request_id", ""))


def _names(status: int) -> tuple[str, str]:
    return STATUSES.get(status, STATUSES[500] if status >= 500 else STATUSES[400])


def _of_tree(error: tree.LivetapeError) -> Problem | None:
    rule = next(RULES[cls] for cls in type(error).__mro__ if cls in RULES)
    code = error.code
    if rule.status == 503:
        logger.warning("%s: %s", code, error.message, extra={"action": "api.unavailable"})
        # its message may name hosts; the class says enough
        detail = (type(error).__doc__ or "").strip().partition("\n")[0]
        return Problem(503, code, detail, rule.hint, headers={"Retry-After": _seconds(error)})
    if rule.status >= 500:
        return None
    headers: dict[str, str] = {}
    if isinstance(error, tree.UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    if rule.status == 429:
        headers["Retry-After"] = _seconds(error)
    if isinstance(error, tree.GraphValidationError):
        return _of_graph(error, code, rule)
    return Problem(rule.status, code, error.message, rule.hint, headers=headers)


def _seconds(error: tree.LivetapeError) -> str:
    after = error.context.get("retry_after")
    return str(max(1, round(after))) if isinstance(after, int | float) else "1"


def _of_graph(error: tree.GraphValidationError, code: str, rule: Rule) -> Problem:
    issues = [(node, name, text) for node, fields in error.node_errors.items() for name, text in fields.items()]
    message = error.message
    if issues:
        message = f"Graph validation failed: {_count(len(issues), 'issue')} on {_count(len(error.node_errors), 'node')}"
    return Problem(
        rule.status,
        code,
        {"type": "validation_error", "message": message, "node_errors": error.node_errors},
        rule.hint,
        [
            ErrorItem(location="graph", pointer=_pointer(("nodes", node, name)), detail=text, code="node")
            for node, name, text in issues[:MAX_ERRORS]
        ],
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def problem_of_http(error: HTTPException) -> Problem:
    """How a fault is answered that was raised with its status."""
    code, _ = _names(error.status_code)
    hint = ADJUST if error.status_code < 500 else CHECK_LOGS
    errors: Sequence[ErrorItem] = ()
    if isinstance(error, ApiError):
        code, hint, errors = error.code, error.hint, error.errors
    elif error.status_code in {404, 405}:
        hint = "The paths and methods of this server are listed in /openapi.json."
    detail: Any = error.detail
    if not isinstance(detail, str | list | dict):
        detail = str(detail)
    return Problem(error.status_code, code, detail, hint, errors, error.headers or {})


def _invalid(faults: Sequence[Mapping[str, Any]]) -> Problem:
    detail: list[Any] = []
    items: list[ErrorItem] = []
    for fault in faults[:MAX_ERRORS]:
        place = [part if isinstance(part, int) else str(part)[:MAX_TEXT] for part in fault["loc"]]
        text, kind = str(fault["msg"])[:MAX_TEXT], str(fault["type"])
        shown: dict[str, Any] = {"type": kind, "loc": place, "msg": text}
        if _is_short(value := fault.get("input")):
            shown["input"] = value
        detail.append(shown)
        where = str(place[0]) if place else "body"
        items.append(ErrorItem(location=where, pointer=_pointer(place[1:]), detail=text, code=kind))
    if left := len(faults) - len(detail):
        detail.append({"type": "too_many_errors", "loc": ["body"], "msg": f"and {left} more"})
    return Problem(422, "invalid_request", detail, MATCH_SCHEMA, items, message="Invalid data for {request}")


def _is_short(value: object) -> bool:
    """Whether it may be shown again: a big body must not come back once for every fault in it."""
    if isinstance(value, str):
        return len(value) <= MAX_INPUT
    return isinstance(value, int) and abs(value) < 2**53


def _pointer(parts: Sequence[object]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _sentence(problem: Problem) -> str:
    if isinstance(problem.detail, str):
        return problem.detail
    if isinstance(problem.detail, dict):
        return str(problem.detail.get("message", ADJUST))
    faults = [f"{item.location}{item.pointer}: {item.detail}" for item in problem.errors]
    more = f"; and {len(faults) - MAX_IN_SENTENCE} more" if len(faults) > MAX_IN_SENTENCE else ""
    return "; ".join(faults[:MAX_IN_SENTENCE]) + more
