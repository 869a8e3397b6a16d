"""HTTP requests of blocks against servers that answer well, badly and not at all."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from livetape.clock import SystemClock
from livetape.engine.block import BlockContext, PinValue
from livetape.engine.blocks.file_store import FileStoreBlock
from livetape.engine.blocks.http_fetch import HttpFetcher
from livetape.engine.blocks.http_request import SendWebRequestBlock
from livetape.engine.blocks.options import RequestOptions
from livetape.engine.coerce import coerce_input
from livetape.errors import BlockExecutionError, ConfigError
from raw_http import Answering, RawRequest, answer, raw_server

HERE = RequestOptions(allow=("127.0.0.1",), timeout_s=5)


def context(files: Path) -> BlockContext:
    return BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=files, clock=SystemClock(), sleep=asyncio.sleep,
    )  # fmt: skip


@cache
def block_with(options: RequestOptions) -> SendWebRequestBlock:
    """One instance serves all runs; it reads the certificates of the system once."""
    return SendWebRequestBlock(options)


async def send(files: Path, options: RequestOptions = HERE, /, **pins: Any) -> list[PinValue]:
    block = block_with(options)
    return [output async for output in block.run(coerce_input(block.Input, pins), context(files))]


def always(*parts: bytes) -> Answering:
    async def answering(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return answering


@pytest.mark.parametrize(
    ("status", "body", "output"),
    [
        (200, '{"a": [1]}', ("response", {"a": [1]})),
        (204, "", ("response", "")),
        (201, "no json", ("response", "no json")),
        (404, '{"why": "gone"}', ("client_error", {"why": "gone"})),
        (503, "later", ("server_error", "later")),
    ],
)
async def test_the_body_is_on_the_pin_of_its_status(status: int, body: str, output: PinValue, tmp_path: Path) -> None:
    async with raw_server(always(answer(status, body))) as server:
        got = await send(tmp_path, url=f"http://127.0.0.1:{server.port}/x?y=1", body={"q": "é"}, headers={"X-A": "b"})
    assert got == [output]
    (request,) = server.requests
    assert (request.method, request.target, request.json()) == ("POST", "/x?y=1", {"q": "é"})
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["x-a"] == "b"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == "ne"


async def test_other_statuses_are_errors(tmp_path: Path) -> None:
    async with raw_server(always(answer(304))) as server:
        with pytest.raises(BlockExecutionError, match="an answer with the status 304"):
            await send(tmp_path, url=f"http://127.0.0.1:{server.port}/", method="GET")


async def test_forms_texts_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content of a")
    async with raw_server(always(answer(200, "ok"))) as server:
        url = f"http://127.0.0.1:{server.port}/"
        await send(tmp_path, url=url, json_format=False, body={"a": "1 2", "b": [3]})
        await send(tmp_path, url=url, json_format=False, body="plain")
        await send(tmp_path, url=url, body={"a": "1"}, files=["a.txt"], files_name="upload")
        with pytest.raises(BlockExecutionError, match="no such file"):
            await send(tmp_path, url=url, files=["b.txt"])
    form, text, upload = server.requests
    assert form.body == b"a=1+2&b=%5B3%5D"
    assert text.body == b"plain"
    assert upload.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="upload"; filename="a.txt"' in upload.body
    assert b"content of a" in upload.body


async def test_a_redirect_is_checked_again_and_begins_anew(tmp_path: Path) -> None:
    async with raw_server(always(answer(200, '"there"'))) as target:

        async def away(request: RawRequest, writer: asyncio.StreamWriter) -> None:
            place = {
                "/other": f"http://127.0.0.1:{target.port}/x",
                "/inside": "http://10.0.0.1/secret",
                "/file": "file:///etc/passwd",
                "/loop": "/loop",
            }[request.target]
            writer.write(answer(302, headers={"location": place, "set-cookie": "a=b"}))

        async with raw_server(away) as server:
            base = f"http://127.0.0.1:{server.port}"
            assert await send(tmp_path, url=f"{base}/other", body={"a": 1}) == [("response", "there")]
            for place, said in (
                ("/inside", "10.0.0.1: not a public address"),
                ("/file", "url: must begin with http"),
                ("/loop", "more than 5 redirects"),
            ):
                with pytest.raises(BlockExecutionError, match=said):
                    await send(tmp_path, url=f"{base}{place}")
    (arrived,) = target.requests
    assert (arrived.method, arrived.body) == ("GET", b"")
    assert not {"cookie", "content-type"} & arrived.headers.keys()


@pytest.mark.parametrize("status", [302, 307])
async def test_a_redirect_to_another_origin_takes_only_harmless_headers_along(status: int, tmp_path: Path) -> None:
    secret = {"Authorization": "Bearer s", "Cookie": "c=d", "X-API-Key": "s", "X-Whatever": "s", "Referer": "s"}
    harmless = {"Accept": "text/x", "Accept-Language": "de", "User-Agent": "me", "Range": "bytes=0-9"}
    async with raw_server(always(answer(200, '"there"'))) as target:

        async def away(request: RawRequest, writer: asyncio.StreamWriter) -> None:
            place = {"/": "/here", "/here": f"http://127.0.0.1:{target.port}/x"}[request.target]
            writer.write(answer(status, headers={"location": place}))

        async with raw_server(away) as server:
            url = f"http://127.0.0.1:{server.port}/"
            sent = await send(tmp_path, url=url, headers={**secret, **harmless}, body={"a": 1})
    assert sent == [("response", "there")]
    (arrived,) = target.requests
    assert not {name.lower() for name in secret} & arrived.headers.keys()
    assert {name: arrived.headers[name.lower()] for name in harmless} == harmless
    assert arrived.headers["idempotency-key"] == "ne"
    if status == 307:  # sent as it was: what says how to read it, and that it is the same again, goes along
        assert (arrived.method, arrived.json()) == ("POST", {"a": 1})
        assert arrived.headers["content-type"] == "application/json"
    for request in server.requests:  # the origin itself gets everything, after a redirect too
        assert {name: request.headers[name.lower()] for name in secret} == secret
    assert [request.target for request in server.requests] == ["/", "/here"]


async def test_headers_that_stayed_behind_do_not_come_back(tmp_path: Path) -> None:
    ports: dict[str, int] = {}

    async def home(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        location = {"location": f"http://127.0.0.1:{ports['away']}/"}
        writer.write(answer(200, "1") if request.target == "/back" else answer(302, headers=location))

    async def away(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(302, headers={"location": f"http://127.0.0.1:{ports['home']}/back"}))

    async with raw_server(home) as first, raw_server(away) as second:
        ports.update(home=first.port, away=second.port)
        await send(tmp_path, url=f"http://127.0.0.1:{first.port}/", headers={"X-API-Key": "secret"}, method="GET")
    assert ["x-api-key" in request.headers for request in first.requests] == [True, False]


async def test_another_host_on_the_same_port_is_another_origin() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async def away(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        host, _, port = request.headers["host"].partition(":")
        place = {"location": f"http://bank.test:{port}/"}
        writer.write(answer(307, headers=place) if host == "shop.test" else answer(200))

    fetcher = HttpFetcher(HERE, resolve=resolve)
    async with raw_server(away) as server:
        await fetcher.fetch("GET", f"http://shop.test:{server.port}/", headers={"X-API-Key": "secret"})
    assert ["x-api-key" in request.headers for request in server.requests] == [True, False]


async def test_the_checked_address_is_the_one_that_is_connected_to() -> None:
    asked: list[str] = []
    context = await asyncio.to_thread(httpx2.create_ssl_context)

    def rebinding(*answers: Sequence[str]) -> HttpFetcher:
        left = list(answers)

        async def resolve(host: str, port: int) -> Sequence[str]:
            asked.append(host)
            return left.pop(0)

        return HttpFetcher(HERE, resolve=resolve, context=context)

    async with raw_server(always(answer(200, "ok"))) as server:
        url = f"http://rebind.test:{server.port}/"
        found = await rebinding(["127.0.0.1"], ["10.0.0.1"]).fetch("GET", url)
        assert (found.body, asked) == (b"ok", ["rebind.test"])  # asked once: there is no second answer to believe
        assert server.requests[0].headers["host"] == f"rebind.test:{server.port}"
        for refused in (["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::ffff:169.254.169.254"], ["fe80::1%eth0"]):
            with pytest.raises(BlockExecutionError, match=r"rebind\.test: not a public address"):
                await rebinding(refused).fetch("GET", url)
        assert len(server.requests) == 1


def certificate(folder: Path, name: str) -> Path:
    """A file with a key and a certificate for that name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


async def test_the_certificate_must_be_that_of_the_name_though_the_connection_is_to_an_address(tmp_path: Path) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    file = certificate(tmp_path, "shop.test")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    trust = ssl.create_default_context(cafile=str(file))
    fetcher = HttpFetcher(HERE, resolve=resolve, context=trust)
    async with raw_server(always(answer(200, "safe")), tls=tls) as server:
        assert (await fetcher.fetch("GET", f"https://shop.test:{server.port}/")).body == b"safe"
        for other in ("bank.test", "127.0.0.1"):
            with pytest.raises(BlockExecutionError, match="the request failed: ConnectError"):
                await fetcher.fetch("GET", f"https://{other}:{server.port}/")
    assert len(server.requests) == 1


async def test_names_of_this_machine_are_refused_however_they_are_written(tmp_path: Path) -> None:
    async with raw_server(always(answer(200, "secret"))) as server:
        for host in ("localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "0.0.0.0",
                     "[::ffff:127.0.0.1]", "localhost.", "user:pass@127.0.0.1"):  # fmt: skip
            with pytest.raises(BlockExecutionError, match=r"not a public address|no such host|not a URL"):
                await send(tmp_path, RequestOptions(), url=f"http://{host}:{server.port}/")
        assert server.requests == []


async def test_proxies_of_the_environment_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(always(answer(200, "direct"))) as server, raw_server(always(answer(200, "proxy"))) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        assert await send(tmp_path, url=f"http://127.0.0.1:{server.port}/") == [("response", "direct")]


async def test_an_answer_has_a_largest_size_packed_or_not(tmp_path: Path) -> None:
    options = RequestOptions(allow=("127.0.0.1",), max_bytes=100_000, timeout_s=5)
    bomb = gzip.compress(b"0" * 50_000_000)
    for body, headers in ((b"x" * 100_001, {}), (bomb, {"content-encoding": "gzip"})):
        async with raw_server(always(answer(200, body, headers))) as server:
            with pytest.raises(BlockExecutionError, match="larger than 100000 bytes"):
                await send(tmp_path, options, url=f"http://127.0.0.1:{server.port}/")
    for packed, kind in ((gzip.compress(b"fine"), "gzip"), (zlib.compress(b"fine"), "deflate")):
        async with raw_server(always(answer(200, packed, {"content-encoding": kind}))) as server:
            assert await send(tmp_path, options, url=f"http://127.0.0.1:{server.port}/") == [("response", "fine")]
    for kind, said in (("br", "not asked for"), ("gzip", "not packed as it says")):
        async with raw_server(always(answer(200, b"neither", {"content-encoding": kind}))) as server:
            with pytest.raises(BlockExecutionError, match=said):
                await send(tmp_path, options, url=f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"], "the request failed: RemoteProtocolError"),
        ([b"not http at all\r\n\r\n"], "the request failed: RemoteProtocolError"),
        ([], "the request failed: RemoteProtocolError"),
        ([b"HTTP/1.1 302 Found\r\nlocation: http://[bad\r\ncontent-length: 0\r\n\r\n"], "no such host"),
    ],
)
async def test_broken_answers_are_errors_that_say_so(sent: list[bytes], said: str, tmp_path: Path) -> None:
    async with raw_server(always(*sent)) as server:
        with pytest.raises(BlockExecutionError, match=said):
            await send(tmp_path, url=f"http://127.0.0.1:{server.port}/")


async def test_a_server_that_drips_or_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    options = RequestOptions(allow=("127.0.0.1",), timeout_s=0.3)

    async def drips(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def silent(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2)

    for answering in (drips, silent):
        async with raw_server(answering) as server:
            with pytest.raises(BlockExecutionError, match=r"no whole answer within 0.3 s"):
                await send(tmp_path, options, url=f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        ({"url": ""}, "url: "),
        ({"url": "http://"}, "url: "),
        ({"url": "//127.0.0.1"}, "url: "),
        ({"url": "gopher://127.0.0.1/"}, "url: "),
        ({"url": "http://\ud800/"}, "url: "),
        ({"url": "http://a\0b/"}, "url: |no such host"),
        ({"url": "http://" + "a" * 10_000}, "url: longer than"),
        ({"url": "http://127.0.0.1:99999/"}, "url: |no such host"),
        ({"url": "http://no.such.host.invalid/"}, "no such host"),
        ({"url": "http://127.0.0.1/", "headers": {"a b": "c"}}, "headers: "),
        ({"url": "http://127.0.0.1/", "headers": {"a": "\ud800"}}, "headers: "),
        ({"url": "http://127.0.0.1/", "headers": {"a": "x" * 70_000}}, "headers: longer"),
        ({"url": "http://127.0.0.1/", "body": "x" * 5_000_000}, "body: larger"),
        ({"url": "http://127.0.0.1:1/"}, "the request failed: ConnectError"),
    ],
)
async def test_requests_that_cannot_be_made(pins: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BlockExecutionError, match=said):
        await send(tmp_path, **pins)


async def test_headers_of_the_connection_are_not_the_graphs_to_set(tmp_path: Path) -> None:
    async with raw_server(always(answer(200, "ok"))) as server:
        headers = {"Host": "evil.test", "Content-Length": "3", "Transfer-Encoding": "chunked", "Connection": "upgrade"}
        await send(tmp_path, url=f"http://127.0.0.1:{server.port}/", headers=headers, body={"a": 1})
    assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"
    assert server.requests[0].json() == {"a": 1}


def test_a_wrong_entry_of_the_allow_list_is_found_at_the_start() -> None:
    with pytest.raises(ConfigError):
        SendWebRequestBlock(RequestOptions(allow=("10.0.0.0/8/8",)))


async def test_a_file_is_fetched_and_stored(tmp_path: Path) -> None:
    block = FileStoreBlock(HERE)
    async with raw_server(always(answer(200, b"\x89PNG", {"content-type": "image/png"}))) as server:
        for path, name in (("/a/pic.PNG", "stored/ne.PNG"), ("/pic", "stored/ne.png"), ("/x.%2e%2e", "stored/ne.png")):
            pins = {"file_in": f"http://127.0.0.1:{server.port}{path}"}
            got = [output async for output in block.run(coerce_input(block.Input, pins), context(tmp_path))]
            assert got == [("file_out", name)]
            assert (tmp_path / name).read_bytes() == b"\x89PNG"
    async with raw_server(always(answer(404))) as server:
        pins = {"file_in": f"http://127.0.0.1:{server.port}/a"}
        with pytest.raises(BlockExecutionError, match="status 404"):
            await anext(block.run(coerce_input(block.Input, pins), context(tmp_path)))
    assert sorted(path.name for path in (tmp_path / "stored").iterdir()) == ["ne.PNG", "ne.png"]
