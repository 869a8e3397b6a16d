"""FileStoreBlock."""

from __future__ import annotations

import asyncio
import base64
import binascii
import mimetypes
import os
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.files import MAX_FILE, open_below, read_below
from livetape.engine.blocks.limits import MAX_TEXT
from livetape.engine.blocks.options import RequestOptions
from livetape.engine.blocks.public_address import Allowed
from livetape.errors import BlockExecutionError, BlockInputError

if TYPE_CHECKING:
    from livetape.engine.blocks.http_fetch import HttpFetcher

FOLDER = "stored"

_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,10}")


class FileStoreInput(BlockSchema):
    file_in: str
    base_64: bool = False


class FileStoreOutput(BlockSchema):
    file_out: str


class FileStoreBlock(Block[FileStoreInput]):
    """`file_in` is a data URI, a URL (see SendWebRequestBlock for which), or the name of a file that is there.

    What was not there is written below `stored/`, under the id of the node execution: run again, it is the same file.
    """

    id = "cbb50872-625b-42f0-8203-a2ae78242d8a"
    description = "Puts a file into the files folder and gives its name, or its content as a data URI."
    categories = (BlockCategory.BASIC, BlockCategory.MULTIMEDIA)
    static_output = True
    Input = FileStoreInput
    Output = FileStoreOutput
    vectors = (
        Vector({"file_in": "data:text/plain;base64,aGk="}, [("file_out", "stored/ne.txt")]),
        Vector({"file_in": "data:,h%C3%A9"}, [("file_out", "stored/ne.txt")]),
        Vector(
            {"file_in": "data:text/plain,hi", "base_64": True},
            [("file_out", "data:text/plain;base64,aGk=")],
        ),
        Vector({"file_in": "a.txt"}, [("file_out", "a.txt")], files={"a.txt": b"x"}),
        Vector(
            {"file_in": "a.bin", "base_64": True},
            [("file_out", "data:application/octet-stream;base64,eA==")],
            files={"a.bin": b"x"},
        ),
        Vector({"file_in": "none.txt"}, raises=BlockExecutionError, matching="none.txt: no such file"),
        Vector({"file_in": "../a"}, raises=BlockExecutionError, matching="files folder"),
        Vector({"file_in": "data:text/plain;base64,a"}, raises=BlockExecutionError, matching="not a data URI"),
        Vector({"file_in": "http://localhost/a"}, raises=BlockExecutionError, matching="not a public address"),
        Vector({}, raises=BlockInputError, matching="file_in: this field is required"),
    )

    def __init__(self, options: RequestOptions | None = None) -> None:
        self.options = options or RequestOptions()
        Allowed.of(self.options.allow)  # refused now, not when it first runs
        self._fetcher: HttpFetcher | None = None

    async def run(self, data: FileStoreInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        if data.file_in[:5].lower() == "data:":
            kind, content = _data_uri(data.file_in)
            extension = mimetypes.guess_extension(kind) or ".bin"
        elif re.match(r"https?://", data.file_in, re.IGNORECASE):
            kind, content = await self._fetch(data.file_in)
            extension = PurePosixPath(urlsplit(data.file_in).path).suffix
            if not _EXTENSION.fullmatch(extension):
                extension = mimetypes.guess_extension(kind) or ".bin"
        else:
            yield "file_out", await asyncio.to_thread(_present, ctx.files, data.file_in, whole=data.base_64)
            return
        if data.base_64:
            yield "file_out", _encoded(kind, content)
            return
        name = f"{FOLDER}/{re.sub(r'[^A-Za-z0-9-]', '_', ctx.node_exec_id)}{extension}"
        await asyncio.to_thread(_write, ctx.files, name, content)
        yield "file_out", name

    async def _fetch(self, url: str) -> tuple[str, bytes]:
        if self._fetcher is None:
            from livetape.engine.blocks.http_fetch import HttpFetcher  # noqa: PLC0415 (slow to load)

            self._fetcher = HttpFetcher(self.options)
        answer = await self._fetcher.fetch("GET", url)
        if answer.status != 200:
            raise BlockExecutionError(f"file_in: an answer with the status {answer.status}")
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind or "application/octet-stream", answer.body


def _data_uri(uri: str) -> tuple[str, bytes]:
    head, comma, body = uri[5:].partition(",")
    kind, *more = head.split(";")
    if not comma or len(body) > 2 * MAX_FILE:
        raise BlockExecutionError(f"file_in: not a data URI of at most {MAX_FILE} bytes")
    try:
        if any(part.strip().lower() == "base64" for part in more):
            content = base64.b64decode(unquote_to_bytes(body), validate=True)
        else:
            content = unquote_to_bytes(body)
    except (binascii.Error, ValueError):
        raise BlockExecutionError("file_in: not a data URI") from None
    if len(content) > MAX_FILE:
        raise BlockExecutionError(f"file_in: larger than {MAX_FILE} bytes")
    return kind.strip().lower() or "text/plain", content


def _present(files: Path, name: str, *, whole: bool) -> str:
    if not whole:
        open_below(files, name).close()
        return name
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return _encoded(kind, read_below(files, name, MAX_FILE))


def _encoded(kind: str, content: bytes) -> str:
    if len(content) > MAX_TEXT:
        raise BlockExecutionError(f"file_in: larger than {MAX_TEXT} bytes, too large for a data URI")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _write(files: Path, name: str, content: bytes) -> None:
    """All of it or nothing, and only below the folder."""
    try:
        folder = (files / FOLDER).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_relative_to(files.resolve()):
            raise BlockExecutionError("the files folder cannot be written")
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(content)
        os.replace(file.name, folder / PurePosixPath(name).name)
    except OSError as error:
        raise BlockExecutionError(f"the files folder cannot be written ({error.strerror})") from None


BLOCKS = (FileStoreBlock,)
