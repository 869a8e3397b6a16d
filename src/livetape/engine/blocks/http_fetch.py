"""One HTTP request for a graph: only to public addresses, within limits of size, time and redirects.

Names are resolved here, every address is checked, and the connection goes to the address that was checked: a name
that means something else a moment later changes nothing. Each redirect begins anew, and to another origin (scheme,
host or port) only harmless headers go along. Proxies of the environment are not used, since they would resolve names
themselves.
"""

from __future__ import annotations

import asyncio
import codecs
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import httpx2

from livetape.engine.blocks.options import RequestOptions
from livetape.engine.blocks.public_address import Allowed, parse_address
from livetape.errors import BlockExecutionError

MAX_URL: Final = 8_000
MAX_HEADERS: Final = 64 * 1024
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Made here, or a way to smuggle a second request.
OWN_HEADERS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "accept-encoding",
        "upgrade",
        "te",
        "trailer",
        "expect",
    }
)
CHARSETS: Final = (
    "utf-8",
    "utf-16",
    "utf-32",
    "ascii",
    "iso8859",
    "iso2022",
    "cp",
    "koi8",
    "kz1048",
    "gb",
    "big5",
    "euc_",
    "shift_ji",
    "mac-",
    "tis-620",
    "johab",
    "hz",
)
# What is no secret, whoever gets it: all that a redirect takes along to another origin. A key may be in any other.
HARMLESS_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-language",
        "content-encoding",
        "content-language",
        "content-type",
        "idempotency-key",  # a request that moved may be sent twice as one that did not
        "range",
        "user-agent",
    }
)


Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is at most as long as the options say; `url` is the last one."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    @property
    def text(self) -> str:
        """The body in its charset, if that is one of texts, else UTF-8; what does not fit is replaced."""
        charset = httpx2.Response(200, headers=dict(self.headers)).charset_encoding or "utf-8"
        return self.body.decode(_charset(charset), "replace")


class HttpFetcher:
    """Sends requests within the options. `resolve` gives the addresses of a host, `context` says whose certificates
    are trusted; by default both are those of this machine.

    Raises:
        ConfigError: an entry of `options.allow` is none.
    """

    def __init__(
        self, options: RequestOptions, *, resolve: Resolve | None = None, context: ssl.SSLContext | None = None
    ) -> None:
        self._options = options
        self._allowed = Allowed.of(options.allow)
        self._resolve = resolve or system_addresses
        self._context = context

    async def fetch(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> Answer:
        """The answer, whatever its status. `body` is given to the client as `content`, `json`, `data` or `files`.

        A redirect to another origin gets of `headers` only those of HARMLESS_HEADERS; with 307 and 308 it gets `body`.

        Raises:
            BlockExecutionError: it may not be reached, cannot be reached, or breaks a limit.
        """
        limit = self._options.timeout_s
        if self._context is None:  # it reads all certificates of the system: once
            self._context = await asyncio.to_thread(httpx2.create_ssl_context)
        try:
            async with (
                asyncio.timeout(limit),
                httpx2.AsyncClient(
                    verify=self._context,
                    trust_env=False,
                    follow_redirects=False,
                    timeout=limit,
                    # Each request on a connection of its own: another name may have the same address.
                    limits=httpx2.Limits(max_keepalive_connections=0),
                ) as client,
            ):
                return await self._follow(client, method, _parsed(url), _clean(headers or {}), dict(body or {}))
        except (TimeoutError, httpx2.TimeoutException):
            raise BlockExecutionError(f"no whole answer within {limit:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise BlockExecutionError(f"the request failed: {type(error).__name__}") from None

    async def _follow(
        self, client: httpx2.AsyncClient, method: str, url: httpx2.URL, headers: dict[str, str], body: dict[str, Any]
    ) -> Answer:
        for _ in range(self._options.max_redirects + 1):
            response = await self._send(client, method, url, headers, body)
            try:
                target = response.headers.get("location")
                if response.status_code not in REDIRECTS or not target:
                    content = await _read(response, self._options.max_bytes)
                    return Answer(response.status_code, dict(response.headers), content, str(url))
            finally:
                await response.aclose()
            before, url = url, _parsed(str(url.join(target)))
            if (before.scheme, before.host, before.port) != (url.scheme, url.host, url.port):
                headers = {name: value for name, value in headers.items() if name in HARMLESS_HEADERS}
            if response.status_code == 303 or (response.status_code in {301, 302} and method == "POST"):
                method, body = ("HEAD" if method == "HEAD" else "GET"), {}
                headers = {name: value for name, value in headers.items() if not name.startswith("content-")}
        raise BlockExecutionError(f"more than {self._options.max_redirects} redirects")

    async def _send(
        self,
        client: httpx2.AsyncClient,
        method: str,
        url: httpx2.URL,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
    ) -> httpx2.Response:
        failure: httpx2.HTTPError | None = None
        own = {"Host": url.netloc.decode("ascii").rpartition("@")[2], "Accept-Encoding": "gzip, deflate"}
        for address in await self._addresses(url):
            request = client.build_request(
                method,
                url.copy_with(host=address),
                headers={**headers, **own},
                # The certificate is that of the name, though the connection is to the address.
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
                **body,
            )
            try:
                response = await client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
                continue
            client.cookies.clear()  # what one host sets is not for the next
            return response
        raise failure or BlockExecutionError(f"{url.host}: has no address")

    async def _addresses(self, url: httpx2.URL) -> Sequence[str]:
        """Where it may be reached. If one address of a name is refused, all are: nobody serves the public like that."""
        host = url.host
        try:
            found = await self._resolve(host, url.port or (443 if url.scheme == "https" else 80))
        except (OSError, UnicodeError, ValueError):
            raise BlockExecutionError(f"{host}: no such host") from None
        for address in found:
            if not self._allowed.permits(host, parse_address(address)):
                # One answer for all kinds: it does not tell what is in this network.
                raise BlockExecutionError(f"{host}: not a public address, it may not be reached from here")
        return found


async def system_addresses(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as this machine resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def _charset(name: str) -> str:
    """This charset if texts are written in it, else UTF-8. Python knows some that take hours, or do something else."""
    try:
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        return "utf-8"
    return known if known.startswith(CHARSETS) else "utf-8"


def _parsed(url: str) -> httpx2.URL:
    if len(url) > MAX_URL:
        raise BlockExecutionError(f"url: longer than {MAX_URL} characters")
    try:
        parsed = httpx2.URL(url)
        host = parsed.raw_host
    except (httpx2.InvalidURL, UnicodeError, ValueError):
        raise BlockExecutionError("url: not a URL") from None
    if not 0 <= (parsed.port or 0) <= 65_535:
        raise BlockExecutionError("url: not a URL")
    if parsed.scheme not in {"http", "https"} or not host:
        raise BlockExecutionError("url: must begin with http:// or https:// and name a host")
    return parsed


def _clean(headers: Mapping[str, str]) -> dict[str, str]:
    clean: dict[str, str] = {}
    for name, value in headers.items():
        lowered = name.strip().lower()
        if lowered in OWN_HEADERS:
            continue
        if not lowered or not all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in lowered) or not lowered.isascii():
            raise BlockExecutionError("headers: a name that is none")
        if any(ord(c) < 32 and c != "\t" for c in value) or not value.isascii():
            raise BlockExecutionError(f"headers: the value of {lowered} has characters that a header cannot have")
        clean[lowered] = value
    if sum(len(name) + len(value) for name, value in clean.items()) > MAX_HEADERS:
        raise BlockExecutionError(f"headers: longer than {MAX_HEADERS} characters")
    return clean


async def _read(response: httpx2.Response, limit: int) -> bytes:
    """The body, unpacked here so that a small answer cannot become a huge one before it is counted."""
    packing = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    unpacker = None
    if packing in {"gzip", "x-gzip", "deflate"}:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    elif packing != "identity":
        raise BlockExecutionError("the answer is packed in a way that was not asked for")
    content = bytearray()
    async for chunk in response.aiter_raw():
        part = chunk
        if unpacker is not None:
            try:
                part = unpacker.decompress(chunk, limit + 1 - len(content))
            except zlib.error:
                raise BlockExecutionError("the answer is not packed as it says") from None
        content += part
        if len(content) > limit:
            raise BlockExecutionError(f"the answer is larger than {limit} bytes")
    return bytes(content)
