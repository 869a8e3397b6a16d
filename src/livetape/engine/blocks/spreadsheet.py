"""ReadSpreadsheetBlock."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from itertools import islice
from typing import Annotated

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.files import MAX_FILE, read_below
from livetape.engine.blocks.limits import MAX_ITEMS
from livetape.errors import BlockExecutionError, BlockInputError

MAX_COLUMNS = 1_000
MAX_CELLS = 500_000

One = Annotated[str, Field(min_length=1, max_length=1)]
OneOrNone = Annotated[str, Field(max_length=1)]


class ReadSpreadsheetInput(BlockSchema):
    contents: Annotated[str, Field(max_length=MAX_FILE)] | None = None
    file_input: str | None = None
    delimiter: One = ","
    quotechar: One = '"'
    escapechar: OneOrNone = "\\"
    has_header: bool = True
    skip_rows: Annotated[int, Field(ge=0)] = 0
    strip: bool = True
    skip_columns: Annotated[list[str], Field(max_length=MAX_COLUMNS)] = Field(default_factory=list)
    produce_singular_result: bool = False


class ReadSpreadsheetOutput(BlockSchema):
    row: dict[str, str]
    rows: list[dict[str, str]]


class ReadSpreadsheetBlock(Block[ReadSpreadsheetInput]):
    """CSV in UTF-8, as text or from the files folder; the file comes first if both are given.

    A row is a dictionary by the header, or by the number of the column (`"0"`) without one and beyond it. Columns to
    skip are given by name or number. Lines without a value are left out.
    """

    id = "acf7625e-d2cb-4941-bfeb-2819fc6fc015"
    description = "Reads a table in CSV, as one list of rows or row by row."
    categories = (BlockCategory.TEXT, BlockCategory.DATA)
    read_only = True
    Input = ReadSpreadsheetInput
    Output = ReadSpreadsheetOutput
    vectors = (
        Vector(
            {"contents": "a, b, c\n1,2,3\n4,5,6"},
            [("rows", [{"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": "5", "c": "6"}])],
        ),
        Vector(
            {"contents": "a,b\n1,2\n\n3,4,5", "produce_singular_result": True},
            [("row", {"a": "1", "b": "2"}), ("row", {"a": "3", "b": "4", "2": "5"})],
        ),
        Vector(
            {"file_input": "t.csv", "has_header": False, "skip_rows": 1, "skip_columns": ["1"], "delimiter": ";"},
            [("rows", [{"0": "x;y", "2": "é"}])],
            files={"t.csv": '\ufeffskip;me;now\r\n"x;y";2; é \r\n'.encode()},
        ),
        Vector({"contents": "a,b\n1,2", "skip_columns": ["a"]}, [("rows", [{"b": "2"}])]),
        Vector({"contents": "a\n", "skip_rows": 5}, [("rows", [])]),
        Vector({}, raises=BlockExecutionError, matching="contents or file_input"),
        Vector(
            {"file_input": "t.xlsx"},
            raises=BlockExecutionError,
            matching="save it as CSV",
            files={"t.xlsx": b"PK\x03\x04rest"},
        ),
        Vector({"contents": "x", "delimiter": ",,"}, raises=BlockInputError, matching="delimiter: "),
        Vector({"contents": "x", "delimiter": "\n"}, raises=BlockExecutionError, matching="delimiter and quotechar"),
        Vector({"contents": "x\n" * 10_002}, raises=BlockExecutionError, matching="more than 10000 rows"),
    )

    def run(self, data: ReadSpreadsheetInput, ctx: BlockContext) -> Iterator[PinValue]:
        rows = _rows(_text(data, ctx), data)
        if data.produce_singular_result:
            for row in rows:
                yield "row", row
        else:
            yield "rows", list(rows)


def _text(data: ReadSpreadsheetInput, ctx: BlockContext) -> str:
    if not data.file_input:
        if data.contents is None:
            raise BlockExecutionError("contents or file_input must be given")
        return data.contents
    content = read_below(ctx.files, data.file_input, MAX_FILE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or content.startswith(b"PK\x03\x04"):
        raise BlockExecutionError(f"{data.file_input}: not text in UTF-8; a spreadsheet of Excel: save it as CSV")
    return text


def _rows(text: str, data: ReadSpreadsheetInput) -> Iterator[dict[str, str]]:
    cells = 0
    if {data.delimiter, data.quotechar} & {"\r", "\n"} or data.delimiter == data.quotechar:
        raise BlockExecutionError("delimiter and quotechar must be two characters that are no line ends")
    try:
        lines = csv.reader(
            StringIO(text, newline=""),
            delimiter=data.delimiter,
            quotechar=data.quotechar,
            escapechar=data.escapechar or None,
        )
        header = next(lines, []) if data.has_header else []
        if data.strip:
            header = [name.strip() for name in header]
        for number, line in enumerate(islice(lines, data.skip_rows, None)):
            if number >= MAX_ITEMS:
                raise BlockExecutionError(f"more than {MAX_ITEMS} rows")
            cells += len(line)
            if len(line) > MAX_COLUMNS or cells > MAX_CELLS:
                raise BlockExecutionError(f"more than {MAX_COLUMNS} columns, or {MAX_CELLS} values in all")
            if line:
                yield _row(line, header, data)
    except (csv.Error, TypeError, ValueError) as error:
        raise BlockExecutionError(f"not a table: {error}") from None


def _row(line: list[str], header: list[str], data: ReadSpreadsheetInput) -> dict[str, str]:
    row: dict[str, str] = {}
    for place, value in enumerate(line):
        name = header[place] if place < len(header) else str(place)
        if name not in data.skip_columns and str(place) not in data.skip_columns:
            row[name] = value.strip() if data.strip else value
    return row


BLOCKS = (ReadSpreadsheetBlock,)
