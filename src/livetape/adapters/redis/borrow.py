"""An Endpoint from a client of redis-py: where it connects to and how, for connections of our own."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import RedisCluster as AsyncRedisCluster
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.credentials import CredentialProvider
from redis.sentinel import SentinelConnectionPool

from livetape.adapters.redis.endpoint import (
    DEFAULT_PORT,
    DEFAULT_TIMEOUT_S,
    SENTINEL_PORT,
    Address,
    Endpoint,
    Tls,
    login_of,
    verify_mode,
)
from livetape.errors import ConfigError


def endpoint_of(client: object) -> Endpoint:
    """The settings of its pool. Nothing is connected, and the client is not used later on.

    Raises:
        ConfigError: not a client of redis-py, or one that reads from replicas only.
    """
    if isinstance(client, redis.RedisCluster | AsyncRedisCluster):
        return _of_cluster(client)
    if not isinstance(client, redis.Redis | AsyncRedis):
        raise ConfigError(
            f"a {type(client).__module__}.{type(client).__qualname__} is no client of redis-py",
            fix="give a redis.asyncio.Redis, a redis.Redis or one of their RedisCluster, or open a URL",
        )
    pool = client.connection_pool
    options: Mapping[str, Any] = pool.connection_kwargs
    tls = _tls(options, pool.connection_class)
    if isinstance(pool, SentinelConnectionPool | AsyncSentinelConnectionPool):
        return _of_sentinel(pool, options, tls)
    path = options.get("path")
    address = Address(path=str(path)) if path else _address(options, DEFAULT_PORT)
    return Endpoint("single", (address,), int(options.get("db") or 0), _login(options), tls, **_common(options))


def _of_sentinel(pool: Any, options: Mapping[str, Any], tls: Tls | None) -> Endpoint:
    if not pool.is_master:
        raise ConfigError(
            "the client speaks to replicas, which cannot be written to", fix="make it with Sentinel.master_for"
        )
    sentinels = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    first: Mapping[str, Any] = sentinels[0].connection_kwargs
    return Endpoint(
        "sentinel",
        tuple(_address(sentinel.connection_kwargs, SENTINEL_PORT) for sentinel in sentinels),
        int(options.get("db") or 0),
        _login(options),
        tls,
        str(pool.service_name),
        _login(first),
        _tls(first, sentinels[0].connection_class),
        **_common(options),
    )


def _of_cluster(client: Any) -> Endpoint:
    options: Mapping[str, Any] = client.get_connection_kwargs()
    nodes = [*client.get_nodes(), *client.nodes_manager.startup_nodes.values()]
    addresses = tuple(dict.fromkeys(Address(str(node.host), int(node.port)) for node in nodes))
    return Endpoint(
        "cluster", addresses, 0, _login(options), _tls(options, options.get("connection_class")), **_common(options)
    )


def _address(options: Mapping[str, Any], port: int) -> Address:
    return Address(str(options.get("host") or "localhost"), int(options.get("port") or port))


def _login(options: Mapping[str, Any]) -> CredentialProvider | None:
    provider: CredentialProvider | None = options.get("credential_provider")
    return provider or login_of(options.get("username"), options.get("password"))


def _common(options: Mapping[str, Any]) -> dict[str, Any]:
    reply_s = options.get("socket_timeout")
    connect_s = options.get("socket_connect_timeout")
    return {
        "client_name": options.get("client_name") or "livetape",
        "connect_s": float(connect_s or reply_s or DEFAULT_TIMEOUT_S),
        "reply_s": float(reply_s or DEFAULT_TIMEOUT_S),
    }


def _tls(options: Mapping[str, Any], connection_class: Any) -> Tls | None:
    classes = (AsyncSSLConnection, redis.SSLConnection)
    if not options.get("ssl") and not (isinstance(connection_class, type) and issubclass(connection_class, classes)):
        return None
    min_version = options.get("ssl_min_version")
    return Tls(
        ca_certs=options.get("ssl_ca_certs"),
        ca_data=options.get("ssl_ca_data"),
        ca_path=options.get("ssl_ca_path"),
        certfile=options.get("ssl_certfile"),
        keyfile=options.get("ssl_keyfile"),
        key_password=options.get("ssl_password"),
        verify=verify_mode(options.get("ssl_cert_reqs", "required")),
        check_hostname=bool(options.get("ssl_check_hostname", True)),
        min_version=None if min_version is None else ssl.TLSVersion(min_version),
        ciphers=options.get("ssl_ciphers"),
    )
