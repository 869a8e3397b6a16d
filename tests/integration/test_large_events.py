"""Events of 33 MB, twice what a socket is sent: they come cut, and say so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integration.test_gateway import ask, receive, served
from livetape.events.channel import execution_tape

pytestmark = pytest.mark.slow

LIMIT = 16 * 1024 * 1024
LARGE: dict[str, Any] = {
    "event_type": "node_execution_update",
    "input_data": {"in": [1]},
    "output_data": {"out": ["begin" + "x" * 33_000_000 + "end"], "other": [[1, 2]]},
    "node_id": "N",
}
SUBSCRIBE: dict[str, Any] = {"graph_exec_id": "E"}


def subscribe(**data: Any) -> str:
    return json.dumps({"method": "subscribe_graph_execution", "data": SUBSCRIBE | data})


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "replayed"])
async def test_a_large_event_comes_cut(*, is_live: bool) -> None:
    async with served() as site:
        await site.rig.publisher.create()
        async with site.socket() as ws:
            if is_live:
                await ask(ws, subscribe())
            await site.rig.publisher._publish("E", LARGE)
            await site.rig.publisher.node(2)
            if not is_live:
                await ask(ws, subscribe(since="earliest"))
            first, second = await receive(ws), await receive(ws)
    assert LIMIT // 4 < len(first) < LIMIT
    push = json.loads(first)
    assert list(push)[-3:] == ["offset", "epoch", "truncated"]
    assert (push["method"], push["offset"], push["truncated"]) == ("node_execution_event", 1, True)
    assert {**push["data"], "output_data": None} == {**LARGE, "output_data": None}
    assert list(push["data"]["output_data"]) == ["out", "other"]
    (text,) = push["data"]["output_data"]["out"]
    assert text.startswith("begin")
    assert text.endswith("end")
    assert json.loads(second)["offset"] == 2


async def test_a_large_event_that_cannot_be_cut_is_told() -> None:
    async with served() as site:
        await site.rig.publisher.create()
        async with site.socket() as ws:
            await ask(ws, subscribe())
            sealed = {"event_type": "node_execution_update", "encrypted": {"data": "x" * 17_000_000}}
            await site.rig.publisher._publish("E", sealed)
            told = json.loads(await receive(ws))
    assert (told["method"], told["code"], told["offset"]) == ("error", "payload_too_large", 1)


async def test_event_streams_say_where_there_is_a_place_for_it() -> None:
    async with served() as site:
        await site.rig.publisher.create()
        await site.rig.publisher._publish("E", LARGE)
        await site.rig.publisher.graph("COMPLETED")
        where = f"/events/{execution_tape('E')}"
        headers = {"authorization": f"Bearer {site.rig.token()}"}
        async with site.http() as client:
            lines = (await client.get(where, headers={**headers, "accept": "application/x-ndjson"})).text.splitlines()
            blocks = (await client.get(where, headers={**headers, "accept": "text/event-stream"})).text
            page = (await client.get(where, params={"limit": 1}, headers=headers)).text
    assert [json.loads(line).get("truncated") for line in lines] == [True, None]
    assert "payload_too_large" in blocks
    assert len(page) > 33_000_000  # as it is on the tape
