"""Notifications to one user: models of the seed's notification bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, SerializeAsAny


class NotificationPayload(BaseModel):
    """What a notification says. Fields beyond `type` and `event` are kept, those of subclasses too."""

    model_config = ConfigDict(extra="allow")

    type: str
    event: str

    if TYPE_CHECKING:
        # Fields beyond the declared ones, for type checkers without Pydantic's plugin.
        def __init__(self, *, type: str, event: str, **more: Any) -> None: ...  # noqa: A002 - the field's name
        def __getattr__(self, name: str) -> Any: ...


class OnboardingNotificationPayload(NotificationPayload):
    """A step of the first tour was done; None: the tour changed as a whole."""

    type: str = "onboarding"
    step: str | None = None


class CopilotCompletionPayload(NotificationPayload):
    """A chat session came to its end."""

    type: str = "copilot_completion"
    event: str = "session_completed"
    session_id: str
    status: Literal["completed", "failed"]


class NotificationEvent(BaseModel):
    """A notification for every socket of one user. Received payloads are `NotificationPayload` with extra fields."""

    user_id: str
    payload: SerializeAsAny[NotificationPayload]
