"""Where a Redis is and how to log in there: from a URL. Secrets never show, neither here nor in what is raised."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote

from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider

from livetape.errors import ConfigError

Kind: TypeAlias = Literal["single", "sentinel", "cluster"]

DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
DEFAULT_TIMEOUT_S: Final = 5.0

_KINDS: Final[Mapping[str, tuple[Kind, bool]]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_TEXTS: Final = frozenset({"username", "password", "client_name", "sentinel_username", "sentinel_password"})
_TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})
_SECONDS: Final = frozenset({"socket_timeout", "socket_connect_timeout", "timeout"})
# Settings of redis-py's own pools and parsers: a URL that is shared with other programs may carry them.
_WITHOUT_MEANING: Final = frozenset(
    {
        "decode_responses", "encoding", "encoding_errors", "health_check_interval", "legacy_responses",
        "max_connections", "protocol", "retry_on_timeout", "socket_keepalive", "socket_read_size",
    }
)  # fmt: skip
_KNOWN: Final = _TEXTS | _TLS_OPTIONS | _SECONDS | {"db"}


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, or the path of a Unix socket."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server's certificate is checked, and which one is shown to it. Names are files in PEM form."""

    ca_certs: str | None = None
    ca_data: str | bytes | None = None
    ca_path: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key_password: str | None = field(default=None, repr=False)
    verify: ssl.VerifyMode = ssl.CERT_REQUIRED
    check_hostname: bool = True
    min_version: ssl.TLSVersion | None = None
    ciphers: str | None = None

    def context(self) -> ssl.SSLContext:
        """For one or many connections.

        Raises:
            ConfigError: a file is missing or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_certs, capath=self.ca_path, cadata=self.ca_data)
            context.check_hostname = self.check_hostname and self.verify is not ssl.CERT_NONE
            context.verify_mode = self.verify
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile, self.key_password)
            if self.min_version is not None:
                context.minimum_version = self.min_version
            if self.ciphers is not None:
                context.set_ciphers(self.ciphers)
        except OSError as error:
            raise ConfigError(
                "the TLS settings for Redis cannot be used",
                because=str(error),
                fix="check that ssl_ca_certs, ssl_certfile and ssl_keyfile name readable PEM files that fit together",
            ) from error
        return context

    def options(self) -> dict[str, Any]:
        """The same as redis-py names it."""
        options = {
            "ssl": True,
            "ssl_ca_certs": self.ca_certs,
            "ssl_ca_data": self.ca_data,
            "ssl_certfile": self.certfile,
            "ssl_keyfile": self.keyfile,
            "ssl_cert_reqs": self.verify,
            "ssl_check_hostname": self.check_hostname,
            "ssl_min_version": self.min_version,
            "ssl_ciphers": self.ciphers,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server, the Sentinels that know the master `service`, or some nodes of a cluster.

    `login` gives user name and password whenever a connection is made. Times are in seconds: `connect_s` for the
    network, `reply_s` for the oldest command without an answer.
    """

    kind: Kind
    addresses: tuple[Address, ...]
    db: int = 0
    login: CredentialProvider | None = field(default=None, repr=False)
    tls: Tls | None = None
    service: str = ""
    sentinel_login: CredentialProvider | None = field(default=None, repr=False)
    sentinel_tls: Tls | None = None
    client_name: str = "livetape"
    connect_s: float = DEFAULT_TIMEOUT_S
    reply_s: float = DEFAULT_TIMEOUT_S

    @classmethod
    def from_url(cls, url: str) -> Endpoint:
        """See `livetape.events.open` for the forms. Options stand in the query, named as in redis-py.

        Raises:
            ConfigError: says what is wrong and how to write it, without the URL, which may hold a password.
        """
        return _parse(url)

    def __str__(self) -> str:
        """As a URL, with `***` for the password."""
        if self.addresses[0].path:
            return f"unix://{'***@' if self.login else ''}{self.addresses[0].path}?db={self.db}"
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "single" else f"+{self.kind}")
        hosts = ",".join(str(address) for address in self.addresses)
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}://{'***@' if self.login else ''}{hosts}{service}/{self.db}"


def login_of(username: str | None, password: str | None) -> CredentialProvider | None:
    """None when there is nothing to log in with."""
    if not username and not password:
        return None
    return UsernamePasswordCredentialProvider(username or None, password or "")


def _parse(url: str) -> Endpoint:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _KINDS:
        raise ConfigError(
            "this is no URL of a Redis", fix=f"begin it with one of {', '.join(s + '://' for s in _KINDS)}"
        )
    kind, encrypted = _KINDS[scheme]
    rest, _, query = rest.partition("?")
    options = _options(query)
    place, _, path = rest.partition("/")
    credentials, _, hosts = place.rpartition("@")
    username, _, password = credentials.partition(":")
    tls = _tls(options, encrypted=encrypted)
    timeout = options.get("socket_timeout", options.get("timeout"))
    reply_s = DEFAULT_TIMEOUT_S if timeout is None else _seconds(timeout)
    connect_s = _seconds(options["socket_connect_timeout"]) if "socket_connect_timeout" in options else reply_s
    levels = [unquote(level) for level in path.split("/") if level]
    service = ""
    if scheme == "unix":
        if hosts or not path:
            raise ConfigError(
                "a Unix socket has a path and no host", fix="write it as unix:///run/redis/redis.sock?db=0"
            )
        addresses: tuple[Address, ...] = (Address(path="/" + unquote(path)),)
        levels = []
    else:
        addresses = tuple(
            _address(host, SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT) for host in hosts.split(",")
        )
    if kind == "sentinel":
        if not levels:
            raise ConfigError(
                "the name of the Sentinel service is missing",
                fix=f"write it after the hosts: {scheme}://host:26379,host2:26379/mymaster/0",
            )
        service = levels.pop(0)
    elif kind == "single" and len(addresses) > 1:
        raise ConfigError(
            "several hosts for one server", fix="use redis+sentinel:// or redis+cluster://, or name only one host"
        )
    if len(levels) > 1:
        raise ConfigError("the URL's path has too many levels", fix="after the host stands only the database number")
    db = _database(options.get("db", levels[0] if levels else "0"))
    if kind == "cluster" and db:
        raise ConfigError("a cluster has only database 0", fix="leave the database number out")
    return Endpoint(
        kind,
        addresses,
        db,
        login_of(options.get("username") or unquote(username), options.get("password") or unquote(password)),
        tls,
        service,
        login_of(options.get("sentinel_username"), options.get("sentinel_password")),
        tls if kind == "sentinel" else None,
        options.get("client_name", "livetape"),
        connect_s,
        reply_s,
    )


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - _KNOWN - _WITHOUT_MEANING)
    if unknown:
        # What is no word may be the rest of a password.
        named = f": {unknown[0]}" if unknown[0].isidentifier() else ""
        raise ConfigError(
            f"the Redis URL has an option that is not known{named}",
            fix=f"known are {', '.join(sorted(_KNOWN))}; a `?` in a password is written %3F",
        )
    return options


def _address(host: str, port: int) -> Address:
    """Never quotes what it got: it may be half of a password."""
    name, colon, digits = host.rpartition(":")
    if host.startswith("["):
        name, _, after = host[1:].partition("]")
        colon, digits = after[:1], after[1:]
    elif not colon:
        name, digits = host, ""
    if colon and not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 65536):
        raise ConfigError(
            "the port in the Redis URL is not a number from 1 to 65535",
            fix="write redis://user:password@host:6379/0; in a password, / is written %2F, ? %3F, # %23, @ %40, % %25",
        )
    return Address(unquote(name) or "localhost", int(digits) if colon else port)


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            "the database in the Redis URL is not a number",
            fix="write redis://host:6379/0; a password stands before the host: redis://:password@host:6379/0",
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise ConfigError("a time-out in the Redis URL is not a number of seconds", fix="write socket_timeout=5")
    return seconds


def _tls(options: Mapping[str, str], *, encrypted: bool) -> Tls | None:
    given = sorted(options.keys() & _TLS_OPTIONS)
    if not encrypted:
        if given:
            raise ConfigError(f"{given[0]} is given for a link without TLS", fix="begin the URL with rediss")
        return None
    checked = options.get("ssl_check_hostname", "true").lower()
    if checked not in {"true", "yes", "1", "false", "no", "0"}:
        raise ConfigError("ssl_check_hostname is neither true nor false", fix="write ssl_check_hostname=true")
    return Tls(
        ca_certs=options.get("ssl_ca_certs"),
        certfile=options.get("ssl_certfile"),
        keyfile=options.get("ssl_keyfile"),
        verify=verify_mode(options.get("ssl_cert_reqs", "required")),
        check_hostname=checked in {"true", "yes", "1"},
    )


def verify_mode(given: object) -> ssl.VerifyMode:
    """As redis-py takes it: `required`, `optional`, `none`, also `CERT_REQUIRED` … and None."""
    if given is None:
        return ssl.CERT_NONE
    if isinstance(given, int):
        return ssl.VerifyMode(given)
    modes = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
    mode = modes.get(str(given).lower().removeprefix("cert_"))
    if mode is None:
        raise ConfigError("ssl_cert_reqs is not known", fix="use required, optional or none")
    return mode
