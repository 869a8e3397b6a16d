"""Over a real server and a real socket: what a test transport would forgive."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from serving import serving
from unit.api.fakes import World, bearer, graph


async def break_off(request: Request) -> StreamingResponse:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("in the middle")

    return StreamingResponse(chunks(), media_type="application/json", headers={"Content-Length": "8"})


@pytest.fixture
def world() -> World:
    return World(max_body_bytes=10_000, routes=[Route("/break-off", break_off)])


@pytest.fixture
async def port(world: World) -> AsyncIterator[int]:
    async with serving(world.app, ws="none") as port:
        yield port


async def raw(port: int, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends the bytes, then reads until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(10):
            for part in parts:
                writer.write(part)
                await writer.drain()
            while chunk := await reader.read(65536):
                answer += chunk
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, body


def head(method: str, path: str, **headers: str) -> bytes:
    fields = {"Host": "localhost", "Content-Type": "application/json", **bearer(), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


async def test_the_whole_way(port: int) -> None:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=bearer()) as client:
        created = (await client.post("/api/graphs", json=graph())).json()
        path = f"/api/graphs/{created['id']}"
        starts = [
            client.post(f"{path}/execute/1", json={"inputs": {"a": 1}}, headers={"Idempotency-Key": "k"})
            for _ in range(5)
        ]
        answers = await asyncio.gather(*starts)
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("idempotency-replayed" in answer.headers for answer in answers) == 4
        execution = (await client.get(f"{path}/executions/{answers[0].json()['id']}")).json()
        assert execution["stream"]["offset"] == 2
        assert (await client.head("/readyz")).status_code == 200
        assert (await client.get("/api/graphs/x")).json()["code"] == "not_found"


async def test_a_chunked_body_over_the_limit(port: int) -> None:
    chunk = b"3e8\r\n" + b"a" * 1000 + b"\r\n"
    status, headers, body = await raw(
        port, head("POST", "/api/graphs", Transfer_Encoding="chunked"), *[chunk] * 12, b"0\r\n\r\n"
    )
    assert (status, json.loads(body)["code"]) == (413, "too_large")
    assert headers["connection"] == "close"


async def test_an_announced_body_over_the_limit_is_not_waited_for(port: int) -> None:
    status, headers, body = await raw(port, head("POST", "/api/graphs", Content_Length="1000000"), b"a" * 100)
    assert (status, json.loads(body)["code"]) == (413, "too_large")
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/graphs/%00", 422),
        ("/api/graphs/%ff%fe", 404),
        ("/api/graphs/%F0%9F%98%80", 404),
        (f"/api/graphs/{'x' * 10_000}", 422),
        ("/api/jobs/a%2Fb", 404),
        ("/api/jobs/%2A", 400),
        ("//api/graphs", 404),
    ],
)
async def test_strange_paths(port: int, path: str, status: int) -> None:
    got, headers, body = await raw(port, head("GET", path, Connection="close"))
    assert got == status
    assert json.loads(body)["instance"].endswith(headers["x-request-id"])


async def test_half_an_answer_does_not_look_whole(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status, _, body = await raw(port, head("GET", "/break-off"))
    assert (status, body) == (200, b"half")  # of the 8 bytes announced, and closed
    ours = [record for record in caplog.records if record.name.startswith("livetape")]
    assert len(ours) == 1
    assert all(record.exc_info is None for record in caplog.records if record not in ours)


async def test_a_client_that_goes_away_is_no_error(port: int, caplog: pytest.LogCaptureFixture) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    with caplog.at_level(logging.WARNING):
        writer.write(head("POST", "/api/graphs", Content_Length="500") + b"{")
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.2)
    assert [record.getMessage() for record in caplog.records] == []
