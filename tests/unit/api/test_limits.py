"""What a body may be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.api.errors import InvalidRequestError
from livetape.api.limits import parse_json
from unit.api.fakes import World, bearer

Client = httpx2.AsyncClient
PATH = "/api/jobs/j/events"
JSON = {"Content-Type": "application/json"}


def event(data: bytes) -> bytes:
    return b'{"event_type":"x","data":' + data + b"}"


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"nonsense",
        b"\xff",
        b"{} {}",
        '{"event_type":"x"}'.encode("utf-16"),
        event(b"NaN"),
        event(b"-Infinity"),
        event(b"1e999"),
        event(b"[[-1e400]]"),
        event(b'{"a":' + b"9" * 400 + b".0}"),
        event(b"9" * 5000),
        event(b"[" * 100_000),
        event(b"[" * 300 + b"]" * 300),
        event(b'{"a":' * 300 + b"1" + b"}" * 300),
        event(b'["\\ud800",' + b"[" * 300 + b"]" * 300 + b"]"),
        event(b'["\\ud800",' + b"[" * 50_000),
        event(b'["\\ud800",NaN]'),
        event(b'"\\ud80"'),
    ],
    ids=lambda content: repr(content[:30]),
)
async def test_what_is_no_json_is_refused(client: Client, world: World, content: bytes) -> None:
    answer = await client.post(PATH, content=content, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] == "json_invalid"
    assert len(answer.content) < 2_000
    assert world.jobs.published == []


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (b"1e300", 1e300),
        (b'"1e999"', "1e999"),
        (b"12345678901234567890123", 12345678901234567890123),
        (b"[" * 150 + b"]" * 150, None),
        (b'"\\ud800 x"', "\\ud800 x"),
        (b'{"\\uDFFF":["\\ud83d\\ude00","\\ud83d"]}', {"\\udfff": ["😀", "\\ud83d"]}),
        (b'"\\\\ud800"', "\\ud800"),
    ],
)
async def test_what_is_json_is_taken(client: Client, world: World, content: bytes, data: Any) -> None:
    answer = await client.post(PATH, content=event(content), headers=JSON)
    assert answer.status_code == 201, answer.text
    if data is not None:
        assert world.jobs.published[0][3] == data


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_parser_agrees_with_the_standard_one(value: Any) -> None:
    raw = json.dumps(value).encode()
    assert parse_json(raw) == json.loads(raw)


@given(st.binary())
def test_the_parser_refuses_or_gives_what_can_be_written(raw: bytes) -> None:
    try:
        value = parse_json(raw)
    except InvalidRequestError:
        return
    json.dumps(value, allow_nan=False).encode("utf-8")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
async def test_the_body_must_say_that_it_is_json(client: Client, world: World, content_type: str) -> None:
    """Also what keeps a form on another site's page from sending one."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await client.post(PATH, content=event(b"1"), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "application/json" in answer.json()["hint"]
    assert world.jobs.published == []


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/a+json"])
async def test_json_has_many_names(client: Client, content_type: str) -> None:
    answer = await client.post(PATH, content=event(b"1"), headers={"Content-Type": content_type})
    assert answer.status_code == 201


class TestSize:
    LIMIT = 1000

    @pytest.fixture
    def world(self) -> World:
        return World(max_body_bytes=self.LIMIT)

    def body(self, size: int) -> bytes:
        empty = event(b'""')
        return event(b'"' + b"a" * (size - len(empty)) + b'"')

    @pytest.mark.parametrize(("size", "status"), [(1000, 201), (1001, 413), (100_000, 413)])
    async def test_announced(self, client: Client, size: int, status: int) -> None:
        answer = await client.post(PATH, content=self.body(size), headers=JSON)
        assert answer.status_code == status
        if status == 413:
            assert answer.json()["code"] == "too_large"
            assert answer.headers["connection"] == "close"

    @pytest.mark.parametrize(("size", "status"), [(1000, 201), (1001, 413)])
    async def test_in_chunks(self, client: Client, size: int, status: int) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            body = self.body(size)
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        answer = await client.post(PATH, content=chunks(), headers=JSON)
        assert answer.status_code == status
        assert "content-length" not in answer.request.headers

    async def test_it_is_read_only_up_to_the_limit(self, client: Client) -> None:
        sent = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 1000:
                sent += 1
                yield b"a" * 500

        answer = await client.post(PATH, content=chunks(), headers=JSON)
        assert answer.status_code == 413
        assert sent <= 4

    async def test_who_is_not_signed_in_is_not_read_at_all(self, stranger: Client) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            raise AssertionError("read")
            yield b""

        answer = await stranger.post(PATH, content=chunks(), headers=JSON)
        assert answer.status_code == 401

    @pytest.mark.parametrize("length", ["-1", "x", "1" * 30])
    async def test_a_wrong_length_does_no_harm(self, client: Client, length: str) -> None:
        answer = await client.post(PATH, content=b"{}", headers=JSON | bearer() | {"Content-Length": length})
        assert answer.status_code in {413, 422}
