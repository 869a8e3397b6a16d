"""Names of what is watched."""

from __future__ import annotations

import pytest

from livetape.errors import ChannelError
from livetape.events.channel import execution_channel, execution_tape, graph_tape, job_tape, matches
from livetape.events.log import Tape
from livetape.gateway.subjects import Kind, Subject

EXECUTION = Subject(Kind.EXECUTION, "E")
GRAPH = Subject(Kind.GRAPH, "G")
JOB = Subject(Kind.JOB, "J")


def tape(owner: str | None, channel: str = "execution_event/U/G/E") -> Tape:
    return Tape("t", owner, "G", channel, "e", 3, 1, final=False)


def test_client_channels() -> None:
    assert EXECUTION.client_channel("U") == "U|graph_exec#E"
    assert GRAPH.client_channel("U") == "U|graph#G|executions"
    assert JOB.client_channel("U") == "U|job#J"


@pytest.mark.parametrize(
    ("subject", "name"), [(EXECUTION, execution_tape("E")), (GRAPH, graph_tape("G")), (JOB, job_tape("J"))]
)
def test_a_tape_has_its_subject(subject: Subject, name: str) -> None:
    assert subject.tape == name
    assert Subject.of_tape(name) == subject


def test_any_id_comes_back_from_its_tape() -> None:
    odd = Subject(Kind.JOB, "a/b:c 100%")
    assert Subject.of_tape(odd.tape) == odd
    with pytest.raises(ValueError, match="no tape"):
        Subject.of_tape("something:else")


def test_where_to_listen() -> None:
    assert EXECUTION.bus_pattern(tape("U"), "U") == "execution_event/U/G/E"
    assert EXECUTION.bus_pattern(None, "U") == "execution_event/U/*/E"
    assert EXECUTION.bus_pattern(tape(None, ""), "U") == "execution_event/U/*/E"
    assert GRAPH.bus_pattern(tape("U", "execution_event/U/G/*"), "U") == "execution_event/U/G/*"
    assert GRAPH.bus_pattern(None, "U") == "execution_event/U/G/*"
    assert JOB.bus_pattern(None, "U") == "job_event/J"


def test_without_an_owner_only_the_own_channels_are_listened_to() -> None:
    pattern = EXECUTION.bus_pattern(None, "U")
    assert matches(pattern, execution_channel("U", "any", "E"))
    assert not matches(pattern, execution_channel("V", "any", "E"))


@pytest.mark.parametrize("user", ["*", "a*", ""])
def test_a_star_is_no_way_to_other_people(user: str) -> None:
    for subject in (EXECUTION, GRAPH):
        with pytest.raises(ChannelError):
            subject.bus_pattern(None, user)
