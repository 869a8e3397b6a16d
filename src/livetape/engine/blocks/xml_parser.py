"""XMLParserBlock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any
from xml.parsers import expat

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_ITEMS, MAX_TEXT
from livetape.errors import BlockExecutionError, BlockInputError

MAX_DEPTH = 100
MAX_ELEMENTS = 10 * MAX_ITEMS


class XMLParserInput(BlockSchema):
    input_xml: Annotated[str, Field(max_length=MAX_TEXT)]


class XMLParserOutput(BlockSchema):
    parsed_xml: dict[str, Any]
    error: str


class XMLParserBlock(Block[XMLParserInput]):
    """An element is its text, or a dictionary of its children; several of one name are a list.

    Attributes are keys with an `@` before them, text beside children or attributes is `#text`. Document types and
    their entities are refused: with them a short text can stand for a very long one.
    """

    id = "286380af-9529-4b55-8be0-1d7c854abdb5"
    description = "Makes a dictionary of XML."
    categories = (BlockCategory.TEXT, BlockCategory.DATA)
    pure = True
    Input = XMLParserInput
    Output = XMLParserOutput
    vectors = (
        Vector({"input_xml": "<tag1><tag2>content</tag2></tag1>"}, [("parsed_xml", {"tag1": {"tag2": "content"}})]),
        Vector(
            {"input_xml": '<a id="1">x<b/><b> y </b>&lt;z</a>'},
            [("parsed_xml", {"a": {"@id": "1", "b": ["", "y"], "#text": "x<z"}})],
        ),
        Vector({"input_xml": '<?xml version="1.0"?>\n<a>é</a>'}, [("parsed_xml", {"a": "é"})]),
        Vector({"input_xml": "<a><b></a>"}, raises=BlockExecutionError, matching="not XML: mismatched tag"),
        Vector({"input_xml": ""}, raises=BlockExecutionError, matching="not XML: no element found"),
        Vector({"input_xml": "<a/>more"}, raises=BlockExecutionError, matching="not XML: "),
        Vector(
            {"input_xml": '<!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>'},
            raises=BlockExecutionError,
            matching="document types are refused",
        ),
        Vector({"input_xml": "<a>" * 101}, raises=BlockExecutionError, matching="deeper than 100"),
        Vector({"input_xml": "x" * (MAX_TEXT + 1)}, raises=BlockInputError, matching="input_xml: "),
    )

    def run(self, data: XMLParserInput, ctx: BlockContext) -> Iterator[PinValue]:
        yield "parsed_xml", _parsed(data.input_xml)


class _Element:
    def __init__(self, attributes: dict[str, str]) -> None:
        self.content: dict[str, Any] = {f"@{name}": value for name, value in attributes.items()}
        self.text: list[str] = []

    def add(self, name: str, value: Any) -> None:
        if name not in self.content:
            self.content[name] = value
        elif isinstance(self.content[name], list):
            self.content[name].append(value)
        else:
            self.content[name] = [self.content[name], value]

    def value(self) -> Any:
        text = "".join(self.text).strip()
        if not self.content:
            return text
        return {**self.content, **({"#text": text} if text else {})}


def _parsed(text: str) -> dict[str, Any]:
    root = _Element({})
    open_elements = [root]
    count = 0

    def start(_name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(open_elements) > MAX_DEPTH:
            raise BlockExecutionError(f"input_xml: deeper than {MAX_DEPTH}")
        if count > MAX_ELEMENTS:
            raise BlockExecutionError(f"input_xml: more than {MAX_ELEMENTS} elements")
        open_elements.append(_Element(attributes))

    def end(name: str) -> None:
        element = open_elements.pop()
        open_elements[-1].add(name, element.value())

    def characters(part: str) -> None:
        open_elements[-1].text.append(part)

    def doctype(*_: object) -> None:
        raise BlockExecutionError("input_xml: document types are refused")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise BlockExecutionError(f"input_xml: not XML: {what} (line {error.lineno})") from None
    return root.content


BLOCKS = (XMLParserBlock,)
