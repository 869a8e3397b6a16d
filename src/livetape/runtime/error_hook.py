"""Who is told of errors that nobody foresaw: the function that the settings name, or a Sentry."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib.metadata import version as package_version
from typing import Any, Final

from livetape.errors import ConfigError
from livetape.observability import ErrorHook, ErrorReporter, NoReporter, OnError
from livetape.runtime.named import named_function
from livetape.settings import Settings

LOGGERS = ("livetape", "asyncio")
"""The second tells of what a task or a callback raised and nobody took."""

_TAGS: Final[ContextVar[Mapping[str, str]]] = ContextVar("livetape_error_tags")


class FunctionReporter:
    """Calls a function; the tags of the work in which it happened are in the context."""

    def __init__(self, on_error: OnError) -> None:
        self._on_error = on_error

    def report(self, error: BaseException, context: Mapping[str, Any]) -> None:
        """Raises what the function raises."""
        self._on_error(error, {**_TAGS.get({}), **context})

    @contextmanager
    def scope(self, tags: Mapping[str, str]) -> Iterator[None]:
        """Within another scope both hold, the inner one before."""
        token = _TAGS.set({**_TAGS.get({}), **tags})
        try:
            yield
        finally:
            _TAGS.reset(token)


@contextmanager
def error_hook(settings: Settings) -> Iterator[ErrorReporter]:
    """While the body runs, `error_hook` or `sentry_dsn` of the settings is told. Nobody is when neither is set.

    Raises:
        ConfigError: there is no such function, the DSN is none, or its driver is not installed.
    """
    with ExitStack() as stack:
        reporter = _reporter(settings, stack)
        if not isinstance(reporter, NoReporter):
            handler = ErrorHook(reporter.report)
            stack.callback(handler.close)
            for name in LOGGERS:
                logger = logging.getLogger(name)
                logger.addHandler(handler)
                stack.callback(logger.removeHandler, handler)
        yield reporter


def _reporter(settings: Settings, stack: ExitStack) -> ErrorReporter:
    if settings.error_hook is not None:
        return FunctionReporter(named_function(settings.error_hook, "the error hook", setting="error_hook"))
    if settings.sentry_dsn is None:
        return NoReporter()
    try:
        from livetape.adapters.sentry.reporter import SentryReporter
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Sentry needs a driver that is not installed",
            because=str(error),
            set_by="sentry_dsn",
            fix="pip install 'livetape[sentry]'",
        ) from error
    try:
        reporter = SentryReporter(
            settings.sentry_dsn.get_secret_value(),
            environment=settings.app_env,
            release=f"livetape@{package_version('livetape')}",
        )
    except ConfigError as error:
        error.set_by = "sentry_dsn"
        raise
    stack.callback(reporter.close)
    return reporter
