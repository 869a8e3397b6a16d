"""The function of the settings that is told of errors that nobody foresaw."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from livetape.errors import ConfigError
from livetape.observability import ErrorHook
from livetape.settings import Settings

LOGGERS = ("livetape", "asyncio")
"""The second tells of what a task or a callback raised and nobody took."""


@contextmanager
def error_hook(settings: Settings) -> Iterator[None]:
    """While the body runs, `error_hook` of the settings is told. Nothing happens when it is not set.

    Raises:
        ConfigError: there is no such function.
    """
    if settings.error_hook is None:
        yield
        return
    module, _, function = settings.error_hook.partition(":")
    try:
        on_error = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot load the error hook {settings.error_hook}",
            because=str(error),
            set_by="error_hook",
            fix="correct LIVETAPE_ERROR_HOOK",
        ) from error
    if not callable(on_error):
        raise ConfigError(
            f"the error hook {settings.error_hook} cannot be called",
            set_by="error_hook",
            fix="name a function that takes an exception and a dict",
        )
    handler = ErrorHook(on_error)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
