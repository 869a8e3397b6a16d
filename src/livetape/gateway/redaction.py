"""Keeps tokens out of logs: web servers write the query string of every handshake."""

from __future__ import annotations

import logging

from livetape.observability import redact

__all__ = ["RedactTokens", "redact"]


class RedactTokens(logging.Filter):
    """Put it on the handlers (or on `uvicorn.access` and `uvicorn.error`): messages leave without tokens.

    The text of an exception is made later, by the formatter.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str):
            record.msg = redact(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_redacted(arg) for arg in record.args)
        return True


def _redacted(arg: object) -> object:
    if arg is None or isinstance(arg, int | float):  # `%d` wants a number
        return arg
    text = str(arg)
    safe = redact(text)
    return arg if safe == text else safe
