"""Channel names of the bus and tape names of the log: build, parse, match. Pure.

A channel is `{bus_name}/{key}`; a key has levels divided by `/`. A tape is `{kind}:{id}`. Every wire name of
livetape is written in this module and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote, unquote

from livetape.errors import ChannelError

EXECUTION_BUS = "execution_event"
NOTIFICATION_BUS = "notification_event"
JOB_BUS = "job_event"
PROBE_BUS = "livetape_probe"
GATEWAY_BUS = "gateway_event"
ENGINE_COMMAND_BUS = "engine_command"
ENGINE_REPLY_BUS = "engine_reply"
ENGINE_COMMANDS = f"{ENGINE_COMMAND_BUS}/*"
"""The pattern on which engine processes listen for commands."""

MAX_PART_CHARS = 200
MAX_KEY_CHARS = 2000
_SAFE = "._~:@|=+-"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LEGAL_PART = re.compile(r"[A-Za-z0-9._~:@|=+\-%]+")


@lru_cache(maxsize=8192)
def encode_part(part: str) -> str:
    """One level of a key as it stands on the wire.

    Characters outside `[A-Za-z0-9._~:@|=+-]` are percent-encoded (a `/` in an id cannot make a new level).

    Raises:
        ChannelError: empty, longer than 200 characters, or with a `*` (a wildcard when listening, never a name).
    """
    if not part or len(part) > MAX_PART_CHARS:
        raise ChannelError(f"a key part has 1 to {MAX_PART_CHARS} characters, not {len(part)}")
    if "*" in part:
        raise ChannelError("a `*` cannot stand in a published key", part=part)
    try:
        return quote(part, safe=_SAFE)
    except UnicodeEncodeError:
        raise ChannelError("a key part with a lone surrogate cannot be written", part=repr(part)) from None


def decode_part(part: str) -> str:
    """The id that `encode_part` was given."""
    return unquote(part)


def encode_pattern_part(part: str) -> str:
    """Like `encode_part`, but `*` stays a wildcard that matches within this level.

    Raises:
        ChannelError: empty, or longer than 200 characters.
    """
    if not part or len(part) > MAX_PART_CHARS:
        raise ChannelError(f"a key part has 1 to {MAX_PART_CHARS} characters, not {len(part)}")
    try:
        return "*".join(quote(piece, safe=_SAFE) for piece in part.split("*"))
    except UnicodeEncodeError:
        raise ChannelError("a key part with a lone surrogate cannot be written", part=repr(part)) from None


@lru_cache(maxsize=8192)
def key_channel(bus_name: str, key: str | tuple[str, ...]) -> str:
    """The channel on which an event with this key is published.

    `key` is a text whose levels are divided by `/`, or a tuple of levels, each of which may hold any character.

    Raises:
        ChannelError: an empty level, a level of more than 200 characters, a key of more than 2,000, a control
            character, or a `*`.
    """
    return f"{bus_name}/{'/'.join(encode_part(level) for level in _levels(key))}"


@lru_cache(maxsize=1024)
def key_pattern(bus_name: str, key: str | tuple[str, ...]) -> str:
    """The channel or pattern for listening to this key; `*` is a wildcard (wire contract, section 1).

    Raises:
        ChannelError: as `key_channel`, except that a `*` may stand anywhere.
    """
    return f"{bus_name}/{'/'.join(encode_pattern_part(level) for level in _levels(key))}"


def check_bus_name(name: str) -> str:
    """The name itself.

    Raises:
        ChannelError: it cannot be the first part of a channel.
    """
    if _LEGAL_PART.fullmatch(name) is None or len(name) > MAX_PART_CHARS:
        raise ChannelError(
            f"a bus is named with 1 to {MAX_PART_CHARS} letters, digits and ._~:@|=+-", name=name[:MAX_PART_CHARS]
        )
    return name


def _levels(key: str | tuple[str, ...]) -> Iterable[str]:
    levels = tuple(key.split("/")) if isinstance(key, str) else key
    if not levels or sum(map(len, levels)) > MAX_KEY_CHARS:
        raise ChannelError(f"a key has 1 to {MAX_KEY_CHARS} characters")
    for level in levels:
        if _CONTROL.search(level) is not None:
            raise ChannelError("a key has no control characters", key=repr(level[:MAX_PART_CHARS]))
    return levels


def execution_channel(user_id: str, graph_id: str, graph_exec_id: str) -> str:
    """The channel on which all events of one execution are published.

    Raises ChannelError as `encode_part`.
    """
    return f"{EXECUTION_BUS}/{encode_part(user_id)}/{encode_part(graph_id)}/{encode_part(graph_exec_id)}"


def execution_pattern(user_id: str, graph_id: str = "*", graph_exec_id: str = "*") -> str:
    """The channel or pattern for listening to executions; missing levels match everything.

    Raises ChannelError as `encode_pattern_part`.
    """
    levels = (encode_pattern_part(part) for part in (user_id, graph_id, graph_exec_id))
    return f"{EXECUTION_BUS}/{'/'.join(levels)}"


def wider_pattern(pattern: str) -> str:
    """All executions of the user within whose channels this pattern of executions lies."""
    bus, user, *_ = pattern.split("/")
    return f"{bus}/{user}/*/*"


def job_channel(job_id: str) -> str:
    """The channel on which the events of one job are published. Raises ChannelError as `encode_part`."""
    return f"{JOB_BUS}/{encode_part(job_id)}"


def notification_channel(user_id: str) -> str:
    """The channel of one user's notifications. Raises ChannelError as `encode_part`."""
    return f"{NOTIFICATION_BUS}/{encode_part(user_id)}"


def gateway_channel() -> str:
    """The channel to which every gateway process listens: what concerns its sockets beside their events."""
    return f"{GATEWAY_BUS}/all"


def engine_command_channel(graph_exec_id: str) -> str:
    """The channel for commands about one execution. Raises ChannelError as `encode_part`."""
    return f"{ENGINE_COMMAND_BUS}/{encode_part(graph_exec_id)}"


def engine_reply_channel(correlation_id: str) -> str:
    """The channel of the answers to one command. Raises ChannelError as `encode_part`."""
    return f"{ENGINE_REPLY_BUS}/{encode_part(correlation_id)}"


def probe_channel(identity: str) -> str:
    """The channel on which one link to a server asks itself whether it still works."""
    return f"{PROBE_BUS}/{encode_part(identity)}"


def execution_tape(graph_exec_id: str) -> str:
    """The tape of one execution. Raises ChannelError as `encode_part`."""
    return f"execution_events:{encode_part(graph_exec_id)}"


def graph_tape(graph_id: str) -> str:
    """The tape of a graph: the graph events of all its executions. Raises ChannelError as `encode_part`."""
    return f"graph_events:{encode_part(graph_id)}"


def job_tape(job_id: str) -> str:
    """The tape of one job (the stream name of the seed's publisher).

    Raises ChannelError as `encode_part`.
    """
    return f"job_events:{encode_part(job_id)}"


def bus_tape(channel: str) -> str:
    """The tape of a channel whose bus is durable: the channel itself is the id."""
    return f"bus_events:{quote(channel, safe=_SAFE)}"


def check_owner(owner: str | None) -> str | None:
    """The user id that a tape is to belong to; None: to nobody.

    Raises:
        ChannelError: empty, or `*`: no user has such an id, and it would be a mistake to let it own anything.
    """
    if owner in ("", "*"):
        raise ChannelError("this cannot be the id of an owner", owner=owner)
    return owner


def split_tape(tape: str) -> tuple[str, str]:
    """`(kind, decoded id)` of a tape name."""
    kind, _, identity = tape.partition(":")
    return kind, decode_part(identity)


def is_pattern(channel: str) -> bool:
    """Whether listening to it may match more than one channel."""
    return "*" in channel


def split_channel(channel: str) -> tuple[str, tuple[str, ...]]:
    """`(bus_name, decoded levels of the key)`.

    Raises:
        ChannelError: no `/` in it.
    """
    bus, slash, key = channel.partition("/")
    if not slash or not bus or not key:
        raise ChannelError("a channel is {bus_name}/{key}", channel=channel)
    return bus, tuple(decode_part(level) for level in key.split("/"))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return compiled(pattern)


def compiled(pattern: str) -> re.Pattern[str]:
    """What `matches` compares a channel with, for who has many patterns and keeps them: not remembered here."""
    bus, _, key = pattern.partition("/")
    if key == "*":  # alone it matches every key of the bus, however many levels it has
        return re.compile(re.escape(bus) + "/.+", re.DOTALL)
    return re.compile("[^/]*".join(re.escape(piece) for piece in pattern.split("*")), re.DOTALL)


def matches(pattern: str, channel: str) -> bool:
    """Whether a message on `channel` belongs to a listener of `pattern`.

    `*` matches within one level, also as part of it; the key `*` alone matches every key of the bus
    (wire contract, section 1). A pattern without `*` matches only itself.
    """
    if "*" not in pattern:
        return pattern == channel
    return _compiled(pattern).fullmatch(channel) is not None


def redis_pattern(pattern: str) -> str:
    """The pattern with the other glob characters of Redis made literal; `*` stays a wildcard."""
    return re.sub(r"([?\[\]\\^])", r"\\\1", pattern)
