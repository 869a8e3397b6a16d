"""A topic whose events may go the shortest way: by a lane (`lane.py`), or at least without being taken apart."""

from __future__ import annotations

from typing import Final

from livetape.events.recovery import Tail
from livetape.gateway.fan_out import FanOut
from livetape.gateway.frames import valid_text
from livetape.gateway.lane import (
    BEGIN,
    EXPRESS_TYPES,
    FRAME,
    HEAD,
    MAX_FRAME,
    MIN_FRAME,
    NODE_OUTPUT,
    Lane,
    frame_head,
)
from livetape.gateway.marks import MARKS
from livetape.gateway.messages import Push
from livetape.gateway.topic import Topic, TopicKey

_BEGIN_BYTES: Final = len(BEGIN)
_HEAD_BYTES: Final = len(HEAD)


class ExpressTopic(Topic):
    """`express` does for the next event of a steady topic what `offer` does, and nothing else."""

    __slots__ = ("_lane", "_max_express_bytes", "_numbers")

    def __init__(
        self, key: TopicKey, pattern: str, *, proven: bool, tail: Tail, max_event_bytes: int, fan_out: FanOut
    ) -> None:
        super().__init__(key, pattern, proven=proven, tail=tail, max_event_bytes=max_event_bytes, fan_out=fan_out)
        self._lane: Lane | None = None
        self._numbers = self._marks.numbers
        self._max_express_bytes = min(max_event_bytes, MAX_FRAME)

    def express(self, data: bytes) -> bool:
        """A message of the bus as it came. True: it was the very next event, in our own form, and is handed over with
        the next `FanOut.flush`; False: it has to be taken apart (`offer`).

        The end of the message tells it, so nothing is parsed: a quote inside a JSON string is escaped.
        """
        lane = self._lane
        if lane is None and (lane := self._open_lane()) is None:
            return self._express_wide(data)
        offset = self._offset + 1
        tail = self._tail % offset
        if not data.endswith(tail) or not (data.startswith(lane.prefix) or lane.turn_to(data)):
            return False
        payload = data[_BEGIN_BYTES : -len(tail)]
        size = len(payload) + lane.more + len(tail)
        if not MIN_FRAME <= size <= self._max_express_bytes or not (
            payload.isascii() or valid_text(payload) is payload
        ):
            return self._express_wide(data)
        self._numbers[offset % MARKS] = hash(payload)
        self._heard_to = self._offset = offset
        self._position = None
        if lane.before:
            frame = b"".join((frame_head(FRAME, size), lane.before, payload, lane.behind, tail))
            if lane.frame is None:
                lane.frame = frame
                self._fan_out.lanes.append(lane)
            else:
                lane.put_behind(frame)
        return True

    def _express_wide(self, data: bytes) -> bool:
        """The same for any number of members, of any kind."""
        if not self._is_steady or len(data) > self._max_event_bytes:
            return False
        before = self._offset
        offset = before + 1
        tail = self._tail % offset
        if not data.endswith(tail) or not data.startswith(HEAD):
            return False
        event_type = EXPRESS_TYPES.get(data[_HEAD_BYTES : data.find(b'"', _HEAD_BYTES)])
        if event_type is None:
            return False
        self._close_lane()
        payload = data[_BEGIN_BYTES : -len(tail)]
        self._numbers[offset % MARKS] = hash(payload)
        epoch = self._epoch
        self._heard_to = self._offset = offset
        self._position = None
        is_output = event_type == NODE_OUTPUT
        for group in tuple(self.groups.values()):
            if is_output and not group.each:
                continue
            body = group.form.next_event(event_type, payload, offset, epoch, tail)
            if body is not None:
                self._fan_out.put(group, Push(body), (epoch, before), only_each=is_output)
        return True

    def _open_lane(self) -> Lane | None:
        if len(self.groups) != 1 or not self._is_steady:
            return None
        (group,) = self.groups.values()
        self._lane = self._fan_out.lane(group)
        return self._lane

    def _close_lane(self) -> None:
        """What waits in it leaves now."""
        if self._lane is not None:
            lane, self._lane = self._lane, None
            self._fan_out.hand(lane)
