"""LanguageModelBlock: text from any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, BlockType, PinValue, Retries, Vector
from livetape.engine.blocks.limits import MAX_ITEMS, MAX_TEXT
from livetape.engine.blocks.options import ModelOptions
from livetape.errors import BlockExecutionError, BlockInputError

if TYPE_CHECKING:
    from livetape.engine.blocks.model_stream import ModelClient

OWN_PARAMETERS = frozenset({"model", "messages", "stream", "stream_options", "n"})


class ModelBusyError(BlockExecutionError):
    """The endpoint cannot answer now. `retry_after`: seconds that it asks for."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LanguageModelInput(BlockSchema):
    prompt: Annotated[str, Field(max_length=4 * MAX_TEXT)] = ""
    system: Annotated[str, Field(max_length=MAX_TEXT)] = ""
    messages: Annotated[list[dict[str, Any]], Field(max_length=MAX_ITEMS)] = Field(default_factory=list)
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    parameters: Annotated[dict[str, Any], Field(max_length=100)] = Field(default_factory=dict)


class LanguageModelOutput(BlockSchema):
    token: str
    response: str
    finish_reason: str
    usage: dict[str, Any]


class LanguageModelBlock(Block[LanguageModelInput]):
    """Each piece of text as a `token` as it comes, then the whole `response`, why it ended, and the `usage` as the
    endpoint tells it (empty if it does not).

    The conversation is `system`, then `messages`, then `prompt`. `parameters` go into the request as they are. The
    endpoint and its key are settings (`llm.base_url`, `llm.api_key`), never part of a graph, so that a graph can be
    shared and nobody can send the key elsewhere. While it answers that it is busy, it is asked again, four times in
    all; once a token has come, a stream that breaks off is an error.
    """

    id = "c5bc98d9-e7dc-49d8-b49c-ac8630b2885b"
    description = "Asks a language model, and gives its answer word by word as it comes, and as a whole."
    categories = (BlockCategory.AI, BlockCategory.TEXT)
    block_type = BlockType.AI
    timeout = 600.0
    retries = Retries(on=(ModelBusyError,), attempts=4, base_s=1.0, cap_s=60.0)
    Input = LanguageModelInput
    Output = LanguageModelOutput
    vectors = (
        Vector({"prompt": "Hello"}, raises=BlockExecutionError, matching="no language model is set up"),
        Vector({}, raises=BlockExecutionError, matching="prompt or messages must be given"),
        Vector({"prompt": "x", "temperature": 3}, raises=BlockInputError, matching="temperature: "),
        Vector({"prompt": "x", "parameters": {"stream": False}}, raises=BlockExecutionError, matching="parameters: "),
        Vector({"prompt": "x" * (4 * MAX_TEXT + 1)}, raises=BlockInputError, matching="prompt: "),
    )

    def __init__(self, options: ModelOptions | None = None) -> None:
        self.options = options or ModelOptions()
        self._client: ModelClient | None = None

    async def run(self, data: LanguageModelInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        body = self._body(data)
        if self.options.base_url is None:
            raise BlockExecutionError("no language model is set up here: llm.base_url is not set")
        if self._client is None:
            from livetape.engine.blocks.model_stream import ModelClient  # noqa: PLC0415 (slow to load)

            self._client = ModelClient(self.options)
        text: list[str] = []
        finish_reason = ""
        usage: Mapping[str, Any] = {}
        async with aclosing(self._client.stream(body, key=ctx.idempotency_key, now=ctx.clock.now)) as pieces:
            async for piece in pieces:
                if piece.text:
                    text.append(piece.text)
                    yield "token", piece.text
                finish_reason = piece.finish_reason or finish_reason
                usage = piece.usage or usage
        for name, amount in usage.items():
            if isinstance(amount, int) and not isinstance(amount, bool):
                ctx.usage.add(name, amount)
        yield "response", "".join(text)
        yield "finish_reason", finish_reason or "stop"
        yield "usage", usage

    def _body(self, data: LanguageModelInput) -> dict[str, Any]:
        model = data.model or self.options.model
        messages = [
            *([{"role": "system", "content": data.system}] if data.system else []),
            *data.messages,
            *([{"role": "user", "content": data.prompt}] if data.prompt else []),
        ]
        if not data.messages and not data.prompt:
            raise BlockExecutionError("prompt or messages must be given")
        if taken := OWN_PARAMETERS & data.parameters.keys():
            raise BlockExecutionError(f"parameters: {', '.join(sorted(taken))} cannot be set here")
        body: dict[str, Any] = {**data.parameters, "messages": messages, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if model is not None:
            body["model"] = model
        if data.temperature is not None:
            body["temperature"] = data.temperature
        if data.max_tokens is not None:
            body["max_tokens"] = data.max_tokens
        return body


BLOCKS = (LanguageModelBlock,)
