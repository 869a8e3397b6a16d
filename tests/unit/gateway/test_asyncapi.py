"""The description of the socket is part of it: a change must be seen and meant.

`WRITE_SNAPSHOTS=1 pytest tests/unit/gateway/test_asyncapi.py` writes docs/reference/asyncapi.json anew.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from starlette.applications import Starlette
from starlette.testclient import TestClient

from described import Recording
from livetape.gateway import messages, schemas
from livetape.gateway.asyncapi import asyncapi_document, asyncapi_route
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.messages import WSMethod
from livetape.gateway.options import GatewayOptions
from support import ROOT

SNAPSHOT = ROOT / "docs" / "reference" / "asyncapi.json"
SCHEMA = Path(__file__).with_name("asyncapi") / "3.0.0.json"
WRITE = os.environ.get("WRITE_SNAPSHOTS") == "1"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi_document(
        GatewayOptions(), version=version("livetape"), servers={"local": {"host": "localhost:8420", "protocol": "ws"}}
    )


@pytest.fixture(scope="module")
def official() -> Draft7Validator:
    return Draft7Validator(json.loads(SCHEMA.read_text()))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_it_is_the_one_that_was_agreed(document: dict[str, Any]) -> None:
    if WRITE:
        SNAPSHOT.write_text(json.dumps(document, indent=1) + "\n")
    assert document == json.loads(SNAPSHOT.read_text()), "meant? write it anew: see the top of this file"


def test_it_is_asyncapi(document: dict[str, Any], official: Draft7Validator) -> None:
    assert list(official.iter_errors(document)) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("info"),
        lambda document: document["operations"]["receive_heartbeat"].update(action="hear"),
        lambda document: document["channels"]["ws"].update(adress="/ws"),
        lambda document: document["components"]["schemas"]["Expiry"].update(type="thing"),
    ],
)
def test_the_check_bites(document: dict[str, Any], official: Draft7Validator, spoil: Any) -> None:
    spoiled = copy.deepcopy(document)
    spoil(spoiled)
    assert not official.is_valid(spoiled)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    for reference in found:
        assert resolve(document, reference)
    unused = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]} - found
    assert unused == set(), "described, and used nowhere"


def test_every_method_is_described_once_in_each_direction(document: dict[str, Any]) -> None:
    described = document["components"]["messages"]
    assert {message["name"] for message in described.values()} == {method.value for method in WSMethod}
    received = [name for name in described if name.endswith(".request")]
    sent = [described[name]["name"] for name in described if name not in received]
    assert len(sent) == len(set(sent))
    operations = document["operations"].values()
    used = {
        reference.rpartition("/")[2]
        for operation in operations
        for reference in references([operation["messages"], operation.get("reply", {}).get("messages", [])])
    }
    assert used == set(described)
    assert {operation["action"] for operation in operations} == {"receive", "send"}


def test_the_models_of_requests_are_those_that_messages_are_checked_by() -> None:
    for method, model in messages.SUBSCRIBE_REQUESTS.items():
        assert schemas.REQUESTS[method].request.model_fields["data"].annotation is model
    for method, model in {
        WSMethod.UNSUBSCRIBE: messages.WSUnsubscribeRequest,
        WSMethod.REFRESH: messages.WSRefreshRequest,
        WSMethod.STOP_GRAPH_EXEC: messages.WSStopRequest,
    }.items():
        assert schemas.REQUESTS[method].request.model_fields["data"].annotation is model


@pytest.mark.parametrize(
    ("method", "data", "good"),
    [
        ("subscribe_graph_execution", {"graph_exec_id": "E"}, True),
        ("subscribe_graph_execution", {"graph_exec_id": "E", "since": {"epoch": "e", "offset": 3}}, True),
        ("subscribe_graph_execution", {"graph_exec_id": "E", "since": {"epoch": "e", "offset": "3"}}, True),
        ("subscribe_graph_execution", {"graph_exec_id": "E", "since": {"epoch": "e", "offset": "-3"}}, False),
        ("subscribe_graph_execution", {"graph_exec_id": "E", "since": "now"}, False),
        ("subscribe_graph_execution", {"graph_exec_id": ""}, False),
        ("subscribe_graph_execution", {"graph_exec_id": "a*"}, False),
        ("subscribe_graph_execution", {"graph_exec_id": "a" * 201}, False),
        ("subscribe_graph_executions", {"graph_id": "G", "since": {"last": 5}, "more": 1}, True),
        ("subscribe_job", {"job_id": "J", "since": {"seconds": 0.5}, "strict": True}, True),
        ("subscribe_job", {"job_id": "J", "strict": "yes"}, False),
        ("unsubscribe", {"channel": "U|job#J"}, True),
        ("unsubscribe", {"job_id": "J", "graph_id": None}, True),
        ("unsubscribe", {"job_id": None}, False),
        ("unsubscribe", {}, False),
        ("refresh", {"token": "t"}, True),
        ("refresh", {"token": ""}, False),
        ("stop_graph_execution", {"graph_exec_id": "E"}, True),
    ],
)
def test_the_document_says_what_the_models_say(
    document: dict[str, Any], method: str, data: dict[str, Any], good: bool
) -> None:
    model = schemas.REQUESTS[WSMethod(method)].request
    body = {"method": method, "data": data}
    try:
        model.model_validate(body)
    except ValueError:
        accepted = False
    else:
        accepted = True
    assert accepted == good
    assert Recording(document).matching("in", body) == ([f"{method}.request"] if good else [])


def test_the_error_codes_are_those_of_the_sources(document: dict[str, Any]) -> None:
    described = set(document["components"]["schemas"]["ErrorPush"]["properties"]["code"]["enum"])
    sources = "".join(
        path.read_text() for path in (ROOT / "src/livetape/gateway").glob("*.py") if path.stem != "schemas"
    )
    assert {code for code in described if f'"{code}"' not in sources} == set()


def test_closes_and_limits_are_told(document: dict[str, Any]) -> None:
    assert [close["code"] for close in document["x-close-codes"]] == sorted(int(code) for code in CloseCode)
    assert all(close["reason"] and close["advice"] for close in document["x-close-codes"])
    limited = asyncapi_document(GatewayOptions(max_channels=7), version="1", path="/live")
    assert limited["x-limits"]["max_channels"]["value"] == 7
    assert limited["channels"]["ws"]["address"] == "/live"
    assert "servers" not in limited


def test_it_is_served(document: dict[str, Any], official: Draft7Validator) -> None:
    app = Starlette(routes=[asyncapi_route(GatewayOptions(), version=document["info"]["version"])])
    with TestClient(app, base_url="https://tapes.example") as client:
        answer = client.get("/asyncapi.json")
    assert answer.headers["content-type"] == "application/json"
    served = answer.json()
    assert official.is_valid(served)
    server = served.pop("servers")["this"]
    assert (server["host"], server["protocol"], len(server["security"])) == ("tapes.example", "wss", 3)
    assert served == {key: value for key, value in document.items() if key != "servers"}
