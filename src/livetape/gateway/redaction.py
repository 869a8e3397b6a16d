"""Keeps tokens out of logs: web servers write the query string of every handshake."""

from __future__ import annotations

import logging

from livetape.observability import redact

__all__ = ["RedactTokens", "redact"]


class RedactTokens(logging.Filter):
    """Put it on the handlers (or on `uvicorn.access` and `uvicorn.error`): records leave without tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str):
            record.msg = redact(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in record.args)
        return True
