"""What stands in the messages: doorbells and hints to bytes and back, and the steps of a delay. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from pydantic_core import from_json, to_json

from livetape.engine.queue import Doorbell
from livetape.errors import QueueError

STEPS_S: Final = (0.25, 1.0, 5.0, 30.0, 120.0)
"""A delay is made of waits in these queues. Each lets its messages go after the same time, so none waits behind one
that waits longer."""

LEFT: Final = "livetape-delay-left-ms"
"""The header of a delayed message: how long it has to wait yet when it comes out of its queue."""

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""An old publisher puts whole inputs into its messages; what is larger than this is no doorbell."""


class NotADoorbellError(QueueError):
    """This message is no doorbell."""

    code = "not_a_doorbell"


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait of a delay: in which queue, and what is left after it."""

    step_s: float
    left_ms: int


def first_wait(delay_s: float) -> Wait | None:
    """Where a message goes that is due after so many seconds; None: it is due now.

    The longest step that is not too long, so that it comes no sooner than asked, and at most the shortest step later.
    """
    if delay_s <= 0:
        return None
    step = max((step for step in STEPS_S if step <= delay_s), default=STEPS_S[0])
    return Wait(step, max(0, ceil((delay_s - step) * 1000)))


def encode_doorbell(doorbell: Doorbell) -> bytes:
    """The body of its message."""
    return to_json(
        {
            "graph_exec_id": doorbell.graph_exec_id,
            "kind": doorbell.kind,
            "enqueue_no": doorbell.enqueue_no,
            "priority": doorbell.priority,
        }
    )


def decode_doorbell(body: bytes) -> Doorbell:
    """A body as `encode_doorbell` makes it, or an old publisher's `GraphExecutionEntry`: any JSON object that names an
    execution. Nothing else of an old one is read.

    Raises:
        NotADoorbellError
    """
    fields = _object(body)
    kind, enqueue_no, priority = fields.get("kind"), fields.get("enqueue_no"), fields.get("priority")
    return Doorbell(
        _execution(fields),
        enqueue_no if isinstance(enqueue_no, int) else 0,
        kind if isinstance(kind, str) and kind else "run",
        priority if isinstance(priority, int) else 0,
    )


def encode_hint(graph_exec_id: str) -> bytes:
    """The body of a cancel message, the same as an old publisher's."""
    return to_json({"graph_exec_id": graph_exec_id})


def decode_hint(body: bytes) -> str:
    """The id of the execution. Raises NotADoorbellError."""
    return _execution(_object(body))


def left_ms(headers: dict[str, Any] | None) -> int:
    """How long a message has to wait yet, in milliseconds."""
    left = (headers or {}).get(LEFT, 0)
    return left if isinstance(left, int) and left > 0 else 0


def _object(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise NotADoorbellError(f"{len(body)} bytes are too many")
    try:
        fields = from_json(body)
    except ValueError as error:
        raise NotADoorbellError(f"no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise NotADoorbellError("no JSON object")
    return fields


def _execution(fields: dict[str, Any]) -> str:
    found = fields.get("graph_exec_id")
    if not isinstance(found, str) or not found:
        raise NotADoorbellError("it names no execution")
    return found
