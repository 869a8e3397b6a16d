"""Compares quiet topics with their tapes from time to time: nobody tells that the last message was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from livetape.errors import LivetapeError
from livetape.events.log import Position
from livetape.gateway.hub import Hub
from livetape.gateway.reader import Sleep, TapeReader
from livetape.gateway.topic import Topic
from livetape.observability import get_logger

logger = get_logger(__name__)

SLICES: Final = 5
"""The topics are looked at in so many portions, spread over the interval."""

AT_ONCE: Final = 8


class Sweep:
    """A topic is looked at that has had no event since the last time, and one whose tape has no owner yet or of which
    the log does not have everything. Finished and mixed ones are not: nothing comes there, or they are polled anyway.
    """

    def __init__(
        self,
        hub: Hub,
        reader: TapeReader,
        heal: Callable[[Topic], None],
        *,
        interval_s: float,
        sleep: Sleep = asyncio.sleep,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._hub = hub
        self._reader = reader
        self._heal = heal
        self._interval_s = interval_s
        self._sleep = sleep
        self._on_turn = on_turn
        self._seen: dict[Topic, Position] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for number in range(SLICES):
                await self._sleep(self._interval_s / SLICES)
                self._on_turn()
                self._reader.tidy()
                await self.look_at([topic for topic in self._hub.topics() if _slice_of(topic) == number])
            self._seen = {topic: position for topic, position in self._seen.items() if topic.references}

    async def look_at(self, topics: list[Topic]) -> None:
        """Compare those of them that are due."""
        due = [topic for topic in topics if self._is_due(topic)]
        for first in range(0, len(due), AT_ONCE):
            portion = due[first : first + AT_ONCE]
            answers = await asyncio.gather(*(self._look(topic) for topic in portion), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, LivetapeError):
                    logger.warning("tapes cannot be compared: %s", answer, extra={"action": "sweep_unavailable"})
                    return  # the log is away: the next time is soon enough
                if isinstance(answer, BaseException):
                    logger.error("a tape cannot be compared", extra={"action": "sweep_failed"}, exc_info=answer)

    def _is_due(self, topic: Topic) -> bool:
        if not (topic.references and topic.begun and topic.readable) or topic.denied or topic.mixed:
            return False
        before, self._seen[topic] = self._seen.get(topic), topic.position
        is_doubtful = topic.ahead is not None or (topic.bound and topic.owner is None)
        return is_doubtful or (before == topic.position and not topic.final and not topic.repairing)

    async def _look(self, topic: Topic) -> None:
        turn = topic.turn
        tape = await self._reader.look(topic)
        if tape is None or topic.denied:
            return
        await self._reader.verify(topic)
        if topic.turn != turn or topic.mixed or tape.offset > topic.position.offset:
            self._heal(topic)


def _slice_of(topic: Topic) -> int:
    return hash(topic.key) % SLICES
