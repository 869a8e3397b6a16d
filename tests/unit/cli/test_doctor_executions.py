"""`livetape doctor executions` on a database that was left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stage import on_stage
from unit.cli.fake import Result

Call = Callable[..., Result]

STORE_VALUE = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"


def test_nothing_stands_still_where_there_is_nothing(call: Call) -> None:
    result = call("doctor", "executions")
    assert (result.code, result.out) == (0, "nothing stands still\n")


def test_what_stands_still_is_told_with_its_reason(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / ".livetape"
    folder.mkdir()

    async def left_behind() -> tuple[str, str]:
        async with on_stage(folder) as stage:
            graph = await stage.graph("g", {"a": (STORE_VALUE, {"input": 1})})
            lost, waiting = [await stage.start(graph) for _ in range(2)]
            assert await stage.claim(lost, "host-1") is not None
            return lost, waiting

    lost, waiting = asyncio.run(left_behind())
    (folder / "a.db").rename(folder / "livetape.db")
    result = call("doctor", "executions", "--json")
    found: dict[str, Any] = {finding["execution_id"]: finding for finding in json.loads(result.out)}
    assert result.code == 1
    assert {name: finding["kind"] for name, finding in found.items()} == {lost: "worker_lost", waiting: "no_worker"}
    text = call("doctor", "executions").out
    assert f"fail  {lost}  RUNNING  worker_lost since" in text
    assert "the lease of worker host-1 is over" in text
    assert "fix: " in text
