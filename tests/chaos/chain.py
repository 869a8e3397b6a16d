"""What a watcher of a gateway saw, as running hashes; and what is wrong with it, held against the log. Pure.

A `Chain` is fed the text messages of one subscription as they came. It keeps a SHA-256 over (number, bytes of the
event) for each stretch that hangs together, so that any number of events costs nothing to keep. A stretch ends only
where the server said so: by a `gap`, or by `recovered:false` in the reply to a position. Everything else that is not
the next number is a complaint. `Truth.judge` compares the stretches with the log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

EVENTS: Final = ("job_event", "graph_execution_event", "node_execution_event", "node_output_event")
TAIL: Final = b',"success":null,"channel":'


class FrameError(ValueError):
    """A message that is not built as the wire contract says."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its method, the bytes of its `data`, and all other keys."""

    method: str
    data: bytes
    keys: dict[str, Any]


def parse(text: bytes) -> Message:
    """Raises FrameError."""
    if not text.startswith(b'{"method":"'):
        raise FrameError(f"does not begin with its method: {text[:80]!r}")
    end = text.index(b'"', 11)
    method = text[11:end].decode()
    if method in EVENTS:
        # A quote inside a string is escaped, and nothing of the event stands after this place.
        at = text.rfind(TAIL)
        if at < 0 or text[end : end + 9] != b'","data":'[:9]:
            raise FrameError(f"not the five keys in their order: {text[:80]!r}")
        return Message(method, text[end + 9 : at], json.loads(b"{" + text[at + 1 :]))
    keys = json.loads(text)
    return Message(method, json.dumps(keys.pop("data", None)).encode(), keys)


def link(digest: Any, offset: int, payload: bytes) -> None:
    """One more event. The lengths stand there so that nothing can hide between two events."""
    digest.update(b"%d:%d:" % (offset, len(payload)))
    digest.update(payload)


@dataclass(slots=True)
class Stretch:
    """Numbers that follow each other, of one epoch. `told`: how the server announced that one begins here."""

    epoch: str
    first: int
    told: str
    last: int = 0
    count: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class Chain:
    """One watcher of one tape, over all its connections. `since` is where it asks to go on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stretches: list[Stretch] = []
        self.complaints: list[str] = []
        self.losses: list[str] = []
        self.too_large: list[tuple[str, int]] = []
        self.epoch = ""
        self.offset = 0
        self.final = False
        self._told = "earliest"
        """How the next event may begin a new stretch; empty: it may not."""
        self._next: int | None = None
        """With which number the next stretch has to begin; None: nobody can say."""

    @property
    def since(self) -> Any:
        return {"epoch": self.epoch, "offset": self.offset} if self.epoch else "earliest"

    # ---- what comes ------------------------------------------------------------------------------------------------

    def subscribed(self, data: dict[str, Any] | None) -> None:
        """The reply to a subscribe with `since`."""
        if data is None:
            self.complaints.append(f"{self.name}: a reply without a position")
        elif data["recovered"] is not True:
            if not self.epoch and data["epoch"] is None:
                return  # there is no tape yet, so nothing is lost
            self._lose(f"recovered:false at {self.epoch} {self.offset}: {json.dumps(data)}")
            if data["epoch"] is not None:
                self.epoch, self.offset = data["epoch"], int(data["offset"])
                self._next = self.offset + 1
            else:
                self.epoch, self.offset, self._next = "", 0, None
        elif self.epoch and data["epoch"] != self.epoch:
            self.complaints.append(f"{self.name}: recovered in {data['epoch']}, but it was in {self.epoch}")

    def take(self, message: Message) -> None:
        """A push on this subscription's channel."""
        keys = message.keys
        if message.method in EVENTS:
            if "offset" not in keys:
                self.complaints.append(f"{self.name}: without a number: {message.data[:120]!r}")
                return
            if keys.get("truncated") is True:  # told to be not the whole; what it is nobody can check here
                self._not_whole(keys["offset"], keys["epoch"])
                return
            self._event(keys["offset"], keys["epoch"], message.data, final=keys.get("final", False))
        elif message.method == "gap":
            gap = json.loads(message.data)
            self._lose(f"gap at {self.epoch} {self.offset}: {json.dumps(gap)}")
            if gap["epoch"] is not None and gap["epoch"] != self.epoch:
                self.epoch, self.offset = gap["epoch"], 0
            if gap["to"] is not None:
                self.offset = int(gap["to"])
                self._next = self.offset + 1
        elif message.method == "replay_complete":
            where = (keys["epoch"], keys["offset"])
            if self.epoch and where != (self.epoch, self.offset) and not self._told:
                self.complaints.append(f"{self.name}: complete at {where}, but it has {self.epoch} {self.offset}")
        elif message.method == "error" and keys.get("code") == "payload_too_large" and "offset" in keys:
            self._not_whole(keys["offset"], keys["epoch"])

    def _not_whole(self, offset: int, epoch: str) -> None:
        self.too_large.append((epoch, offset))
        self._step(offset, epoch, "too large")
        self._lose(f"too large: {epoch} {offset}")
        self._next = offset + 1

    def _event(self, offset: int, epoch: str, payload: bytes, *, final: bool) -> None:
        if self.final and not self._told:
            self.complaints.append(f"{self.name}: number {offset} came after the last one")
        self.final = final
        if not self._step(offset, epoch, "event"):
            return
        stretch = self.stretches[-1] if self.stretches and not self._told else None
        if stretch is None:
            stretch = Stretch(epoch, offset, self._told or "?")
            self.stretches.append(stretch)
            self._told = ""
        stretch.last = offset
        stretch.count += 1
        link(stretch.digest, offset, payload)

    def _step(self, offset: int, epoch: str, what: str) -> bool:
        """To this number. False when it cannot come now; the complaint is made, and the position is taken back."""
        if self._told:
            wanted = self._next
            if not self.epoch:
                wanted = wanted or (1 if not self.stretches else None)
            elif epoch != self.epoch and self._next is not None:
                self.complaints.append(f"{self.name}: {what} of {epoch}, but told was {self.epoch}")
            if wanted is not None and offset != wanted:
                self.complaints.append(f"{self.name}: {what} {offset} where {wanted} was told to be next")
        elif epoch != self.epoch:
            self.complaints.append(f"{self.name}: {what} {offset} of epoch {epoch} after {self.epoch}, without a word")
            self._told = "nothing was told"
        elif offset != self.offset + 1:
            kind = "came again" if offset <= self.offset else "is a hole"
            self.complaints.append(f"{self.name}: {what} {offset} after {self.offset} {kind}")
            if offset <= self.offset:
                return False
            self._told = "nothing was told"
        self.epoch, self.offset, self._next = epoch, offset, None
        return True

    def _lose(self, text: str) -> None:
        self.losses.append(f"{self.name}: {text}")
        self._told = text
        self._next = None
        self.final = False


class Truth:
    """One tape as it really was: every event there ever was, by epoch and number; and how it stands now."""

    def __init__(self) -> None:
        self.events: dict[str, dict[int, bytes]] = {}
        self.epoch = ""
        self.offset = 0
        self._known: dict[tuple[str, int, int], str] = {}

    def add(self, epoch: str, offset: int, payload: bytes) -> str | None:
        """A complaint when something else stood there before."""
        before = self.events.setdefault(epoch, {}).setdefault(offset, payload)
        return None if before == payload else f"two events are {epoch} {offset}"

    def log(self, epoch: str, entries: list[tuple[int, bytes]]) -> list[str]:
        """How the tape stands now, read from the log itself."""
        complaints = [text for offset, payload in entries if (text := self.add(epoch, offset, payload))]
        offsets = [offset for offset, _ in entries]
        if offsets and offsets != list(range(offsets[0], offsets[0] + len(offsets))):
            complaints.append("the log itself has a hole")
        self.epoch, self.offset = epoch, offsets[-1] if offsets else 0
        return complaints

    def digest(self, epoch: str, first: int, last: int) -> str:
        """Of these events; another one for every event that nobody knows."""
        key = (epoch, first, last)
        if key not in self._known:
            made = hashlib.sha256()
            known = self.events.get(epoch, {})
            for offset in range(first, last + 1):
                link(made, offset, known.get(offset, b"(nobody knows)"))
            self._known[key] = made.hexdigest()
        return self._known[key]

    def judge(self, chain: Chain, *, may_lose: bool = False, start: int = 1) -> Iterator[str]:
        """Everything that is wrong with what this watcher saw. `start`: the first number that it must have."""
        yield from chain.complaints
        if not may_lose:
            yield from chain.losses
        if not chain.stretches:
            if self.offset >= start:
                yield f"{chain.name}: saw nothing of {self.offset} events"
            return
        if (chain.epoch, chain.offset) != (self.epoch, self.offset):
            yield f"{chain.name}: ended at {chain.epoch} {chain.offset}, not at {self.epoch} {self.offset}"
        for number, stretch in enumerate(chain.stretches):
            where = f"{chain.name}: {stretch.first}..{stretch.last} of {stretch.epoch}"
            if number == 0 and stretch.first != start and not chain.losses:
                yield f"{where} does not begin at {start}"
            if stretch.count != stretch.last - stretch.first + 1:
                yield f"{where} has {stretch.count} events"
            if stretch.digest.hexdigest() != self.digest(stretch.epoch, stretch.first, stretch.last):
                yield f"{where} has another hash than the log"


def judge_texts(texts: list[bytes], truth: Truth, **more: Any) -> list[str]:
    """Of a whole transcript, replies to subscribes included."""
    chain = Chain("watcher")
    for text in texts:
        message = parse(text)
        if message.method.startswith("subscribe_"):
            chain.subscribed(json.loads(message.data))
        else:
            chain.take(message)
    return list(truth.judge(chain, **more))
