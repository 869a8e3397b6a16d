"""An `ErrorReporter` over Sentry's own client. Nothing global is set: an application may have a Sentry beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import sentry_sdk
from sentry_sdk.types import Event, Hint
from sentry_sdk.utils import BadDsn

from livetape.errors import ConfigError
from livetape.observability import redact

CLOSE_S: Final = 2.0
"""What is still to be sent has so long at the end."""

USER: Final = "user_id"
"""This tag is Sentry's user."""


class SentryReporter:
    """Sends errors in a thread of its own; texts of exceptions lose their tokens, and no values of variables are sent.

    Within `scope`, what code of others gives to `sentry_sdk` goes the same way with the same tags.

    Raises:
        ConfigError: the DSN is none.
    """

    def __init__(self, dsn: str, *, environment: str, release: str) -> None:
        try:
            self._client = sentry_sdk.Client(
                dsn=dsn,
                environment=environment,
                release=release,
                before_send=_clean,
                default_integrations=False,  # they listen to logs and exceptions of the whole process
                auto_enabling_integrations=False,
                include_local_variables=False,
                max_breadcrumbs=0,
            )
        except BadDsn as error:
            raise ConfigError(
                "the DSN of Sentry cannot be used",
                because=str(error).replace(dsn, "***"),
                fix="copy it from the settings of the project in Sentry: https://KEY@HOST/NUMBER",
            ) from None

    def report(self, error: BaseException, context: Mapping[str, Any]) -> None:
        """Hand it over to be sent; never waits."""
        with sentry_sdk.new_scope() as scope:
            scope.set_client(self._client)
            scope.set_context("livetape", dict(context))
            for name in ("logger", "action"):
                if name in context:
                    scope.set_tag(name, str(context[name]))
            scope.capture_exception(error)

    @contextmanager
    def scope(self, tags: Mapping[str, str]) -> Iterator[None]:
        """What is reported within has these tags; afterwards everything is as it was."""
        with sentry_sdk.isolation_scope() as scope:
            scope.set_client(self._client)
            if USER in tags:
                scope.set_user({"id": tags[USER]})
            scope.set_tags({name: value for name, value in tags.items() if name != USER})
            yield

    def close(self) -> None:
        """Send what waits, for `CLOSE_S` seconds at most."""
        self._client.close(timeout=CLOSE_S)


def _clean(event: Event, _hint: Hint) -> Event:
    for told in event.get("exception", {}).get("values", ()):
        if isinstance(told.get("value"), str):
            told["value"] = redact(told["value"])
    return event
