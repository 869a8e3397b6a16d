"""The description of the interface is part of it: a change must be seen and meant.

`WRITE_SNAPSHOTS=1 pytest tests/unit/api/test_openapi.py` writes it anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from livetape.gateway.asyncapi import asyncapi_route
from livetape.gateway.options import GatewayOptions
from unit.api.fakes import World

SNAPSHOT = Path(__file__).with_name("openapi.json")
WRITE = os.environ.get("WRITE_SNAPSHOTS") == "1"


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_it_is_the_one_that_was_agreed(world: World) -> None:
    document = world.app.openapi()
    if WRITE:
        SNAPSHOT.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    assert document == json.loads(SNAPSHOT.read_text()), "meant? write it anew: see the top of this file"


def test_operations_have_the_names_of_the_seed(world: World) -> None:
    found = {name: operation["operationId"] for name, operation in operations(world.app.openapi()).items()}
    assert found["GET /api/graphs"] == "getV1ListUserGraphs"
    assert found["POST /api/graphs"] == "postV1CreateNewGraph"
    assert found["POST /api/graphs/{graph_id}/execute/{graph_version}"] == "postV1ExecuteGraphAgent"
    assert found["GET /api/graphs/{graph_id}/executions/{graph_exec_id}"] == "getV1GetExecutionDetails"
    assert len(set(found.values())) == len(found)


def test_errors_and_sign_in_are_described(world: World) -> None:
    document = world.app.openapi()
    for name, operation in operations(document).items():
        assert operation["responses"]["default"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/ErrorBody"
        }
        assert ("security" in operation) == (" /api/" in name), name
        assert operation["description"], name


async def test_it_is_served(world: World, stranger: Any) -> None:
    assert (await stranger.get("/openapi.json")).json() == json.loads(json.dumps(world.app.openapi()))


async def test_the_description_of_the_socket_is_served_beside_it(connected: Any) -> None:
    async with connected(World(routes=[asyncapi_route(GatewayOptions(), version="1")])) as stranger:
        answer = await stranger.get("/asyncapi.json")
        refused = await stranger.post("/asyncapi.json")
    assert (answer.status_code, answer.json()["asyncapi"]) == (200, "3.0.0")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
