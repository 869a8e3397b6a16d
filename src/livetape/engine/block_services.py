"""What stands in where the engine has no sub-graphs, no review and no kept values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from livetape.engine.block_ports import ChildCall, ChildResult, ReviewAnswer, ReviewRequest
from livetape.errors import BlockExecutionError


class Absent:
    """Refuses everything, saying what is missing."""

    async def run(self, call: ChildCall) -> ChildResult:
        raise BlockExecutionError("this engine cannot run other graphs")

    async def run_many(self, calls: Sequence[ChildCall], *, concurrency: int) -> AsyncIterator[tuple[int, ChildResult]]:
        for place, call in enumerate(calls):
            yield place, await self.run(call)

    async def ask(self, request: ReviewRequest) -> ReviewAnswer:
        raise BlockExecutionError("this engine has nobody to ask")

    async def transaction(self, unit: Callable[[Any], Any]) -> Any:
        raise BlockExecutionError("this engine gives blocks no transactions")

    async def get(self, user_id: str, key: str) -> tuple[bool, Any]:
        raise BlockExecutionError("this engine keeps no values")

    async def set(self, user_id: str, key: str, value: Any) -> None:
        raise BlockExecutionError("this engine keeps no values")


ABSENT: Final = Absent()
