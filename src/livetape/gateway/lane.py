"""The shortest way of an event: from the bytes of the bus to the sockets of a topic that only few watch."""

from __future__ import annotations

from struct import Struct
from typing import Final

from livetape.gateway.forms import SocketForm
from livetape.gateway.member import Writer

NODE_OUTPUT: Final = "node_output_update"

EXPRESS_TYPES: Final = {
    name.encode(): name
    for name in (
        "graph_execution_update", "node_execution_update", NODE_OUTPUT,
        "task_started", "task_progress", "outline_generated", "document_generated",
    )
}  # fmt: skip
"""Types of events that are not the last of their tape and stand for nothing else."""

MAX_MEMBERS: Final = 8
"""Where more watch, what a delivery costs is what it costs to write, and slices matter more."""

BEGIN: Final = b'{"payload":'
"""How every envelope begins, and (`HEAD`) those of which the type can be told."""
HEAD: Final = b'{"payload":{"event_type":"'

# A text frame of 126 to 65,535 bytes (RFC 6455, section 5.2).
FRAME: Final = 0x817E
MIN_FRAME: Final = 126
MAX_FRAME: Final = 65_535
FRAME_HEAD_BYTES: Final = 4
frame_head: Final = Struct(">HH").pack


class Lane:
    """What leaves for the members of a topic who all get the same bytes and all have a straight way.

    The topic writes to it (`Topic.express`), the fan-out empties it. Its fields are for these two: an event passes here
    without a call or an object that could be spared, since with a thousand topics each one is a miss of the caches.
    """

    __slots__ = ("_each", "_form", "before", "behind", "frame", "more", "others", "prefix", "rest", "simple", "write")

    def __init__(self, form: SocketForm, writers: list[Writer], *, each: bool) -> None:
        self._form = form
        self._each = each
        self.write, *self.others = writers
        self.simple = not self.others
        """At most one frame waits, for one member."""
        self.frame: bytes | None = None
        """What waits: a frame with a head of `FRAME_HEAD_BYTES`; None while nothing does."""
        self.rest: list[bytes] | None = None
        """The frames that wait behind it."""
        self.prefix = b"-"
        """How the message of the last event began: the next one is most likely of the same type."""
        self.before = self.behind = b""
        """What stands around the payload of an event of this type; `before` is empty when the members are not sent
        it."""
        self.more = 0
        """The bytes of both."""

    def put_behind(self, frame: bytes) -> None:
        """Let it wait behind `frame`."""
        self.simple = False
        if self.rest is None:
            self.rest = [frame]
        else:
            self.rest.append(frame)

    def take(self) -> tuple[bytes, int]:
        """All that waits, as one, and how many frames that is. Nothing waits any more."""
        assert self.frame is not None
        frames = [self.frame, *(self.rest or ())]
        self.frame = self.rest = None
        self.simple = not self.others
        return b"".join(frames), len(frames)

    def turn_to(self, data: bytes) -> bool:
        """Be ready for events like this one. False: it is of no type that may pass here."""
        end = data.find(b'"', len(HEAD))
        event_type = EXPRESS_TYPES.get(data[len(HEAD) : end])
        if event_type is None or not data.startswith(HEAD):
            return False
        around = None if event_type == NODE_OUTPUT and not self._each else self._form.around(event_type)
        self.before, self.behind = around or (b"", b"")
        self.prefix = data[: end + 1]
        self.more = len(self.before) + len(self.behind)
        return True
