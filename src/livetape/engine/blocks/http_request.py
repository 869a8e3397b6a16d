"""SendWebRequestBlock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.files import MAX_FILE, read_below
from livetape.engine.blocks.limits import MAX_TEXT
from livetape.engine.blocks.options import RequestOptions
from livetape.engine.blocks.public_address import Allowed
from livetape.engine.coerce import parse_json
from livetape.engine.output_values import as_json
from livetape.errors import BlockExecutionError, BlockInputError

if TYPE_CHECKING:
    from livetape.engine.blocks.http_fetch import HttpFetcher

MAX_FILES = 20
MAX_HEADERS = 200


class HttpMethod(StrEnum):
    GET = "GET"
    POST = "POST"
    PUT = "PUT"
    DELETE = "DELETE"
    PATCH = "PATCH"
    OPTIONS = "OPTIONS"
    HEAD = "HEAD"


class SendWebRequestInput(BlockSchema):
    url: str
    method: HttpMethod = HttpMethod.POST
    headers: Annotated[dict[str, str], Field(max_length=MAX_HEADERS)] = Field(default_factory=dict)
    json_format: bool = True
    body: Any = None
    files_name: str = "file"
    files: Annotated[list[str], Field(max_length=MAX_FILES)] = Field(default_factory=list)


class SendWebRequestOutput(BlockSchema):
    response: Any
    client_error: Any
    server_error: Any


class SendWebRequestBlock(Block[SendWebRequestInput]):
    """The body of the answer on the pin of its status: 2xx `response`, 4xx `client_error`, 5xx `server_error`; any
    other status is an error. With `json_format` the body is sent as JSON and read as JSON if it is; without, a
    dictionary is sent as a form. `files` are names below the files folder, sent as a multipart form.

    Only public addresses, and those that the setting `requests.allow` names. The request carries the header
    `Idempotency-Key`, the same each time it is sent again for this node execution. A redirect to another origin
    (scheme, host or port) takes only harmless headers along (see `HARMLESS_HEADERS`): not those with keys, whatever
    their name.
    """

    id = "6595ae1f-b924-42cb-9a41-551a0611c4b4"
    description = (
        "Sends an HTTP request and gives the answer. A redirect to another origin takes only harmless headers along."
    )
    categories = (BlockCategory.OUTPUT,)
    Input = SendWebRequestInput
    Output = SendWebRequestOutput
    vectors = (
        Vector({"url": "ftp://example.com"}, raises=BlockExecutionError, matching="url: must begin with http"),
        Vector({"url": "http://127.0.0.1:1/"}, raises=BlockExecutionError, matching="127.0.0.1: not a public address"),
        Vector({"url": "http://[::ffff:10.0.0.1]/"}, raises=BlockExecutionError, matching="not a public address"),
        Vector({"url": "http://169.254.169.254/x"}, raises=BlockExecutionError, matching="not a public address"),
        Vector({"url": "http://2130706433/"}, raises=BlockExecutionError, matching="not a public address"),
        Vector(
            {"url": "https://example.com", "headers": {"a": "b\r\nc: d"}},
            raises=BlockExecutionError,
            matching="headers: ",
        ),
        Vector({"url": "https://example.com", "method": "TRACE"}, raises=BlockInputError, matching="method: "),
        Vector({}, raises=BlockInputError, matching="url: this field is required"),
    )

    def __init__(self, options: RequestOptions | None = None) -> None:
        self.options = options or RequestOptions()
        Allowed.of(self.options.allow)  # refused now, not when it first runs
        self._fetcher: HttpFetcher | None = None

    async def run(self, data: SendWebRequestInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        body = await asyncio.to_thread(_body, data, ctx)
        headers = {"idempotency-key": ctx.idempotency_key}
        if data.json_format and "content" in body:
            headers["content-type"] = "application/json"
        headers.update((name.lower(), value) for name, value in data.headers.items())
        answer = await self.fetcher.fetch(data.method.value, data.url, headers=headers, body=body)
        ctx.usage.add("requests", 1)
        ctx.usage.add("bytes", len(answer.body))
        value = parse_json(answer.text) if data.json_format else answer.text
        pin = {2: "response", 4: "client_error", 5: "server_error"}.get(answer.status // 100)
        if pin is None:
            raise BlockExecutionError(f"an answer with the status {answer.status}")
        yield pin, value

    @property
    def fetcher(self) -> HttpFetcher:
        """Made when it is first needed: the client is slow to load."""
        if self._fetcher is None:
            from livetape.engine.blocks.http_fetch import HttpFetcher  # noqa: PLC0415

            self._fetcher = HttpFetcher(self.options)
        return self._fetcher


def _body(data: SendWebRequestInput, ctx: BlockContext) -> Mapping[str, Any]:
    value = parse_json(data.body) if isinstance(data.body, str) and data.json_format else data.body
    if data.files:
        if value is not None and not isinstance(value, dict):
            raise BlockExecutionError("body: with files it must be a dictionary, the fields of the form")
        parts = [
            (data.files_name, (PurePosixPath(name).name, read_below(ctx.files, name, MAX_FILE))) for name in data.files
        ]
        return {"data": _form(value or {}), "files": parts}
    if value is None:
        return {}
    if data.json_format:
        content = to_json(as_json(value))
        _check(len(content))
        return {"content": content}
    if isinstance(value, dict):
        return {"data": _form(value)}
    text = value if isinstance(value, str) else to_json(as_json(value)).decode()
    _check(len(text))
    return {"content": text.encode("utf-8", "replace")}


def _form(values: Mapping[Any, Any]) -> dict[str, str]:
    form = {
        str(name): value if isinstance(value, str) else to_json(as_json(value)).decode()
        for name, value in values.items()
    }
    _check(sum(map(len, form.values())))
    return form


def _check(size: int) -> None:
    if size > 4 * MAX_TEXT:
        raise BlockExecutionError(f"body: larger than {4 * MAX_TEXT} bytes")


BLOCKS = (SendWebRequestBlock,)
