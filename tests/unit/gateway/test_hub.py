"""Which message of the bus concerns whom."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from livetape.auth import Principal
from livetape.events.channel import execution_channel, execution_pattern, job_channel, matches
from livetape.events.codec import Envelope, too_large_payload
from livetape.events.log import Position
from livetape.events.tape_event import TapeEvent
from livetape.gateway.forms import SocketForm
from livetape.gateway.hub import MAX_OWN_PATTERNS, Hub, candidates, event_for
from livetape.gateway.member import Writer
from livetape.gateway.messages import Push
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.topic import Topic, TopicKey

EXECUTION = Subject(Kind.EXECUTION, "E")
GRAPH = Subject(Kind.GRAPH, "G")
CHANNEL = execution_channel("U", "G", "E")


class Sink:
    each = False

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.got: list[Push] = []

    def put(self, push: Push, /) -> bool:
        self.got.append(push)
        return True

    def fell_behind(self, position: Position) -> None:
        raise AssertionError(position)

    def finished(self) -> None: ...


def hub() -> Hub:
    return Hub(tail_max_events=10, tail_max_bytes=1000, max_event_bytes=1000)


def watched(made: Hub, subject: Subject, pattern: str, user: str = "U") -> tuple[Topic, Sink]:
    topic, sink = made.hold(TopicKey(subject), pattern), Sink()
    if not topic.begun:
        topic.begin(Position("e", 0), final=False)
    topic.join(sink, SocketForm.of(subject.client_channel(user), is_job=False), None)
    return topic, sink


def node_event(offset: int) -> Envelope:
    return Envelope(b"{}", "node_execution_update", offset, "e")


def graph_event(offset: int, graph_offset: int | None, *, final: bool = False) -> Envelope:
    epoch = None if graph_offset is None else "e"
    return Envelope(b"{}", "graph_execution_update", offset, "e", graph_offset, epoch, final=final)


def test_a_graph_event_reaches_both_channels_a_node_event_one() -> None:
    made = hub()
    _, execution = watched(made, EXECUTION, CHANNEL)
    _, graph = watched(made, GRAPH, execution_pattern("U", "G"))
    assert made.dispatch(CHANNEL, node_event(1)) == []
    assert made.dispatch(CHANNEL, graph_event(2, 1, final=True)) == []
    by_execution = [json.loads(push.data) for push in execution.got]
    by_graph = [json.loads(push.data) for push in graph.got]
    assert [(body["channel"], body["offset"]) for body in by_execution] == [
        ("U|graph_exec#E", 1),
        ("U|graph_exec#E", 2),
    ]
    assert [(body["channel"], body["offset"]) for body in by_graph] == [("U|graph#G|executions", 1)]
    assert by_execution[-1]["final"] is True
    assert "final" not in by_graph[0], "a graph's tape has no end"


def test_other_executions_of_the_graph_reach_its_channel_alone() -> None:
    made = hub()
    _, execution = watched(made, EXECUTION, CHANNEL)
    _, graph = watched(made, GRAPH, execution_pattern("U", "G"))
    made.dispatch(execution_channel("U", "G", "F"), graph_event(1, 1))
    made.dispatch(execution_channel("U", "H", "F"), graph_event(1, 1))
    made.dispatch(execution_channel("V", "G", "F"), graph_event(1, 1))
    assert (len(execution.got), len(graph.got)) == (0, 1)


def test_an_execution_without_metadata_is_found_by_user_and_id() -> None:
    made = hub()
    _, sink = watched(made, EXECUTION, execution_pattern("U", graph_exec_id="E"))
    made.dispatch(execution_channel("U", "any", "E"), node_event(1))
    made.dispatch(execution_channel("V", "any", "E"), node_event(1))
    assert len(sink.got) == 1


def test_a_graph_event_that_is_not_on_the_graphs_tape_is_live_only() -> None:
    event = event_for(Kind.GRAPH, graph_event(4, None))
    assert event is not None
    assert (event.offset, event.epoch) == (None, None)
    assert event_for(Kind.GRAPH, node_event(1)) is None


def test_a_topic_is_shared_and_gone_with_its_last_holder() -> None:
    made = hub()
    one, _ = watched(made, EXECUTION, CHANNEL)
    two, _ = watched(made, EXECUTION, CHANNEL)
    assert one is two
    assert not made.release(one)
    assert made.topics() == [one]
    assert made.release(one)
    assert made.topics() == []
    assert made.routed(CHANNEL) == []
    assert not made.release(one), "given back too often does no harm"


def test_without_an_owner_each_principal_has_its_own_topic() -> None:
    made = hub()
    one = made.hold(TopicKey(EXECUTION, Principal("U")), execution_pattern("U", graph_exec_id="E"))
    two = made.hold(TopicKey(EXECUTION, Principal("V")), execution_pattern("V", graph_exec_id="E"))
    known = made.hold(TopicKey(EXECUTION), CHANNEL)
    assert len({id(one), id(two), id(known)}) == 3
    assert made.routed(CHANNEL) == [known, one]
    assert (one.proven, one.readable, known.proven, known.readable) == (True, False, True, True)
    job = made.hold(TopicKey(Subject(Kind.JOB, "J"), Principal("U")), job_channel("J"))
    assert (job.proven, job.readable) == (False, False)


def test_many_patterns_of_one_user_become_one() -> None:
    made = hub()
    topics = []
    for number in range(MAX_OWN_PATTERNS * 3):
        name = str(number)
        key = TopicKey(Subject(Kind.EXECUTION, name), Principal("U"))
        topics.append(made.hold(key, execution_pattern("U", graph_exec_id=name)))
    anothers = made.hold(TopicKey(EXECUTION, Principal("V")), execution_pattern("V", graph_exec_id="E"))
    known = made.hold(TopicKey(EXECUTION), CHANNEL)
    asked = {topic.listens_to for topic in topics}
    assert len(asked) == MAX_OWN_PATTERNS + 1
    assert execution_pattern("U") in asked
    assert (anothers.listens_to, known.listens_to) == (anothers.pattern, CHANNEL)
    for topic in topics:
        assert matches(topic.listens_to, execution_channel("U", "any", topic.subject.id))
        assert made.routed(execution_channel("U", "any", topic.subject.id)) == [topic]
        assert topic.listens_to.startswith("execution_event/U/")
    for topic in topics:
        assert made.release(topic)
    again = made.hold(TopicKey(EXECUTION, Principal("U")), execution_pattern("U", graph_exec_id="E"))
    assert again.listens_to == again.pattern
    made.release(again)
    made.release(anothers)
    assert not made._patterned


def test_a_hole_names_the_topic_to_repair() -> None:
    made = hub()
    topic, sink = watched(made, EXECUTION, CHANNEL)
    assert made.dispatch(CHANNEL, node_event(2)) == [topic]
    assert sink.got == []


def replaced(offset: int | None = None, graph_offset: int | None = None) -> Envelope:
    epoch, graph_epoch = (None if number is None else "e" for number in (offset, graph_offset))
    payload = too_large_payload(20_000_000, 16_777_216)
    return Envelope(payload, "error_comms_update", offset, epoch, graph_offset, graph_epoch)


def test_in_place_of_an_event_that_is_too_large_for_the_bus_the_log_is_read() -> None:
    made = hub()
    execution, sink = watched(made, EXECUTION, CHANNEL)
    graph, _ = watched(made, GRAPH, execution_pattern("U", "G"))
    assert made.dispatch(CHANNEL, replaced()) == [execution, graph], "nobody knows where it belongs"
    assert made.dispatch(CHANNEL, replaced(1)) == [execution]
    assert made.dispatch(CHANNEL, replaced(2, 1)) == [execution, graph]
    assert sink.got == []
    execution.advance(TapeEvent("node_execution_update", b"{}", 1, "e"))
    assert made.dispatch(CHANNEL, replaced(1)) == [], "it has come from there"


def test_what_goes_to_every_socket_of_a_user() -> None:
    made, one, two = hub(), Sink(), Sink()
    made.listen("notification_event/U", one.put)
    made.listen("notification_event/U", two.put)
    made.listen("notification_event/V", Sink().put)
    push = Push(b"{}")
    made.notify("notification_event/U", push)
    assert one.got == two.got == [push]
    made.unlisten("notification_event/U", one.put)
    made.unlisten("notification_event/U", one.put)
    made.unlisten("notification_event/X", one.put)
    made.notify("notification_event/U", push)
    assert (len(one.got), len(two.got), made.tally.delivered) == (1, 2, 3)


IDS = st.text("abc/%*.", min_size=1, max_size=4).filter(lambda text: "*" not in text)


@given(IDS, IDS, IDS, IDS, IDS, IDS)
def test_the_index_agrees_with_the_rules_of_wildcards(
    user: str, graph: str, execution: str, other_user: str, other_graph: str, other_execution: str
) -> None:
    channel = execution_channel(user, graph, execution)
    for pattern in (
        execution_channel(other_user, other_graph, other_execution),
        execution_pattern(other_user, graph_exec_id=other_execution),
        execution_pattern(other_user, other_graph),
    ):
        assert (pattern in candidates(channel)) == matches(pattern, channel)
