"""What can be set on a gateway."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from livetape.events.jobs import UnownedJobs


class GatewayOptions(BaseModel):
    """Limits and times of a gateway; the settings are composed from it. Names match `settings.GatewaySettings`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ping_interval_seconds: float = Field(25.0, gt=0, description="A ping goes out this often.")
    ping_timeout_seconds: float = Field(60.0, gt=0, description="After an unanswered ping the socket is closed (4009).")
    max_message_bytes: int = Field(64 * 1024, ge=1, description="The largest message taken from a client.")
    max_channels: int = Field(1_024, ge=1, description="Live subscriptions of one socket; finished ones do not count.")
    max_sockets_per_user: int = Field(20, ge=1, description="Sockets of one user in one process; not with auth off.")
    max_sockets: int = Field(20_000, ge=1, description="Sockets of one process.")
    max_streams_per_user: int = Field(
        100, ge=1, description="Event streams of one user in one process; not with auth off."
    )
    max_streams: int = Field(5_000, ge=1, description="Event streams of one process.")
    refuse_delay_min_seconds: float = Field(1.0, ge=0, description="A refused connection is answered no sooner.")
    refuse_delay_max_seconds: float = Field(5.0, ge=0, description="A refused connection is answered no later.")
    outbox_max_bytes: int = Field(8 * 1024 * 1024, ge=1, description="Bytes that may wait for one slow client.")
    outbox_max_messages: int = Field(4_096, ge=1, description="Messages that may wait for one slow client.")
    slow_seconds: float = Field(30.0, gt=0, description="A client that stays behind for so long is closed (4008).")
    messages_per_second: float = Field(50.0, gt=0, description="Messages a second that a client may send for long.")
    message_burst: int = Field(1_000, ge=1, description="Messages that a client may send at once before it is slowed.")
    flood_seconds: float = Field(30.0, ge=0, description="A client that must be slowed for so long is closed (4029).")
    expiry_notice_seconds: float = Field(60.0, ge=0, description="`token_expiring` comes so long before the end.")
    expiry_grace_seconds: float = Field(
        30.0, ge=0, description="The socket is closed (4003), a stream ends so long after the end."
    )
    ticket_seconds: float = Field(30.0, gt=0, description="A ticket opens a socket for so long, once.")
    tickets_per_user: int = Field(
        100, ge=1, description="Tickets of one user within `ticket_seconds`; not with auth off."
    )
    longest_token_seconds: float = Field(
        400 * 86_400.0, gt=0, description="No token lives longer: so long revoked users are remembered."
    )
    jobs_unowned: UnownedJobs = Field("admin", description="Who may watch jobs that have no owner.")
    replay_chunk_bytes: int = Field(256 * 1024, ge=1, description="About as much is read from a tape at once.")
    replay_chunk_events: int = Field(256, ge=1, le=1000, description="At most so many events are read at once.")
    replay_cache_bytes: int = Field(
        16 * 1024 * 1024, ge=1, description="Bytes of tapes, kept for a moment for all who read the same."
    )
    sweep_seconds: float = Field(25.0, gt=0, description="Quiet tapes are compared with the log this often.")
    tail_max_events: int = Field(1_024, ge=1, description="Live events kept for those who are still reading a tape.")
    tail_max_bytes: int = Field(4 * 1024 * 1024, ge=1, description="Bytes of live events kept for them.")
    max_event_bytes: int = Field(
        16 * 1024 * 1024, ge=1, description="A larger event is shortened, or told as an error."
    )
    close_seconds: float = Field(5.0, gt=0, description="A client has so long to take what is left and the close.")
    keepalive_seconds: float = Field(15.0, gt=0, description="A comment on an event stream that is silent for so long.")
