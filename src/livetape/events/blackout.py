"""Blacks out what looks like a secret in text for a tape. A courtesy: it does not know every secret. Pure."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"

_PASSWORD_IN_URL: Final = re.compile(r"(://[^/\s:@]{0,200}):[^/\s@]{1,500}@")
_NAMED: Final = re.compile(
    r"(?i)((?:password|passwd|secret|token|api[_-]?key|authorization)[\"']?\s{0,3}[:=]\s{0,3}(?:(?:bearer|basic)\s+)?)"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;)}&\"']+)"
)
_BEARER: Final = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")


def black_out(text: str, max_chars: int) -> str:
    """The text, at most so long, with passwords in URLs and values named like secrets replaced by `***`."""
    text = text[: 4 * max_chars]
    text = _PASSWORD_IN_URL.sub(rf"\1:{MASK}@", text)
    text = _NAMED.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
