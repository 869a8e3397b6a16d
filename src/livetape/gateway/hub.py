"""Everything that is watched in this process: which message of the bus concerns whom. Pure: no await, no lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from livetape.events.channel import is_pattern, wider_pattern
from livetape.events.codec import Envelope
from livetape.events.recovery import REPLACEMENT, Tail
from livetape.events.tape_event import TapeEvent
from livetape.gateway.express_topic import ExpressTopic
from livetape.gateway.fan_out import FanOut, Later, Tally
from livetape.gateway.messages import Push
from livetape.gateway.sender import Sender
from livetape.gateway.subjects import Kind
from livetape.gateway.topic import Topic, TopicKey

MAX_REMEMBERED_CHANNELS: Final = 50_000

MAX_OWN_PATTERNS: Final = 8
"""So many topics within the channels of one user listen by patterns of their own. A server compares every message of
everybody with every pattern, and a client may name as many ids as it likes that nobody knows: what is more shares one.
"""

GRAPH_UPDATE: Final = "graph_execution_update"


class Hub:
    """All topics of this process, and the sockets of each user.

    What `dispatch` finds waits until `flush`, or (`later`) until the next turn of the loop.
    """

    def __init__(
        self,
        *,
        tail_max_events: int,
        tail_max_bytes: int,
        max_event_bytes: int,
        later: Later | None = None,
        sender: Sender | None = None,
    ) -> None:
        self._tail_max_events = tail_max_events
        self._tail_max_bytes = tail_max_bytes
        self._max_event_bytes = max_event_bytes
        self.tally = Tally()
        self._fan_out = FanOut(self.tally, later=later, sender=sender)
        self._topics: dict[TopicKey, ExpressTopic] = {}
        self._routes: dict[str, list[ExpressTopic]] = {}
        self._patterned: Counter[str] = Counter()  # topics with a pattern of their own, by the wider one
        self._sole: dict[str, ExpressTopic | None] = {}  # of each channel that was asked for; None: not just one
        self.lanes: dict[bytes, Callable[[bytes], bool]] = {}
        """`express`, already looked up, for channels (as UTF-8) of which there have been messages."""
        self._listeners: dict[str, set[Callable[[Push], bool]]] = {}

    def topics(self) -> list[ExpressTopic]:
        """All of them, as a copy."""
        return list(self._topics.values())

    @property
    def sizes(self) -> tuple[int, int]:
        """How many topics there are, and how many hold them."""
        return len(self._topics), sum([topic.references for topic in self._topics.values()])

    def topic(self, key: TopicKey) -> Topic | None:
        """What is watched under this key, if it is and can still be."""
        topic = self._topics.get(key)
        return None if topic is None or topic.denied else topic

    def hold(self, key: TopicKey, pattern: str) -> ExpressTopic:
        """The topic of this key, made when there is none that can still be watched. To be given back with `release`."""
        topic = self._topics.get(key)
        if topic is None or topic.denied:
            topic = self._topics[key] = ExpressTopic(
                key,
                pattern,
                # A tape with an owner was checked before; a channel may itself say whose its events are.
                proven=key.reader is None or key.subject.channel_proves_owner,
                tail=Tail(self._tail_max_events, self._tail_max_bytes),
                max_event_bytes=self._max_event_bytes,
                fan_out=self._fan_out,
            )
            topic.listens_to = self._listen_to(pattern)
            self._routes.setdefault(pattern, []).append(topic)
            self._forget_sole()
        topic.references += 1
        return topic

    def release(self, topic: Topic) -> bool:
        """Give it back. True when nobody holds it any more and it is gone."""
        topic.references -= 1
        routes = self._routes.get(topic.pattern, [])
        if topic.references > 0 or topic not in routes:
            return False
        if self._topics.get(topic.key) is topic:  # or another has taken the place of one that was denied
            del self._topics[topic.key]
        routes.remove(topic)
        self._forget_pattern(topic.listens_to)
        self._forget_sole()
        if not routes:
            del self._routes[topic.pattern]
        return True

    def express(self, channel: str, data: bytes) -> bool:
        """A message as it came. True: it concerned one topic, was its very next event, and waits for `flush`; False:
        take it apart and `dispatch` it."""
        try:
            topic = self._sole[channel]
        except KeyError:
            topics = self.routed(channel)
            is_sole = len(topics) == 1 and topics[0].subject.kind is not Kind.GRAPH
            if len(self._sole) >= MAX_REMEMBERED_CHANNELS:
                self._forget_sole()
            topic = self._sole[channel] = topics[0] if is_sole else None
            if topic is not None:
                self.lanes[channel.encode()] = topic.express
        return topic is not None and topic.express(data)

    def dispatch(self, channel: str, envelope: Envelope) -> Sequence[Topic]:
        """Hand a message of the bus to whom it concerns; returns the topics whose log has to be read."""
        if envelope.event_type == REPLACEMENT and envelope.offset is None:
            topics = self.routed(channel)
            for topic in topics:
                topic.stale = topic.stale or topic.mixed
            return topics
        return [
            topic
            for topic in self.routed(channel)
            if (event := event_for(topic.subject.kind, envelope)) is not None and topic.offer(event)
        ]

    def hand_lanes(self) -> None:
        """Hand over what `express` took, as far as that is ready: before anything else that came with it."""
        self._fan_out.hand_lanes()

    def flush(self) -> None:
        """Hand over what waits: to be called when all messages that came together have been dispatched."""
        self._fan_out.hand_lanes()
        self._fan_out.flush()

    def routed(self, channel: str) -> list[ExpressTopic]:
        """The topics that a message on this channel concerns."""
        return [topic for name in candidates(channel) for topic in self._routes.get(name, ())]

    def _listen_to(self, pattern: str) -> str:
        """This, or while there are many of that user all that is its."""
        if not is_pattern(pattern) or (wider := wider_pattern(pattern)) == pattern:
            return pattern
        if self._patterned[wider] >= MAX_OWN_PATTERNS:
            return wider
        self._patterned[wider] += 1
        return pattern

    def _forget_pattern(self, listened_to: str) -> None:
        """The twin of `_listen_to`."""
        if is_pattern(listened_to) and (wider := wider_pattern(listened_to)) != listened_to:
            self._patterned[wider] -= 1
            if not self._patterned[wider]:
                del self._patterned[wider]

    def _forget_sole(self) -> None:
        self._sole.clear()
        self.lanes.clear()

    # ---- what goes to every socket of a user -----------------------------------------------------------------------

    def listen(self, channel: str, put: Callable[[Push], bool]) -> None:
        """Hand over what comes on this channel (a user's notifications)."""
        self._listeners.setdefault(channel, set()).add(put)

    def unlisten(self, channel: str, put: Callable[[Push], bool]) -> None:
        """The twin of `listen`."""
        members = self._listeners.get(channel, set())
        members.discard(put)
        if not members:
            self._listeners.pop(channel, None)

    def notify(self, channel: str, push: Push) -> None:
        """Hand a push to the listeners of a channel. There is no log of these: who has no room misses it."""
        listeners = self._listeners.get(channel, ())
        taken = sum(put(push) for put in listeners)
        self.tally.delivered += taken
        self.tally.delivered_bytes += taken * push.size
        self.tally.refused += len(listeners) - taken


def event_for(kind: Kind, envelope: Envelope) -> TapeEvent | None:
    """The event as it stands on a tape of this kind; None when it is not on such a tape."""
    if kind is Kind.GRAPH:
        is_replaced = envelope.event_type == REPLACEMENT and envelope.graph_offset is not None
        if envelope.event_type != GRAPH_UPDATE and not is_replaced:
            return None
        return TapeEvent(envelope.event_type, envelope.payload, envelope.graph_offset, envelope.graph_epoch)
    return TapeEvent(envelope.event_type, envelope.payload, envelope.offset, envelope.epoch, envelope.final)


@lru_cache(maxsize=4096)
def candidates(channel: str) -> tuple[str, ...]:
    """The channel and the patterns under which topics listen to it: one level below the user replaced by `*`."""
    levels = channel.split("/")
    stars = ("/".join([*levels[:index], "*", *levels[index + 1 :]]) for index in range(2, len(levels)))
    return (channel, *stars)
