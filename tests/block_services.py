"""Sub-graphs, reviews and kept values for blocks that are run without an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from livetape.engine.block_ports import ChildCall, ChildResult, ReviewAnswer, ReviewRequest


class Services:
    """As the vectors of the blocks have them: the graph `double` doubles `x`, any other fails; whoever is asked
    approves, unless the name is `refuse`."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Any] = {}

    async def run(self, call: ChildCall) -> ChildResult:
        if call.graph_id == "double":
            number = call.inputs.get("x")
            return ChildResult("child-double", "COMPLETED", {"result": [number * 2 if isinstance(number, int) else 0]})
        return ChildResult("child-fails", "FAILED", {}, "no luck")

    async def run_many(self, calls: Sequence[ChildCall], *, concurrency: int) -> AsyncIterator[tuple[int, ChildResult]]:
        for place, call in enumerate(calls):
            yield place, await self.run(call)

    async def ask(self, request: ReviewRequest) -> ReviewAnswer:
        if request.name == "refuse":
            return ReviewAnswer(False, request.data, "not like this")
        return ReviewAnswer(True, request.data)

    async def get(self, user_id: str, key: str) -> tuple[bool, Any]:
        return (user_id, key) in self.kept, self.kept.get((user_id, key))

    async def set(self, user_id: str, key: str, value: Any) -> None:
        self.kept[user_id, key] = value
