"""What the node executions of one execution wait for: asked once, answered once, kept with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias
from uuid import NAMESPACE_OID, uuid5

from pydantic_core import from_json, to_json

from livetape.clock import Clock
from livetape.engine.block_ports import ChildResult, ReviewAnswer, Wait
from livetape.engine.changes import Ended, Happening, NodeRun, Resumed
from livetape.engine.durable_waits import waits_from_json, waits_to_json
from livetape.engine.large_values import LargeValues
from livetape.engine.plain_text import kept_text
from livetape.errors import BlockExecutionError
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ExecutionRow, ExecutionStore, NewExecution
from livetape.store.reviews import NewReview, ReviewStatus

FIRST_ASK: Final = 1_000_000
"""Waits from this number on are not the block's: the engine asks whether an interrupted node may run again."""

INTERRUPTED: Final = "The worker was lost while this ran, and it may have done a part of its work. Run it again?"

MakeChild: TypeAlias = Callable[[ExecutionRow, NodeRun, str, Wait], Awaitable[NewExecution]]
"""What starts a child with this id; raises a LivetapeError when there can be none."""


async def no_children(_row: ExecutionRow, _run: NodeRun, _child_id: str, _wait: Wait) -> NewExecution:
    raise BlockExecutionError("this engine runs no graphs inside graphs")


@dataclass(slots=True)
class Asked:
    """What a suspension starts, in the commit that records it."""

    children: list[NewExecution] = field(default_factory=list)
    reviews: list[NewReview] = field(default_factory=list)


class Waiting:
    """The waits of one execution in the hands of one worker."""

    def __init__(
        self,
        row: ExecutionRow,
        store: ExecutionStore,
        clock: Clock,
        make_child: MakeChild,
        *,
        ahead: timedelta = timedelta(0),
        values: LargeValues | None = None,
    ) -> None:
        self._row = row
        self._store = store
        self._clock = clock
        self._ahead = ahead
        self._values = values
        self._make_child = make_child
        self._asked: dict[int, Asked] = {}
        self._changed: dict[int, NodeRun] = {}
        self._answered: dict[int, NodeRun] = {}
        self._known: set[str] = set()
        self.wakes = row.wakes
        self.ever = False
        """Whether anything of this execution has ever waited, as far as is known here."""

    def restore(self, run: NodeRun, waits: bytes) -> None:
        """A stored node execution that has waits."""
        self.ever = True
        run.waits = waits_from_json(waits)
        self._known.update(_subject(run, wait) for wait in run.waits)

    async def ask(self, run: NodeRun, waits: Iterable[Wait]) -> None:
        """Add what it waits for now. Raises a LivetapeError when something cannot be waited for."""
        asked = Asked()
        kept = {wait.number: wait for wait in run.waits}
        for wait in waits:
            if wait.number in kept:
                continue
            kept[wait.number] = wait
            subject = _subject(run, wait)
            if wait.kind == "child":
                child = await self._make_child(self._row, run, subject, wait)
                asked.children.append(child)
                kept[wait.number] = _with_pointers(wait, child)
            elif wait.kind == "review":
                kept[wait.number] = moved = await self._moved(wait)
                asked.reviews.append(_review(run, subject, moved))
        run.waits = tuple(kept[number] for number in sorted(kept))
        self._asked[run.seq] = asked
        self._changed[run.seq] = run
        self.ever = True

    async def _moved(self, wait: Wait) -> Wait:
        """With a pointer in place of data that is large."""
        if self._values is None:
            return wait
        return replace(wait, request={**wait.request, "data": await self._values.move(wait.request.get("data"))})

    def ask_again(self, run: NodeRun) -> None:
        """Ask a person whether this interrupted node execution may run again."""
        number = FIRST_ASK + self._row.lease_no
        request = {"data": None, "name": INTERRUPTED, "editable": False}
        wait = Wait(number, "review", request)
        run.waits = (*run.waits, wait)
        self._asked[run.seq] = Asked(reviews=[_review(run, _subject(run, wait), wait)])
        self._changed[run.seq] = run
        self.ever = True

    def follow(self) -> None:
        """The planner is about to hear of every answer so far: they are written with what follows from them.

        Never before: an answer that is kept while its node still waits would be looked for by nobody.
        """
        self._changed |= self._answered
        self._answered.clear()

    def take(self) -> tuple[dict[int, bytes], Asked]:
        """What is to be written now: journals by `seq`, and what is started with them."""

        together = Asked()
        for asked in self._asked.values():
            together.children += asked.children
            together.reviews += asked.reviews
        journals = {seq: waits_to_json(run.waits) for seq, run in self._changed.items()}
        for run in self._changed.values():
            self._known.update(_subject(run, wait) for wait in run.waits)
        self._asked.clear()
        self._changed.clear()
        return journals, together

    async def collect(self, suspended: Mapping[int, NodeRun]) -> list[Happening]:
        """Those whose child has ended or whose review is decided go on."""
        places: dict[str, tuple[NodeRun, Wait]] = {}
        happened: list[Happening] = []
        for run in suspended.values():
            if run.seq not in self._answered and all(wait.answer is not None for wait in run.waits):
                happened.append(Resumed(run.seq))
            for wait in run.waits:
                if wait.answer is None and wait.kind != "timer" and (subject := _subject(run, wait)) in self._known:
                    places[subject] = (run, wait)
        if not places:
            return happened
        children = [subject for subject, (_, wait) in places.items() if wait.kind == "child"]
        reviews = [subject for subject, (_, wait) in places.items() if wait.kind == "review"]
        found = await self._store.outcomes(self._row.id, children, reviews)
        self.wakes = max(self.wakes, found.wakes)
        for child in found.children:
            run, wait = places[child.execution_id]
            result = ChildResult(child.execution_id, child.status.value, child.outputs, child.error)
            happened += self._answer(run, wait, asdict(result))
        for review in found.reviews:
            if review.status is ReviewStatus.CANCELLED:
                continue
            run, wait = places[review.id]
            answer = ReviewAnswer(review.status is ReviewStatus.APPROVED, from_json(review.payload), review.message)
            if wait.number >= FIRST_ASK and not answer.approved:
                self._answer(run, wait, asdict(answer))
                said = f"not run again: {answer.message}" if answer.message else "it was decided not to run it again"
                happened.append(Ended(run.seq, ExecutionStatus.FAILED, said, "worker_lost"))
            else:
                happened += self._answer(run, wait, asdict(answer))
        return happened

    def due(self, suspended: Mapping[int, NodeRun]) -> list[Happening]:
        """Those whose time has come go on."""
        if not suspended:
            return []
        now = self.now()
        happened: list[Happening] = []
        for run in suspended.values():
            for wait in run.waits:
                if wait.answer is None and wait.due is not None and wait.due <= now:
                    happened += self._answer(run, wait, {})
        return happened

    def now(self) -> datetime:
        """The moment by the database's clock, which says when an execution is due."""
        return self._clock.now() + self._ahead

    def next_due(self, suspended: Mapping[int, NodeRun]) -> datetime | None:
        """The earliest timer."""
        return min((w.due for run in suspended.values() for w in run.waits if w.answer is None and w.due), default=None)

    def asks(self, run: NodeRun) -> bool:
        """Whether a person is asked."""
        return any(wait.answer is None and wait.kind == "review" for wait in run.waits)

    def of_block(self, run: NodeRun) -> Sequence[Wait]:
        """The waits that the block itself asked for."""
        return [wait for wait in run.waits if wait.number < FIRST_ASK]

    def _answer(self, run: NodeRun, wait: Wait, answer: Mapping[str, object]) -> list[Happening]:
        number = 1 + max((w.answered_no for w in run.waits), default=0)
        answered = replace(wait, answer=answer, answered_no=number)
        run.waits = tuple(answered if w.number == wait.number else w for w in run.waits)
        self._answered[run.seq] = run
        return [Resumed(run.seq)]


def _subject(run: NodeRun, wait: Wait) -> str:
    """The id of the child or review: one for each wait, whoever makes it however often."""
    return str(uuid5(NAMESPACE_OID, f"{run.id}/{wait.number}"))


def _with_pointers(wait: Wait, child: NewExecution) -> Wait:
    """With what is kept of the child's inputs: the journal is written and read again each time the block goes on."""
    masks = {} if child.masks is None else from_json(child.masks)
    return replace(wait, request={**wait.request, "inputs": from_json(child.inputs), "node_input_masks": masks})


def _review(run: NodeRun, review_id: str, wait: Wait) -> NewReview:
    return NewReview(
        id=review_id,
        node_exec_id=run.id,
        number=wait.number,
        payload=to_json(wait.request.get("data")),
        instructions=kept_text(str(wait.request.get("name", ""))),
        editable=bool(wait.request.get("editable", True)),
    )
