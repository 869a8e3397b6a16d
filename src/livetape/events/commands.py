"""Commands to the engine and their answers, as they travel on the bus (wire contract, section 3). Pure.

A gateway asks on `engine_command/{graph_exec_id}`; every engine process that has the store answers on
`engine_reply/{correlation_id}`.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from livetape.errors import CodecError
from livetape.events.codec import split

STOP: Final = "stop_graph_execution"
STOP_REPLY: Final = "stop_graph_execution_reply"


class StopCommand(BaseModel):
    """Ask for the end of an execution of this user."""

    model_config = ConfigDict(frozen=True)

    event_type: Literal["stop_graph_execution"] = STOP
    user_id: str = Field(min_length=1)
    graph_exec_id: str = Field(min_length=1, max_length=200)
    correlation_id: str = Field(min_length=1, max_length=200)


class StopReply(BaseModel):
    """What became of it. `accepted`: the wish is committed. `error` otherwise says why not: `not_found`, or another
    code of `livetape.errors`."""

    model_config = ConfigDict(frozen=True)

    event_type: Literal["stop_graph_execution_reply"] = STOP_REPLY
    correlation_id: str
    accepted: bool
    error: str | None = None


def encode(message: StopCommand | StopReply) -> bytes:
    """The bytes for the bus."""
    return b'{"payload":%b}' % to_json(message, exclude_none=True)


def decode_command(data: bytes) -> StopCommand:
    """The command in a message of the bus.

    Raises:
        CodecError: it is none.
    """
    try:
        return StopCommand.model_validate_json(split(data).payload)
    except ValidationError as error:
        raise CodecError("not a command to the engine") from error


def decode_reply(data: bytes) -> StopReply:
    """The answer in a message of the bus.

    Raises:
        CodecError: it is none.
    """
    try:
        return StopReply.model_validate_json(split(data).payload)
    except ValidationError as error:
        raise CodecError("not an answer of the engine") from error
