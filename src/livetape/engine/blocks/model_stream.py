"""Reads the streamed answer of a chat completions endpoint, and trusts nothing in it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx2
from pydantic_core import from_json, to_json

from livetape.engine.blocks.language_model import ModelBusyError
from livetape.engine.blocks.options import ModelOptions
from livetape.engine.output_values import as_json
from livetape.errors import BlockExecutionError

BUSY: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
CONNECT_S: Final = 10.0
MAX_LINE: Final = 1024 * 1024
MAX_ANSWER: Final = 8 * 1024 * 1024
MAX_TOLD: Final = 300
"""Characters of what an endpoint says of an error that are passed on."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer; each part may be missing."""

    text: str = ""
    finish_reason: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)


class ModelClient:
    """Asks the endpoint of the options."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options
        self._context: ssl.SSLContext | None = None

    async def stream(
        self, body: Mapping[str, Any], *, key: str, now: Callable[[], datetime]
    ) -> AsyncGenerator[Piece, None]:
        """The answer piece by piece; returns when it is whole.

        Raises:
            ModelBusyError: nothing has come, and it is worth asking again.
            BlockExecutionError: anything else that is wrong.
        """
        given = False
        try:
            async with aclosing(self._pieces(body, key, now)) as pieces:
                async for piece in pieces:
                    given = given or bool(piece.text)
                    yield piece
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            how = "said nothing for too long" if isinstance(error, httpx2.TimeoutException) else "broke off"
            if given:
                raise BlockExecutionError(f"the stream of the language model {how}") from None
            raise ModelBusyError(f"the language model cannot be reached: {type(error).__name__}") from None
        except httpx2.InvalidURL:
            raise BlockExecutionError("llm.base_url is not a URL") from None

    async def _pieces(
        self, body: Mapping[str, Any], key: str, now: Callable[[], datetime]
    ) -> AsyncGenerator[Piece, None]:
        options = self._options
        if self._context is None:  # it reads all certificates of the system: once
            self._context = await asyncio.to_thread(httpx2.create_ssl_context)
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "idempotency-key": key,
        }
        if options.api_key:
            headers["authorization"] = f"Bearer {options.api_key}"
        url = f"{(options.base_url or '').rstrip('/')}/chat/completions"
        timeout = httpx2.Timeout(options.silence_s, connect=min(CONNECT_S, options.silence_s))
        async with (
            httpx2.AsyncClient(verify=self._context, timeout=timeout, follow_redirects=False) as client,
            client.stream("POST", url, headers=headers, content=to_json(as_json(body))) as response,
        ):
            if response.status_code != 200:
                raise await _refusal(response, now())
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "application/json":  # an endpoint that does not stream
                yield _whole(await _bytes(response))
                return
            async with aclosing(_events(response)) as events:
                async for event in events:
                    yield _piece(event)


async def _events(response: httpx2.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of the event stream, up to its end mark.

    Raises:
        BlockExecutionError: not such a stream, too long, or without an end.
    """
    buffer, total, finished = b"", 0, False
    async for chunk in response.aiter_bytes():
        total += len(chunk)
        if total > 8 * MAX_ANSWER:  # each token is wrapped in many times its length
            raise BlockExecutionError("the answer of the language model is too long")
        *lines, buffer = (buffer + chunk).replace(b"\r\n", b"\n").split(b"\n")
        if len(buffer) > MAX_LINE:
            raise BlockExecutionError("the language model sent a line that is too long")
        for line in lines:
            name, _, value = line.partition(b":")
            if name != b"data" or not (data := value.strip()):
                continue  # a comment, an empty line, or a field that does not matter
            if data == b"[DONE]":
                return
            event = _object(data)
            finished = finished or _is_last(event)
            yield event
    if not finished:
        raise BlockExecutionError("the stream of the language model broke off")


def _object(data: bytes) -> dict[str, Any]:
    try:
        event = from_json(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise BlockExecutionError("the language model sent something that is not JSON")
    if event.get("error"):
        raise BlockExecutionError(f"the language model failed: {_told(event)}")
    return event


def _is_last(event: dict[str, Any]) -> bool:
    return bool(_choice(event).get("finish_reason"))


def _piece(event: dict[str, Any]) -> Piece:
    choice = _choice(event)
    delta = choice.get("delta")
    return Piece(_content(delta), _reason(choice), _usage(event))


def _whole(content: bytes) -> Piece:
    event = _object(content)
    choice = _choice(event)
    if not choice:
        raise BlockExecutionError("the language model sent no answer")
    return Piece(_content(choice.get("message")), _reason(choice), _usage(event))


def _choice(event: dict[str, Any]) -> dict[str, Any]:
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _content(part: Any) -> str:
    content = part.get("content") if isinstance(part, dict) else None
    return content if isinstance(content, str) else ""


def _reason(choice: dict[str, Any]) -> str:
    reason = choice.get("finish_reason")
    return reason[:100] if isinstance(reason, str) else ""


def _usage(event: dict[str, Any]) -> Mapping[str, Any]:
    usage = event.get("usage")
    return usage if isinstance(usage, dict) else {}


async def _refusal(response: httpx2.Response, now: datetime) -> BlockExecutionError:
    status = response.status_code
    if status in BUSY:
        return ModelBusyError(f"the language model is busy (HTTP {status})", _retry_after(response, now))
    if status in {401, 403}:  # what it says may hold a part of the key
        return BlockExecutionError(f"the language model refuses the key (HTTP {status}): see llm.api_key")
    try:
        said = _told(from_json(await _bytes(response)))
    except (ValueError, BlockExecutionError, httpx2.HTTPError):
        said = ""
    return BlockExecutionError(
        f"the language model refuses the request (HTTP {status})" + (f": {said}" if said else "")
    )


def _told(event: Any) -> str:
    error = event.get("error") if isinstance(event, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else "no reason given"
    return " ".join(text.split())[:MAX_TOLD]


def _retry_after(response: httpx2.Response, now: datetime) -> float | None:
    """Seconds, from seconds or a date; None if it says neither."""
    text = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
        seconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None


async def _bytes(response: httpx2.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise BlockExecutionError("the answer of the language model is too long")
    return bytes(content)
