"""Where a Redis is, from a URL and from clients; secrets never show."""

from __future__ import annotations

import ssl

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.redis.borrow import endpoint_of
from livetape.adapters.redis.endpoint import Address, Endpoint
from livetape.errors import ConfigError

SECRET = "s3cr3t"


def credentials(endpoint: Endpoint) -> tuple[str, ...] | None:
    return None if endpoint.login is None else tuple(endpoint.login.get_credentials())


@pytest.mark.parametrize(
    ("url", "kind", "addresses", "db", "login"),
    [
        ("redis://", "single", [Address()], 0, None),
        ("redis://h", "single", [Address("h")], 0, None),
        ("redis://h:7/3", "single", [Address("h", 7)], 3, None),
        ("redis://h?db=4", "single", [Address("h")], 4, None),
        ("redis://:pw@h/0", "single", [Address("h")], 0, ("pw",)),
        ("redis://me:p%40%2F%3A:x@h/0", "single", [Address("h")], 0, ("me", "p@/::x")),
        ("redis://me@h", "single", [Address("h")], 0, ("me", "")),
        ("redis://[::1]:7", "single", [Address("::1", 7)], 0, None),
        ("redis://[::1]", "single", [Address("::1")], 0, None),
        ("unix:///run/redis.sock?db=2&password=pw", "single", [Address(path="/run/redis.sock")], 2, ("pw",)),
        ("redis+cluster://a:1,b", "cluster", [Address("a", 1), Address("b")], 0, None),
        ("redis+sentinel://me:pw@a,b:7/svc/2", "sentinel", [Address("a", 26379), Address("b", 7)], 2, ("me", "pw")),
    ],
)
def test_urls(url: str, kind: str, addresses: list[Address], db: int, login: tuple[str, ...] | None) -> None:
    endpoint = Endpoint.from_url(url)
    assert (endpoint.kind, list(endpoint.addresses), endpoint.db, credentials(endpoint)) == (
        kind,
        addresses,
        db,
        login,
    )
    assert endpoint.tls is None


def test_sentinel_has_a_service_and_a_login_of_its_own() -> None:
    endpoint = Endpoint.from_url("redis+sentinel://a/svc?sentinel_username=me&sentinel_password=pw")
    assert endpoint.service == "svc"
    assert endpoint.login is None
    assert endpoint.sentinel_login is not None
    assert endpoint.sentinel_login.get_credentials() == ("me", "pw")


def test_tls_options() -> None:
    url = "rediss://h?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_check_hostname=no"
    tls = Endpoint.from_url(url).tls
    assert tls is not None
    assert (tls.ca_certs, tls.certfile, tls.keyfile) == ("/ca.pem", "/c.pem", "/k.pem")
    assert (tls.verify, tls.check_hostname) == (ssl.CERT_REQUIRED, False)
    with pytest.raises(ConfigError, match="TLS settings") as caught:
        tls.context()
    assert "ssl_ca_certs" in (caught.value.fix or "")


def test_without_a_check_of_the_certificate() -> None:
    tls = Endpoint.from_url("rediss://h?ssl_cert_reqs=none").tls
    assert tls is not None
    assert tls.context().verify_mode is ssl.CERT_NONE


def test_time_outs() -> None:
    endpoint = Endpoint.from_url("redis://h?socket_timeout=2.5&socket_connect_timeout=1")
    assert (endpoint.reply_s, endpoint.connect_s) == (2.5, 1.0)
    assert Endpoint.from_url("redis://h?timeout=3").connect_s == 3.0


def test_what_only_redis_py_understands_is_passed_over() -> None:
    assert Endpoint.from_url("redis://h?decode_responses=true&max_connections=10&protocol=3").db == 0


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@h",
        f"{SECRET}",
        f"redis://me:{SECRET}/x@h:6379/0",
        f"redis://me:1/{SECRET}@h:6379/0",
        f"redis://me:x?{SECRET}@h:6379/0",
        f"redis://me:{SECRET}@h:port/0",
        f"redis://me:{SECRET}@h:0/0",
        f"redis://me:{SECRET}@h/1/2",
        f"redis://me:{SECRET}@h/zero",
        f"redis://me:{SECRET}@a,b/0",
        f"redis://me:{SECRET}@h?socket_timeout=never",
        f"redis://me:{SECRET}@h?socket_timeout=-1",
        f"redis://me:{SECRET}@h?ssl_ca_certs=/x",
        f"rediss://me:{SECRET}@h?ssl_cert_reqs=perhaps",
        f"rediss://me:{SECRET}@h?ssl_check_hostname=perhaps",
        f"redis+sentinel://me:{SECRET}@h",
        f"redis+cluster://me:{SECRET}@h/1",
        f"unix://me:{SECRET}@",
        f"unix://host{SECRET}/x",
    ],
)
def test_a_bad_url_is_refused_with_the_remedy_and_without_the_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.from_url(url)
    told = f"{caught.value!r} {caught.value.message} {caught.value.fix} {caught.value.because}"
    assert caught.value.fix
    assert SECRET not in told


@given(st.text(max_size=40))
def test_no_url_breaks_the_parser(rest: str) -> None:
    for scheme in ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"):
        try:
            endpoint = Endpoint.from_url(f"{scheme}://{rest}")
        except ConfigError:
            continue
        assert endpoint.addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:s3cr3t@h/1", "redis://***@h:6379/1"),
        ("rediss+cluster://:s3cr3t@a,b", "rediss+cluster://***@a:6379,b:6379/0"),
        ("redis+sentinel://a/svc/2?sentinel_password=s3cr3t", "redis+sentinel://a:26379/svc/2"),
        ("unix:///s.sock?password=s3cr3t", "unix://***@/s.sock?db=0"),
    ],
)
def test_secrets_do_not_show(url: str, shown: str) -> None:
    endpoint = Endpoint.from_url(url)
    assert str(endpoint) == shown
    assert SECRET not in repr(endpoint)


async def test_the_settings_of_a_client() -> None:
    url = "rediss://me:pw@h:7/3?ssl_ca_certs=/ca.pem&ssl_check_hostname=false&socket_timeout=2"
    for client in (redis.Redis.from_url(url), redis.asyncio.Redis.from_url(url)):
        endpoint = endpoint_of(client)
        assert (endpoint.kind, endpoint.addresses, endpoint.db) == ("single", (Address("h", 7),), 3)
        assert credentials(endpoint) == ("me", "pw")
        assert endpoint.reply_s == 2.0
        assert endpoint.tls is not None
        assert (endpoint.tls.ca_certs, endpoint.tls.check_hostname) == ("/ca.pem", False)


async def test_the_settings_of_a_client_on_a_socket() -> None:
    endpoint = endpoint_of(redis.asyncio.Redis(unix_socket_path="/s.sock", db=2))
    assert (endpoint.addresses, endpoint.db, endpoint.tls) == ((Address(path="/s.sock"),), 2, None)


async def test_the_settings_of_a_client_of_sentinels() -> None:
    sentinels, options = [("a", 1), ("b", 2)], {"password": "guard"}
    for client in (
        redis.sentinel.Sentinel(sentinels, sentinel_kwargs=options).master_for("svc", db=3, password="pw"),
        redis.asyncio.sentinel.Sentinel(sentinels, sentinel_kwargs=options).master_for("svc", db=3, password="pw"),
    ):
        endpoint = endpoint_of(client)
        assert (endpoint.kind, endpoint.service, endpoint.db) == ("sentinel", "svc", 3)
        assert endpoint.addresses == (Address("a", 1), Address("b", 2))
        assert credentials(endpoint) == ("pw",)
        assert endpoint.sentinel_login is not None
        assert endpoint.sentinel_login.get_credentials() == ("guard",)


async def test_a_client_of_replicas_is_refused() -> None:
    client = redis.asyncio.sentinel.Sentinel([("a", 1)]).slave_for("svc")
    with pytest.raises(ConfigError, match="replicas"):
        endpoint_of(client)


async def test_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"builtins\.str is no client"):
        endpoint_of("redis://h")
