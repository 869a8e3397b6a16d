"""The words of a call of the appending script. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from pydantic_core import to_json

from livetape.adapters.redis.commands import Word
from livetape.adapters.redis.entries import form_of
from livetape.adapters.redis.keys import keys_of, writer_key
from livetape.events.log import NewEvent
from livetape.events.recorder import AS_RECORDED, Live

Claim = tuple[str, str]
"""Channel and owner as words: alike for all events of one call."""

NO_CLAIM: Final[Claim] = ("", "")


def claim_of(channel: str, owner: str | None = None, *, any_owner: bool = False) -> Claim:
    """Push on `channel` ("" does not), and claim the tape for `owner`."""
    if owner is None:
        return (channel, "")
    return (channel, ("*" if any_owner else "=") + owner)


def event_words(
    tape: str, claim: Claim, event: NewEvent, live: Live = AS_RECORDED, idempotency_key: str | None = None
) -> tuple[Word, ...]:
    """One event of a call."""
    form = form_of(tape, event)
    if live is AS_RECORDED and idempotency_key is None and not event.final:
        return form
    letters = form[0]
    more: list[Word] = []
    if live.payload is not None and claim[0]:
        letters += "l"
        more.append(live.payload)
    if event.final or live.lossy or live.traceparent is not None:
        letters += "t"
        more.append(_tail(event, live))
    if idempotency_key is not None:
        letters += "k"
        more.append(idempotency_key)
    return (letters, *form[1:], *more)


def key_words(tape: str, writer: str) -> tuple[str, ...]:
    """The keys of a call."""
    return (*keys_of(tape), writer_key(tape, writer))


def call_words(
    digest: str,
    keys: Sequence[str],
    claim: Claim,
    events: Iterable[Sequence[Word]],
    *,
    sequence: int,
    repeated: bool,
    epoch: str,
    now_us: int,
    keep: str,
    most: int,
) -> list[Word]:
    """The call: `keep` and `most` are what `retention.words` gives, `epoch` is for a tape that is new."""
    first = f"+{sequence}" if repeated else sequence
    words: list[Word] = ["EVALSHA", digest, 5, *keys, first, epoch, now_us, *claim, keep, most]
    for event in events:
        words += event
    return words


def _tail(event: NewEvent, live: Live) -> bytes:
    """What `Envelope.encode` writes behind the position."""
    parts = []
    if event.final:
        parts.append(b',"final":true')
    if live.lossy:
        parts.append(b',"lossy":true')
    if live.traceparent is not None:
        parts.append(b',"traceparent":' + to_json(live.traceparent))
    parts.append(b"}")
    return b"".join(parts)
