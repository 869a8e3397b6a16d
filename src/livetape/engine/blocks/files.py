"""Reading files below the folder that a run may use, and FileReadBlock."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import check_size, unescaped
from livetape.errors import BlockExecutionError, BlockInputError

MAX_FILE = 16 * 1024 * 1024
MAX_NAME = 500

Count = Annotated[int, Field(ge=0)]


def open_below(folder: Path, name: str) -> BinaryIO:
    """Open a regular file below `folder` for reading. Links count as what they lead to; none leads out."""
    if len(name) > MAX_NAME:
        raise BlockExecutionError("this is not the name of a file")
    try:
        root = folder.resolve()
        path = (root / name).resolve()
    except (ValueError, RuntimeError):  # a zero character, links in a circle
        raise BlockExecutionError("this is not the name of a file") from None
    # Before anything else, so that the answer for a name outside does not tell what exists there.
    if Path(name).is_absolute() or path == root or not path.is_relative_to(root):
        raise BlockExecutionError(f"{name}: not in the files folder")
    # Opened without following: the path is resolved, so a link here was put in its place just now. A pipe must not
    # block, it is refused by its kind.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise BlockExecutionError(f"{name}: no such file") from None
    except OSError as error:
        raise BlockExecutionError(f"{name}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BlockExecutionError(f"{name}: not a file")
    return os.fdopen(descriptor, "rb")


def read_below(folder: Path, name: str, limit: int) -> bytes:
    """The content of a file below `folder`; refused if it is longer than `limit` bytes."""
    with open_below(folder, name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BlockExecutionError(f"{name}: larger than {limit} bytes")
    return content


class FileReadInput(BlockSchema):
    file_input: str
    delimiter: str = ""
    size_limit: Count = 0
    row_limit: Count = 0
    skip_size: Count = 0
    skip_rows: Count = 0


class FileReadOutput(BlockSchema):
    content: str


class FileReadBlock(Block[FileReadInput]):
    r"""UTF-8 text below the data folder's `files/`, with every line end read as `\n`.

    `skip_size` characters are left out first. The rest is split at `delimiter` (`\n` may be typed in two characters);
    of the rows, `skip_rows` are left out and `row_limit` are read. A row longer than `size_limit` comes in parts of
    that many characters. Each row or part is one output; 0 means no limit.
    """

    id = "3735a31f-7e18-4aca-9e90-08a7120674bc"
    description = "Reads a text file of the files folder, in one piece or piece by piece."
    categories = (BlockCategory.TEXT, BlockCategory.DATA)
    read_only = True
    Input = FileReadInput
    Output = FileReadOutput
    vectors = (
        Vector({"file_input": "a.txt"}, [("content", "one\ntwo")], files={"a.txt": b"one\r\ntwo"}),
        Vector(
            {"file_input": "sub/a.txt", "delimiter": "\\n", "skip_rows": 1, "row_limit": 2},
            [("content", "b"), ("content", "c")],
            files={"sub/a.txt": b"a\nb\nc\nd"},
        ),
        Vector(
            {"file_input": "a.txt", "skip_size": 1, "size_limit": 2},
            [("content", "bc"), ("content", "de"), ("content", "f")],
            files={"a.txt": b"abcdef"},
        ),
        Vector(
            {"file_input": "a.txt", "delimiter": ",", "size_limit": 3},
            [("content", "abc"), ("content", "d"), ("content", ""), ("content", "x")],
            files={"a.txt": b"abcd,,x"},
        ),
        Vector({"file_input": "./sub/../a.txt"}, [("content", "x")], files={"a.txt": b"x", "sub/b": b""}),
        Vector({"file_input": "empty.txt"}, [("content", "")], files={"empty.txt": b""}),
        Vector({"file_input": "a.txt", "skip_rows": 9, "delimiter": ","}, [], files={"a.txt": b"a,b"}),
        Vector({"file_input": "mark.txt"}, [("content", "é")], files={"mark.txt": b"\xef\xbb\xbf\xc3\xa9"}),
        Vector({"file_input": "none.txt"}, raises=BlockExecutionError, matching="none.txt: no such file"),
        Vector({"file_input": "../secret"}, raises=BlockExecutionError, matching="not in the files folder"),
        Vector({"file_input": "/etc/passwd"}, raises=BlockExecutionError, matching="not in the files folder"),
        Vector({"file_input": "."}, raises=BlockExecutionError, matching="not in the files folder"),
        Vector({"file_input": "d"}, raises=BlockExecutionError, matching="not a file", files={"d/a": b""}),
        Vector({"file_input": "a\0b"}, raises=BlockExecutionError, matching="not the name of a file"),
        Vector({"file_input": "https://example.com/a.txt"}, raises=BlockExecutionError, matching="no such file"),
        Vector(
            {"file_input": "b.png"}, raises=BlockExecutionError, matching="not text", files={"b.png": b"\x89PNG\r\n"}
        ),
        Vector({"file_input": "z"}, raises=BlockExecutionError, matching="not text", files={"z": b"a\0b"}),
        Vector({"file_input": "a.txt", "row_limit": -1}, raises=BlockInputError, matching="row_limit: "),
    )

    def run(self, data: FileReadInput, ctx: BlockContext) -> Iterator[PinValue]:
        text = _text(data.file_input, read_below(ctx.files, data.file_input, MAX_FILE))
        rows = _rows(text, data.skip_size, unescaped(data.delimiter))
        for number, row in enumerate(rows):
            if number < data.skip_rows:
                continue
            if data.row_limit and number >= data.skip_rows + data.row_limit:
                return
            for part in _parts(row, data.size_limit):
                check_size(len(part), f"{data.file_input}: a piece (set a delimiter or a size limit)")
                yield "content", part


def _text(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise BlockExecutionError(f"{name}: not text in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows(text: str, start: int, delimiter: str) -> Iterator[str]:
    """Like `str.split`, one row at a time."""
    while delimiter and (end := text.find(delimiter, start)) >= 0:
        yield text[start:end]
        start = end + len(delimiter)
    yield text[start:]


def _parts(row: str, size: int) -> Iterator[str]:
    if not size or not row:
        yield row
        return
    for start in range(0, len(row), size):
        yield row[start : start + size]


BLOCKS = (FileReadBlock,)
