"""Control events: what every gateway process must know at once, apart from the events that it pushes. Pure but for
`Control`, which publishes them.

They travel on one channel of the bus (wire contract, section 1). Whoever may publish on the bus may close sockets with
them, and can do nothing else.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from livetape.auth import Principal
from livetape.errors import CodecError
from livetape.events.bus import Bus
from livetape.events.channel import gateway_channel
from livetape.events.codec import Envelope, split
from livetape.gateway.subjects import Subject

Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def _in_utc(moment: datetime) -> datetime:
    """What names no time zone is meant in UTC: it could not be compared with anything else."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


Moment = Annotated[datetime, AfterValidator(_in_utc)]


class ControlEvent(BaseModel):
    """What all of them share. Fields that are not known are ignored: a newer version may have sent it."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PermissionChanged(ControlEvent):
    """Who may see what is not what it was: of this user, of this tape, or (neither is named) of anybody anywhere."""

    event_type: Literal["permission_changed"] = "permission_changed"
    user_id: Name | None = None
    tape: Name | None = None

    def affects(self, principal: Principal, subject: Subject) -> bool:
        """Whether this subscription has to be checked again.

        With `tape`, that of a guest is, whichever user is named: who shares a tape is not known from the guest.
        """
        if self.tape is not None and self.tape != subject.tape:
            return False
        return self.user_id in (None, principal.user_id) or principal.is_guest


class TokensRevoked(ControlEvent):
    """Tokens hold no longer: one, or all that a user was given until `at` (None: until this event comes).

    `until`: when the last of them would have ended by itself; None: not known. A time without a zone is in UTC.
    """

    event_type: Literal["tokens_revoked"] = "tokens_revoked"
    user_id: Name | None = None
    token_id: Name | None = None
    at: Moment | None = None
    until: Moment | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.user_id is None) == (self.token_id is None):
            raise ValueError("either user_id or token_id")
        return self

    def affects(self, principal: Principal) -> bool:
        """Whether this principal came with such a token. One that does not tell when it was issued is an old one."""
        if self.token_id is not None:
            return principal.token_id == self.token_id
        if principal.user_id != self.user_id:
            return False
        return self.at is None or principal.issued_at is None or principal.issued_at <= self.at


AnyControlEvent: TypeAlias = PermissionChanged | TokensRevoked

_EVENTS: Final[TypeAdapter[AnyControlEvent]] = TypeAdapter(
    Annotated[AnyControlEvent, Field(discriminator="event_type")]
)


def encode_control(event: AnyControlEvent) -> bytes:
    """The bytes for the bus."""
    return Envelope(event.model_dump_json(exclude_none=True).encode(), event.event_type).encode()


def decode_control(data: bytes | Envelope) -> AnyControlEvent | None:
    """The control event of a message; None for one that this version does not know or that is none."""
    try:
        envelope = data if isinstance(data, Envelope) else split(data)
        return _EVENTS.validate_json(envelope.payload)
    except (CodecError, ValidationError):
        return None


class Control:
    """Tells every gateway process.

    Every method raises:
        BusUnavailableError: nothing is known about who has heard it; say it again.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def permission_changed(self, *, user_id: str | None = None, tape: str | None = None) -> None:
        """Every subscription that it concerns is checked again, and ends when it is not allowed any more.

        To be called after the change can be read. `tape` is a tape's name (`execution_tape(…)`).
        """
        await self.publish(PermissionChanged(user_id=user_id, tape=tape))

    async def publish(self, event: AnyControlEvent) -> None:
        """Tell this."""
        await self._bus.publish(gateway_channel(), encode_control(event))
