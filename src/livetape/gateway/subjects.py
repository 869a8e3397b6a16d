"""What a client can watch: an execution, a graph or a job. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from livetape.events import channel
from livetape.events.log import Tape


class Kind(StrEnum):
    """The kinds of subjects."""

    EXECUTION = "execution"
    GRAPH = "graph"
    JOB = "job"


_TAPES: Final = {Kind.EXECUTION: channel.execution_tape, Kind.GRAPH: channel.graph_tape, Kind.JOB: channel.job_tape}
_TAPE_PREFIXES: Final = {kind: name("x").removesuffix("x") for kind, name in _TAPES.items()}
_CLIENT_CHANNELS: Final = {
    Kind.EXECUTION: "{user}|graph_exec#{id}",
    Kind.GRAPH: "{user}|graph#{id}|executions",
    Kind.JOB: "{user}|job#{id}",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One execution, one graph (the graph events of all its executions) or one job."""

    kind: Kind
    id: str

    @classmethod
    def of_tape(cls, tape: str) -> Self:
        """The subject whose tape has this name."""
        for kind, prefix in _TAPE_PREFIXES.items():
            if tape.startswith(prefix):
                return cls(kind, channel.decode_part(tape.removeprefix(prefix)))
        raise ValueError(f"no tape of an execution, graph or job: {tape}")

    @property
    def tape(self) -> str:
        """The name of its tape.

        Raises:
            ChannelError: the id cannot be part of a name.
        """
        return _TAPES[self.kind](self.id)

    def client_channel(self, user_id: str) -> str:
        """The channel name that this user's clients see. Never split again: a part may hold any character."""
        return _CLIENT_CHANNELS[self.kind].format(user=user_id, id=self.id)

    def bus_pattern(self, tape: Tape | None, user_id: str) -> str:
        """Where to listen for it.

        The exact channel when the tape's metadata tells it; else a pattern within the user's own channels, which can
        never deliver another user's events. A job's channel does not tell the user.
        """
        if self.kind is Kind.JOB:
            return channel.job_channel(self.id)
        if self.kind is Kind.GRAPH:
            return _pattern(tape.owner if tape and tape.owner else user_id, graph_id=self.id)
        if tape is not None and tape.owner is not None and not channel.is_pattern(tape.channel):
            return tape.channel
        return _pattern(user_id, graph_exec_id=self.id)

    @property
    def channel_proves_owner(self) -> bool:
        """Whether a bus channel of this kind names the user that its events belong to."""
        return self.kind is not Kind.JOB


def _pattern(user_id: str, *, graph_id: str | None = None, graph_exec_id: str | None = None) -> str:
    """A `*` in an id would be a wildcard for other people's events: `encode_part` refuses it."""
    for part in (user_id, graph_id, graph_exec_id):
        if part is not None:
            channel.encode_part(part)
    return channel.execution_pattern(user_id, graph_id or "*", graph_exec_id or "*")
