"""Keeps the large values of executions as blobs, and gives them back to whoever works with them.

What the planner, the rows and the events hold of such a value is its pointer (`engine.pointers`). A blob is durable
before the commit that points to it: a crash between the two leaves a blob that nobody points to, for the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256 as digest_of
from typing import Any, Final

from pydantic_core import from_json

from livetape.engine.blobs import Blobs, Place
from livetape.engine.block_ports import Wait
from livetape.engine.changes import Ended, Happening, NodeRun, Yielded
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.pins import select_output, split_pin
from livetape.engine.pointers import RESERVED, Pointer, pointer_of, pointers_in, to_be_moved
from livetape.errors import BlobError, LimitError, NotFoundError
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ExecutionRow, NodeRow

INLINE_BYTES: Final = 256 * 1024
VALUE_BYTES: Final = 50 * 1024 * 1024
EXECUTION_BYTES: Final = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BlobLimits:
    """Bytes of JSON: of a value that stands where it is, of any value, and of all blobs of one execution."""

    inline: int = INLINE_BYTES
    value: int = VALUE_BYTES
    execution: int = EXECUTION_BYTES


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where large values are kept and how large they may be."""

    blobs: Blobs
    limits: BlobLimits = field(default_factory=BlobLimits)

    def of(self, owner: str, execution_id: str) -> LargeValues:
        """Those of one execution."""
        return LargeValues(self, Place(owner, execution_id))

    async def take_over(self, source: Place, target: Place, pointed: Collection[str]) -> None:
        """Give an execution what it takes over from another: the blobs with these hashes."""
        if pointed:
            await self.blobs.share(source, target, pointed)

    async def forget(self, owner: str, execution_id: str) -> None:
        """Those of an execution that was not begun after all."""
        await self.blobs.delete(Place(owner, execution_id))


class LargeValues:
    """The large values of one execution."""

    def __init__(self, keeping: Keeping, place: Place) -> None:
        self._blobs = keeping.blobs
        self._limits = keeping.limits
        self._place = place
        self._sizes: dict[str, int] | None = None
        self._selected: dict[tuple[str, str], tuple[bool, Any]] = {}

    # -- moving ------------------------------------------------------------------------------------------------

    async def moved(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same values by name, each large one as a pointer.

        Raises:
            LimitError: a value, or all of them together, are larger than they may be.
            BlobUnavailableError
        """
        return {name: await self.move(value) for name, value in values.items()}

    async def move(self, value: Any) -> Any:
        """The value, or its pointer. Raises as `moved`."""
        text = to_be_moved(value, self._limits.inline)
        if text is None:
            return value
        return (await self._keep(text)).to_json()

    async def _keep(self, text: bytes) -> Pointer:
        limits = self._limits
        if len(text) > limits.value:
            raise LimitError(f"it has {len(text)} bytes of JSON; a value may have {limits.value}")
        if self._sizes is None:
            self._sizes = await self._blobs.sizes(self._place)
        used = sum(self._sizes.values())
        if used + len(text) > limits.execution and digest_of(text).hexdigest() not in self._sizes:
            raise LimitError(
                f"the large values of this execution would have {used + len(text)} bytes; they may have "
                f"{limits.execution}"
            )
        sha256 = await self._blobs.put(self._place, text)
        self._sizes[sha256] = len(text)
        return Pointer(sha256, len(text))

    async def taken(self, happenings: Sequence[Happening], runs: Mapping[int, NodeRun]) -> list[Happening]:
        """What has happened, with pointers for large outputs. A node whose output cannot be kept has failed."""
        passed: list[Happening] = []
        failed: set[int] = set()
        for happening in happenings:
            seq = getattr(happening, "seq", None)
            if seq in failed:
                continue
            text = to_be_moved(happening.value, self._limits.inline) if isinstance(happening, Yielded) else None
            if text is None or not isinstance(happening, Yielded):
                passed.append(happening)
                continue
            try:
                pointer = await self._keep(text)
                run = runs.get(happening.seq)
                if run is not None:
                    links = {link.source_name for link in run.node.links}
                    await self._prepare(happening.name, happening.value, pointer, links)
            except (LimitError, BlobError) as error:
                failed.add(happening.seq)
                said = f"the output {happening.name} cannot be kept: {error.message}"
                passed.append(Ended(happening.seq, ExecutionStatus.FAILED, said, "block_error"))
            else:
                passed.append(Yielded(happening.seq, happening.name, pointer.to_json()))
        return passed

    async def _prepare(self, name: str, value: Any, pointer: Pointer, sources: Collection[str]) -> None:
        """Links that take the value apart are followed by the planner, which has no value."""
        for source in sources:
            base, selectors = split_pin(source)
            if selectors and base == name and source != name:
                fires, part = select_output(name, value, source)
                self._selected[pointer.sha256, source] = fires, await self.move(part)

    def select(self, name: str, value: Any, source_name: str) -> tuple[bool, Any]:
        """As `select_output`, of pointers too that `taken` or `prepare_stored` made ready."""
        pointer = pointer_of(value)
        if pointer is None or name == source_name:
            return select_output(name, value, source_name)
        return self._selected.get((pointer.sha256, source_name), (False, None))

    async def prepare_stored(self, nodes: Sequence[NodeRow], sources_of: Callable[[str], Collection[str]]) -> None:
        """Make ready what links select of stored outputs. `sources_of`: the source pins of a node's links."""
        for node in nodes:
            sources = {source for source in sources_of(node.node_id) if split_pin(source)[1]}
            if not sources:
                continue
            for name, text in node.outputs:
                pointer = pointer_of(from_json(text))
                if pointer is not None:
                    await self._prepare(name, await self._read(self._place, pointer), pointer, sources)

    async def defaults(self, plan: GraphPlan, inputs: Mapping[str, Any], masks: Mapping[str, Any]) -> dict[str, Any]:
        """The masks, with the large defaults of the graph as pointers among them. Raises as `moved`."""
        joined: dict[str, Any] = dict(masks)
        for node in plan.nodes.values():
            masked = masks.get(node.id, {})
            for pin, value in node.defaults.items():
                given = node.is_input and pin == "value" and node.defaults.get("name") in inputs
                if pin in masked or given or to_be_moved(value, self._limits.inline) is None:
                    continue
                joined[node.id] = {**joined.get(node.id, {}), pin: await self.move(value)}
        return joined

    # -- giving back -------------------------------------------------------------------------------------------

    async def whole(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same values by name, none of them a pointer.

        Raises:
            NotFoundError: a blob is gone.
            BlobError
        """
        if not any(type(value) is dict and RESERVED in value for value in values.values()):
            return dict(values)
        found = {name: pointer_of(value) for name, value in values.items()}
        return {
            name: value if (pointer := found[name]) is None else await self._read(self._place, pointer)
            for name, value in values.items()
        }

    async def answers(self, waits: Sequence[Wait]) -> list[Wait]:
        """What children gave and people left, whole. The blobs of children are their own."""
        return [await self._answer(wait) for wait in waits]

    async def _answer(self, wait: Wait) -> Wait:
        if wait.kind == "timer" or wait.answer is None:
            return wait
        if wait.kind == "review":
            asked = pointer_of(wait.answer.get("data"))
            data = None if asked is None else await self._read(self._place, asked)
            return wait if asked is None else replace(wait, answer={**wait.answer, "data": data})
        given = wait.answer.get("outputs")
        if not isinstance(given, dict) or not any(pointer_of(one) for values in given.values() for one in values):
            return wait
        place = Place(self._place.owner, str(wait.answer["graph_exec_id"]))
        outputs: dict[str, list[Any]] = {}
        for name, values in given.items():
            outputs[name] = [
                one if (pointer := pointer_of(one)) is None else await self._read(place, pointer) for one in values
            ]
        return replace(wait, answer={**wait.answer, "outputs": outputs})

    async def _read(self, place: Place, pointer: Pointer) -> Any:
        try:
            return from_json(await self._blobs.get(place, pointer.sha256))
        except NotFoundError as error:
            what = f"the large value {pointer.sha256[:12]} of execution {place.execution_id}"
            raise NotFoundError(f"{what} is gone") from error


def referenced(row: ExecutionRow, nodes: Sequence[NodeRow]) -> set[str]:
    """The hashes of all blobs that the rows of an execution point to."""
    texts: list[bytes | None] = [row.inputs, row.masks]
    for node in nodes:
        texts += [node.inputs, node.waits, *(value for _, value in node.outputs)]
    return pointers_in(texts)
