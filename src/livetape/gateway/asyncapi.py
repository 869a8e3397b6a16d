"""The socket described for machines: an AsyncAPI 3.0 document, made of the models that messages are checked by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from livetape.gateway import schemas
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.options import GatewayOptions

Json: TypeAlias = dict[str, Any]

SCHEMA_REF: Final = "#/components/schemas/{model}"
CHANNEL: Final = {"$ref": "#/channels/ws"}
DESCRIPTION: Final = """\
Live events of executions and jobs, with replay. Replies and pushes come on the one socket; pushes may come between a
request and its reply, so send an `id` and look for it. A push carries its position (`offset`, `epoch`) where it has
one; a subscribe with `since` goes on after it."""
REFUSALS: Final = """\
Refused connections are accepted first and then closed, so that browsers see the code; a page of a foreign origin gets
HTTP 403, a server that is full or about to stop answers 503."""

SECURITY: Final[Mapping[str, Json]] = {
    "token": {
        "type": "httpApiKey",
        "name": "token",
        "in": "query",
        "description": "A JWT (audience `authenticated`, the user in `sub`).",
    },
    "ticket": {
        "type": "httpApiKey",
        "name": "ticket",
        "in": "query",
        "description": "A ticket for one use, from `POST /api/ws-tickets`.",
    },
    "subprotocol": {
        "type": "httpApiKey",
        "name": "Sec-WebSocket-Protocol",
        "in": "header",
        "description": "`livetape.v1, bearer.<JWT>`; answered with `livetape.v1`.",
    },
}

LIMITS: Final = (
    "max_message_bytes",
    "max_channels",
    "max_sockets_per_user",
    "messages_per_second",
    "message_burst",
    "flood_seconds",
    "slow_seconds",
    "expiry_notice_seconds",
    "expiry_grace_seconds",
    "max_event_bytes",
)


class Message(NamedTuple):
    """One message of the document: its name there, its method, and the model of its payload."""

    name: str
    method: str
    model: Any
    is_request: bool = False


def messages() -> Iterator[Message]:
    """All messages of the socket."""
    for method, answered in schemas.REQUESTS.items():
        yield Message(f"{method}.request", method, answered.request, is_request=True)
        if answered.reply is not None:
            yield Message(f"{method}.reply", method, answered.reply)
    for method, model in schemas.PUSHES.items():
        yield Message(method.value, method, model)


def asyncapi_document(
    options: GatewayOptions, *, version: str, servers: Mapping[str, Json] | None = None, path: str = "/ws"
) -> Json:
    """The document for a gateway with these options whose socket is at `path`. Pure.

    `servers` are Server Objects by name (`{"host": "example.org", "protocol": "wss"}`); the ways to sign in are added.
    """
    payloads, definitions = _schemas()
    document: Json = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "livetape gateway",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {"ws": _channel(path)},
        "operations": dict(_operations()),
        "components": {
            "schemas": definitions,
            "messages": {message.name: _message(message, payloads[message.name]) for message in messages()},
            "securitySchemes": {name: dict(scheme) for name, scheme in SECURITY.items()},
        },
        "x-close-codes": [
            {"code": int(code), "reason": code.reason, "advice": code.advice} for code in sorted(CloseCode)
        ],
        "x-limits": {name: _limit(options, name) for name in LIMITS},
    }
    if servers:
        security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in SECURITY]
        document["servers"] = {name: {**server, "security": security} for name, server in servers.items()}
    return document


def asyncapi_route(
    options: GatewayOptions, *, version: str, path: str = "/ws", url: str = "/asyncapi.json", name: str = "asyncapi"
) -> Route:
    """`GET {url}`: the document, naming the server that was asked. It tells nothing that needs a sign-in."""
    made: Json = {}

    async def asyncapi(request: Request) -> Response:
        if not made:
            made.update(asyncapi_document(options, version=version, path=path))
        server: Json = {"host": request.url.netloc, "protocol": "wss" if request.url.scheme == "https" else "ws"}
        root = str(request.scope.get("root_path", ""))
        if root:
            server["pathname"] = root
        security = [{"$ref": f"#/components/securitySchemes/{scheme}"} for scheme in SECURITY]
        servers = {"this": {**server, "security": security}}
        return Response(to_json({**made, "servers": servers}), media_type="application/json")

    return Route(url, asyncapi, methods=["GET"], name=name)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _schemas() -> tuple[dict[str, Json], Json]:
    """The payload of each message, and what they refer to."""
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (message.name, "validation", TypeAdapter(message.model)) for message in messages()
    ]
    found, shared = TypeAdapter.json_schemas(inputs, ref_template=SCHEMA_REF)
    return {name: schema for (name, _), schema in found.items()}, shared.get("$defs", {})


def _channel(path: str) -> Json:
    text = {"type": "string"}
    return {
        "address": path,
        "title": "The socket",
        "description": REFUSALS,
        "messages": {message.name: {"$ref": f"#/components/messages/{message.name}"} for message in messages()},
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {
                    "type": "object",
                    "properties": {
                        "token": {**text, "description": SECURITY["token"]["description"]},
                        "ticket": {**text, "description": SECURITY["ticket"]["description"]},
                    },
                },
                "headers": {
                    "type": "object",
                    "properties": {
                        "Sec-WebSocket-Protocol": {**text, "description": SECURITY["subprotocol"]["description"]}
                    },
                },
                "bindingVersion": "0.1.0",
            }
        },
    }


def _operations() -> Iterator[tuple[str, Json]]:
    """What the server receives, each with its answers, and what it sends by itself."""
    error = _of_channel("error")
    for method, answered in schemas.REQUESTS.items():
        operation: Json = {
            "action": "receive",
            "channel": CHANNEL,
            "summary": _summary(answered.request),
            "messages": [_of_channel(f"{method}.request")],
        }
        if answered.reply is not None:
            operation["reply"] = {"channel": CHANNEL, "messages": [_of_channel(f"{method}.reply"), error]}
        yield f"receive_{method}", operation
    for method, model in schemas.PUSHES.items():
        yield (
            f"send_{method}",
            {
                "action": "send",
                "channel": CHANNEL,
                "summary": _summary(model),
                "messages": [_of_channel(method.value)],
            },
        )


def _message(message: Message, payload: Json) -> Json:
    described: Json = {
        "name": message.method,
        "title": _title(message.model),
        "summary": _summary(message.model),
        "payload": payload,
    }
    if message.is_request or message.name.endswith(".reply"):
        described["correlationId"] = {"location": "$message.payload#/id"}
    return described


def _of_channel(name: str) -> Json:
    return {"$ref": f"#/channels/ws/messages/{name}"}


def _limit(options: GatewayOptions, name: str) -> Json:
    return {"value": getattr(options, name), "description": GatewayOptions.model_fields[name].description}


def _title(model: Any) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(model.__name__)).capitalize()


def _summary(model: Any) -> str:
    return " ".join(str(model.__doc__).split())
