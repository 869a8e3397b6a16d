"""CodeExtractionBlock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_TEXT
from livetape.errors import BlockInputError

FENCE = "```"

# The word after the fence, and the pin for it.
PINS = {
    "html": "html",
    "css": "css",
    "javascript": "javascript",
    "js": "javascript",
    "python": "python",
    "py": "python",
    "sql": "sql",
    "java": "java",
    "cpp": "cpp",
    "c++": "cpp",
    "csharp": "csharp",
    "cs": "csharp",
    "c#": "csharp",
    "json": "json_code",
    "bash": "bash",
    "sh": "bash",
    "shell": "bash",
    "php": "php",
    "ruby": "ruby",
    "rb": "ruby",
    "yaml": "yaml",
    "yml": "yaml",
    "markdown": "markdown",
    "md": "markdown",
    "typescript": "typescript",
    "ts": "typescript",
    "xml": "xml",
}


class CodeExtractionInput(BlockSchema):
    text: Annotated[str, Field(max_length=MAX_TEXT)]


class CodeExtractionOutput(BlockSchema):
    html: str
    css: str
    javascript: str
    python: str
    sql: str
    java: str
    cpp: str
    csharp: str
    json_code: str
    bash: str
    php: str
    ruby: str
    yaml: str
    markdown: str
    typescript: str
    xml: str
    remaining_text: str


class CodeExtractionBlock(Block[CodeExtractionInput]):
    """Code of one language is joined by an empty line. Code of other languages stays in the remaining text."""

    id = "d3a7d896-3b78-4f44-8b4b-48fbf4f0bcd8"
    description = "Takes the code blocks between ``` out of a text, each language by itself."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = CodeExtractionInput
    Output = CodeExtractionOutput
    vectors = (
        Vector(
            {"text": "A Python example:\n```python\nprint('Hi')\n```\nAnd HTML:\n```html\n<h1>Title</h1>\n```"},
            [
                ("html", "<h1>Title</h1>"),
                ("python", "print('Hi')"),
                ("remaining_text", "A Python example:\nAnd HTML:"),
            ],
        ),
        Vector({"text": "```PY\na\n```x```py\nb```"}, [("python", "a\n\nb"), ("remaining_text", "x")]),
        Vector({"text": "```cobol\nMOVE\n```"}, [("remaining_text", "```cobol\nMOVE\n```")]),
        Vector({"text": "```json\n{}\n"}, [("remaining_text", "```json\n{}")]),
        Vector({"text": ""}, []),
        Vector({"text": "`" * (MAX_TEXT + 1)}, raises=BlockInputError, matching="text: "),
    )

    async def run(self, data: CodeExtractionInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        code: dict[str, list[str]] = {}
        remaining: list[str] = []
        for pin, part in _parts(data.text):
            if pin is None:
                remaining.append(part)
            elif part.strip():
                code.setdefault(pin, []).append(part.strip())
        for pin in dict.fromkeys(PINS.values()):
            if pin in code:
                yield pin, "\n\n".join(code[pin])
        rest = "".join(remaining).strip()
        if rest:
            yield "remaining_text", rest


def _parts(text: str) -> Iterator[tuple[str | None, str]]:
    """Pieces of the text in order: code with its pin, everything else with None."""
    start = 0
    while (opening := text.find(FENCE, start)) >= 0:
        line_end = text.find("\n", opening)
        closing = text.find(FENCE, line_end) if line_end >= 0 else -1
        if closing < 0:
            break
        pin = PINS.get(text[opening + len(FENCE) : line_end].strip().lower())
        end = closing + len(FENCE)
        if pin is None:
            yield None, text[start:end]
        else:
            yield None, text[start:opening]
            yield pin, text[line_end + 1 : closing]
            end += text[end : end + 1] == "\n"
        start = end
    yield None, text[start:]


BLOCKS = (CodeExtractionBlock,)
