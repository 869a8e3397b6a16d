"""The event that is measured, and its bytes on each kind of bus. Marks are filled in by the load client (c/load.c)."""

from __future__ import annotations

import json
import struct

CHANNEL = "777777777"
STAMP = "8888888888888888888"
OFFSET = "1666666666"
FIRST_OFFSET = 1_000_000_001
"""Of a channel's first event, where the load client numbers them; with fixed width, for the lengths in a command."""

TOKEN = "TOKEN"

USER_ID = f"user-{CHANNEL}"
GRAPH_ID = "graph-5f0f9c42"
EXECUTION_ID = f"exec-{CHANNEL}"
EVENT_TYPE = "node_execution_update"
BUS_CHANNEL = f"execution_event/{USER_ID}/{GRAPH_ID}/{EXECUTION_ID}"
USUAL_BYTES = 331


def payload(size: int = USUAL_BYTES) -> bytes:
    """A node execution as the seed publishes it, of this many bytes."""
    event = {
        "event_type": EVENT_TYPE,
        "user_id": USER_ID,
        "graph_id": GRAPH_ID,
        "graph_version": 1,
        "graph_exec_id": EXECUTION_ID,
        "node_exec_id": "node-exec-1b2c3d4e",
        "node_id": "node-5f607182",
        "block_id": "block-93a4b5c6",
        "status": "COMPLETED",
        "input_data": {"t": STAMP},
        "output_data": {"text": [""]},
    }
    event["output_data"] = {"text": ["x" * (size - len(_compact(event)))]}
    return _compact(event)


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def subscribe_message(since: object = None) -> str:
    """What a client says (wire contract, section 3)."""
    data: dict[str, object] = {"graph_exec_id": EXECUTION_ID}
    if since is not None:
        data["since"] = since
    return json.dumps({"method": "subscribe_graph_execution", "data": data}, separators=(",", ":"))


def framed(channel: str, data: bytes) -> bytes:
    """For the TCP bus of c/limit.c and of the Node peers."""
    name = channel.encode()
    return struct.pack(">HI", len(name), len(data)) + name + data


def redis_command(*words: str | bytes) -> bytes:
    """A command as Redis reads it."""
    parts = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def wrapped(data: bytes) -> bytes:
    """The message of a plain seed publisher."""
    return b'{"payload":%b}' % data
