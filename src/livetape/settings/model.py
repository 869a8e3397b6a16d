"""What can be set: one frozen model. Descriptions and units here are the reference page.

A plain model, so that `Settings()` is the defaults and never the environment; `load.py` reads that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from livetape.errors import ConfigError
from livetape.settings.places import DATA_DIR, SERVER_FILE, is_loopback

REDIS_SCHEMES: tuple[str, ...] = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)

AMQP_SCHEMES: tuple[str, ...] = ("amqp", "amqps")
POSTGRES_SCHEMES: tuple[str, ...] = ("postgresql", "postgres")

SCHEMES: dict[str, tuple[str, ...]] = {
    "bus": ("memory", *REDIS_SCHEMES),
    "log": ("sqlite", *REDIS_SCHEMES),
    "ephemeral": ("memory", *REDIS_SCHEMES),
    "queue": ("sqlite", *AMQP_SCHEMES),
    "database": ("sqlite", *POSTGRES_SCHEMES),
    "store": ("sqlite", *POSTGRES_SCHEMES),
    "files": ("file",),
    "blobs": ("file",),
}
"""The adapters that this version has, by port."""

DISTRIBUTED_SCHEMES = frozenset({"redis", "rediss", "postgresql", "postgres", "amqp", "amqps", "s3", "gs", "az"})

MIN_KEY_BYTES = 32

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)


class GatewaySettings(Section):
    """The WebSocket and SSE gateway."""

    ping_interval_seconds: Positive = Field(25.0, description="A ping goes out this often.")
    ping_timeout_seconds: Positive = Field(60.0, description="After an unanswered ping the socket is closed (4009).")
    max_message_bytes: Count = Field(65_536, description="The largest message taken from a client.")
    max_channels: Count = Field(1_024, description="Live subscriptions of one socket; finished ones do not count.")
    max_sockets_per_user: Count = Field(20, description="Sockets of one user in one process; not with auth off.")
    max_sockets: Count = Field(20_000, description="Sockets of one process.")
    max_streams_per_user: Count = Field(
        100, description="Event streams over HTTP of one user in one process; not with auth off."
    )
    max_streams: Count = Field(5_000, description="Event streams over HTTP of one process.")
    refuse_delay_min_seconds: Seconds = Field(1.0, description="A refused connection is answered no sooner.")
    refuse_delay_max_seconds: Seconds = Field(5.0, description="A refused connection is answered no later.")
    outbox_max_bytes: Count = Field(8 * 1024 * 1024, description="Bytes that may wait for one slow socket.")
    outbox_max_messages: Count = Field(4_096, description="Messages that may wait for one slow socket.")
    slow_seconds: Positive = Field(
        30.0,
        description="A socket that stays behind for so long is closed (4008). Over HTTP it is cut off who does not "
        "take an answer, or does not send a body, for so long.",
    )
    close_seconds: Positive = Field(5.0, description="A client has so long to take what is left and the close.")
    messages_per_second: Positive = Field(50.0, description="Messages a second that a client may send for long.")
    message_burst: Count = Field(1_000, description="Messages that a client may send at once before it is slowed.")
    flood_seconds: Seconds = Field(30.0, description="A client that must be slowed for so long is closed (4029).")
    expiry_notice_seconds: Seconds = Field(60.0, description="`token_expiring` comes so long before the end.")
    expiry_grace_seconds: Seconds = Field(
        30.0, description="The socket is closed (4003), a stream ends so long after the end."
    )
    keepalive_seconds: Positive = Field(15.0, description="A comment on an event stream silent for so long.")
    replay_chunk_bytes: Count = Field(262_144, description="About as much is read from a tape at once.")
    replay_chunk_events: int = Field(256, ge=1, le=1_000, description="Events read from a tape at once.")
    replay_cache_bytes: Count = Field(
        16 * 1024 * 1024, description="Bytes of tapes, kept for a moment for all who read the same."
    )
    sweep_seconds: Positive = Field(25.0, description="Quiet tapes are compared with the log this often.")
    tail_max_events: Count = Field(1_024, description="Live events kept for those who are still reading a tape.")
    tail_max_bytes: Count = Field(4 * 1024 * 1024, description="Bytes of live events kept for them.")
    max_event_bytes: Count = Field(16 * 1024 * 1024, description="A larger event is shortened, or told as an error.")
    stop_seconds: Positive = Field(3.0, description="An engine has so long to answer a stop over a socket.")
    drain_seconds: Seconds | None = Field(
        None,
        description="A stop takes so long to send sockets elsewhere. None: 20 for `serve`, 1 for `up`.",
    )
    ticket_seconds: Positive = Field(30.0, description="A ticket opens a socket for so long, once.")
    tickets_per_user: Count = Field(100, description="Tickets of one user within `ticket_seconds`; not with auth off.")
    longest_token_seconds: Positive = Field(
        400 * 86_400.0, description="No token lives longer: so long revoked users are remembered."
    )
    compression: bool = Field(
        False, description="Compress messages for clients that offer it (permessage-deflate); costs memory and time."
    )
    io_uring: bool = Field(
        True, description="Send to many sockets by one system call where the system allows it (Linux)."
    )
    compat_resume: bool = Field(
        True, description="Sockets of pages that do not subscribe again go on where the last one was."
    )
    compat_resume_seconds: Positive = Field(120.0, description="What such a page watched is kept for so long.")
    jobs_unowned: Literal["admin", "any_user"] = Field(
        "admin", description="Who may read job tapes that have no owner."
    )

    @model_validator(mode="after")
    def _delays_in_order(self) -> Self:
        if self.refuse_delay_min_seconds > self.refuse_delay_max_seconds:
            raise ValueError("refuse_delay_min_seconds is above refuse_delay_max_seconds")
        return self


class EngineSettings(Section):
    """Running graphs."""

    concurrency: Count = Field(10, description="Executions that one worker runs at once.")
    parallel_nodes: Count = Field(8, description="Nodes of one execution that run at once.")
    step_limit: Count = Field(100_000, description="Node executions of one execution; ends endless loops.")
    max_input_bytes: Count = Field(1024 * 1024, description="JSON bytes of the inputs of one execution.")
    blob_bytes: int = Field(
        256 * 1024, ge=1024, description="A value with more JSON bytes is kept in a file; rows and events point to it."
    )
    blob_execution_bytes: Count = Field(
        1024 * 1024 * 1024, description="JSON bytes of all values of one execution that are kept in files."
    )
    lease_seconds: Positive = Field(15.0, description="How long a claimed execution belongs to a silent worker.")
    renew_seconds: Positive = Field(5.0, description="A worker renews its leases this often.")
    sweep_seconds: Positive = Field(2.5, description="Expired leases are looked for this often.")
    cancel_grace_seconds: Seconds = Field(10.0, description="A stopped block may go on for so long.")
    user_concurrency: Count | None = Field(None, description="Executions of one user that run at once; None: any.")
    graph_concurrency: Count | None = Field(
        None, description="Executions of one graph of a user that run at once; None: any."
    )
    execution_seconds: Positive | None = Field(
        None, description="An execution may run for so long; waits for timers, graphs and people do not count."
    )
    queue_seconds: Positive | None = Field(None, description="An execution may wait for so long to be begun.")
    max_depth: Count = Field(10, description="Graphs that may run inside each other.")
    process_environment: tuple[VariableName, ...] = Field(
        (),
        description="Names of variables that blocks in processes of their own get from the worker's environment, "
        "beside `PATH`, `HOME`, language, time zone, certificates and what Python reads. Nothing else is passed on.",
    )
    safe_mode: bool = Field(True, description="Blocks that ask people wait for them; without it they go on at once.")
    node_error_policy: Literal["fail", "complete"] = Field(
        "fail", description="Status of an execution with an unhandled node error: FAILED, or COMPLETED."
    )

    @model_validator(mode="after")
    def _renews_in_time(self) -> Self:
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("renew_seconds must be at most half of lease_seconds")
        return self


class RequestSettings(Section):
    """HTTP requests of blocks."""

    allow: tuple[str, ...] = Field(
        (), description="Hosts, addresses and networks (`10.1.0.0/16`) that blocks may reach beside public addresses."
    )
    max_bytes: Count = Field(4 * 1024 * 1024, description="The largest answer that a block takes.")
    timeout_seconds: Positive = Field(60.0, description="A request of a block takes no longer, redirects included.")
    max_redirects: int = Field(5, ge=0, le=20, description="Redirects that a request of a block follows.")


class ModelSettings(Section):
    """The language model of blocks."""

    base_url: str | None = Field(
        None, pattern=r"^https?://", description="Endpoint that speaks OpenAI's chat completions: `https://host/v1`."
    )
    api_key: SecretStr | None = Field(None, description="Its key; sent there and nowhere else.")
    model: str | None = Field(None, description="The model for nodes that name none.")
    silence_seconds: Positive = Field(60.0, description="The endpoint may say nothing for so long.")


class Settings(Section):
    """Everything that can be set. Sections are nested with `__` in the environment and as tables in the file."""

    app_env: Literal["local", "dev", "prod"] = Field(
        "local", description="Where this runs. `local` shows /docs and /metrics."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8420, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path(DATA_DIR), description="Folder of the database, the secret and `files/`.")
    bus: str | None = Field(None, description="URL of the event bus. None: that of a Redis log, else memory://.")
    log: str | None = Field(
        None, description="URL of the event log. None: that of a Redis bus, else the database in the data folder."
    )
    ephemeral: str | None = Field(
        None, description="URL of tickets and revocations. None: that of a Redis bus, else the database."
    )
    queue: str | None = Field(None, description="URL of the queue: amqp://, or None: the database in the data folder.")
    database: str | None = Field(
        None, description="URL of the database: postgresql://, or sqlite:///. None: `livetape.db` in the data folder."
    )
    store: str | None = Field(None, description="Another name of `database`.")
    files: str | None = Field(None, description="URL of the file store. None: `files/` in the data folder.")
    blobs: str | None = Field(
        None,
        description="URL of the folder of large values, which all processes on a database share: file:///path. "
        "None: `blobs/` in the data folder.",
    )
    enable_auth: bool = Field(
        True, description="Ask for tokens. On a loopback address, callers of this machine without one are `dev`."
    )
    allow_insecure: bool = Field(False, description="Allow auth to be off on an address that others can reach.")
    jwt_verify_key: SecretStr | None = Field(
        None, description="Key that tokens are checked with. None: `secret.key` in the data folder."
    )
    jwt_sign_algorithm: Literal[
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS512", "EdDSA"
    ] = Field("HS256", description="The one algorithm that tokens may use.")
    allowed_origins: tuple[str, ...] = Field((), description="Origins of pages that may call from a browser.")
    allowed_hosts: tuple[str, ...] = Field((), description="Host names, beside the loopback ones, that are ours.")
    docs_enabled: bool = Field(False, description="Show /docs also when `app_env` is not `local`.")
    enable_metrics: bool = Field(
        default_factory=lambda data: data.get("app_env") == "local",
        description="Serve /metrics. Default: only when `app_env` is `local`.",
    )
    metrics_namespace: str = Field(
        "livetape", pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", description="First word of every metric's name."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object a line.")
    error_hook: FunctionName | None = Field(
        None, description="`module:function`, told of errors that nobody foresaw: `function(exception, context)`."
    )
    sentry_dsn: SecretStr | None = Field(
        None, description="DSN of a Sentry that is told of them instead; needs `livetape[sentry]`."
    )
    moderation: FunctionName | None = Field(
        None, description="`module:function`, which returns who is asked before executions start and outputs are told."
    )
    costs: FunctionName | None = Field(
        None, description="`module:function`, which returns who is asked before a node runs and told what it cost."
    )
    blocks: tuple[FunctionName, ...] = Field((), description="More blocks: `module:function`, which returns them.")
    gateway: GatewaySettings = Field(GatewaySettings(), description="The WebSocket and SSE gateway.")
    engine: EngineSettings = Field(EngineSettings(), description="Running graphs.")
    requests: RequestSettings = Field(RequestSettings(), description="HTTP requests of blocks.")
    llm: ModelSettings = Field(ModelSettings(), description="The language model of blocks.")

    @property
    def database_path(self) -> Path:
        """The SQLite file of store, queue and log."""
        log = self.log if self.log and not is_redis(self.log) else None
        queue = self.queue if not is_amqp(self.queue) else None
        url = self.database or self.store or queue or log
        return sqlite_path(url) if url and not is_postgres(url) else self.data_dir / "livetape.db"

    @property
    def postgres_url(self) -> str | None:
        """The PostgreSQL of store, queue and log; None: they are in the SQLite file `database_path`."""
        url = self.database or self.store
        return url if is_postgres(url) else None

    @property
    def is_distributed(self) -> bool:
        """Whether events go over Redis, where other processes see them."""
        return is_redis(self.bus_url)

    @property
    def bus_url(self) -> str:
        """Where events are carried live."""
        return self.bus or (self.log if is_redis(self.log) else None) or "memory://"

    @property
    def log_url(self) -> str | None:
        """Where tapes are read; None: the database."""
        return self.log or (self.bus_url if self.is_distributed else None)

    @property
    def ephemeral_url(self) -> str | None:
        """Where tickets and revocations are; None: in the database."""
        return self.ephemeral or (self.bus_url if self.is_distributed else None)

    @property
    def broker_url(self) -> str | None:
        """The RabbitMQ that doorbells and stops go over; None: they stay in the database."""
        return self.queue if is_amqp(self.queue) else None

    @property
    def files_dir(self) -> Path:
        """The folder that blocks may read."""
        return Path(unquote(urlsplit(self.files).path)) if self.files else self.data_dir / "files"

    @property
    def blobs_dir(self) -> Path:
        """The folder of large values."""
        return Path(unquote(urlsplit(self.blobs).path)) if self.blobs else self.data_dir / "blobs"

    @property
    def server_file(self) -> Path:
        """Says where the server of this data folder listens, while it runs."""
        return self.data_dir / SERVER_FILE

    @property
    def show_docs(self) -> bool:
        """Whether /docs is served."""
        return self.app_env == "local" or self.docs_enabled

    def model_post_init(self, _context: Any, /) -> None:
        """The rules between settings that a single field cannot state."""
        for port, schemes in SCHEMES.items():
            check_url(port, getattr(self, port), schemes)
        self._check_pairs()
        urls = (self.database, self.store, self.queue, self.log)
        named = {sqlite_path(url) if url.startswith("sqlite") else url for url in urls if url and not _is_broker(url)}
        if len(named) > 1:
            raise ConfigError(
                "store, queue and log must be one database",
                because="a change of state and its events are one transaction",
                set_by="database, store, queue, log",
                fix="set only LIVETAPE_DATABASE",
            )
        if not self.enable_auth and not self.allow_insecure and not is_loopback(self.host):
            raise ConfigError(
                f"refusing to listen on {self.host} with authentication off",
                because="everybody who can reach this machine could read and run everything",
                set_by="enable_auth",
                fix="set LIVETAPE_ENABLE_AUTH=true, or --host 127.0.0.1; "
                "if something in front protects it, LIVETAPE_ALLOW_INSECURE=true",
            )
        key = self.jwt_verify_key.get_secret_value() if self.jwt_verify_key is not None else None
        if key is not None and self.jwt_sign_algorithm.startswith("HS") and len(key.encode()) < MIN_KEY_BYTES:
            raise ConfigError(
                "the key for tokens is too short",
                because=f"{self.jwt_sign_algorithm} needs at least {MIN_KEY_BYTES} bytes that nobody can guess",
                set_by="jwt_verify_key",
                fix="make one: openssl rand -base64 48; or unset it: the data folder then has its own",
            )
        if key is None and not self.jwt_sign_algorithm.startswith("HS"):
            raise ConfigError(
                f"{self.jwt_sign_algorithm} needs a public key",
                because="the secret of the data folder serves the HS algorithms only",
                set_by="jwt_sign_algorithm",
                fix="set LIVETAPE_JWT_VERIFY_KEY to the PEM public key, or LIVETAPE_JWT_SIGN_ALGORITHM=HS256",
            )

    def _check_pairs(self) -> None:
        """Adapters that cannot keep the promises together."""
        if self.error_hook is not None and self.sentry_dsn is not None:
            raise ConfigError(
                "errors go to one place",
                because="both an error hook and a Sentry are set",
                set_by="error_hook, sentry_dsn",
                fix="unset one of them; an error hook may tell a Sentry itself",
            )
        if self.is_distributed and not is_redis(self.log_url):
            raise ConfigError(
                "a Redis bus needs a Redis log",
                because="other processes would hear of events that they can never read again",
                set_by="bus, log",
                fix="unset LIVETAPE_LOG: it follows from LIVETAPE_BUS",
            )
        if is_redis(self.log) and not self.is_distributed:
            raise ConfigError(
                "a Redis log needs a Redis bus",
                because="memory:// ends with this process: others could read events, and never hear of them",
                set_by="bus, log",
                fix="unset LIVETAPE_BUS: it follows from LIVETAPE_LOG",
            )
        if self.is_distributed and not is_redis(self.ephemeral_url):
            raise ConfigError(
                "a Redis bus needs tickets and revocations in Redis",
                because="a ticket of one process would be unknown to the next, and a token revoked in one only",
                set_by="bus, ephemeral",
                fix="unset LIVETAPE_EPHEMERAL: it follows from LIVETAPE_BUS",
            )


def check_url(port: str, url: str | None, schemes: tuple[str, ...]) -> None:
    """Refuse an adapter that this version does not have."""
    if url is None:
        return
    scheme = url.partition("://")[0] if "://" in url else ""
    variable = f"LIVETAPE_{port.upper()}"
    if scheme in schemes:
        if (scheme == "sqlite" and not url.startswith("sqlite:///")) or (scheme == "file" and urlsplit(url).netloc):
            raise ConfigError(
                f"{port}: {scheme}:// takes a path, not a host",
                set_by=port,
                fix=f"write {scheme}:////absolute/path or {scheme}:///relative/path"
                if scheme == "sqlite"
                else "write file:///absolute/path",
            )
        return
    names = ", ".join(f"{name}://" for name in schemes)
    if scheme.partition("+")[0] in DISTRIBUTED_SCHEMES:
        raise ConfigError(
            f"{port}: {scheme}:// is not there yet",
            because=f"{port} has {names} in this version",
            set_by=port,
            fix=f"unset {variable}: the embedded one is then used",
        )
    raise ConfigError(
        f"{port}: no adapter for {scheme + '://' if scheme else 'this value'}",
        because=f"an adapter is a URL; {port} has {names}",
        set_by=port,
        fix=f"unset {variable}, or use {names}",
    )


def sqlite_path(url: str) -> Path:
    """`sqlite:///relative` and `sqlite:////absolute`."""
    return Path(unquote(url.removeprefix("sqlite:///")))


def is_redis(url: str | None) -> bool:
    """Whether this is the URL of a Redis, which several processes share."""
    return url is not None and url.partition("://")[0] in REDIS_SCHEMES


def is_amqp(url: str | None) -> bool:
    """Whether this is the URL of a RabbitMQ."""
    return url is not None and url.partition("://")[0] in AMQP_SCHEMES


def is_postgres(url: str | None) -> bool:
    """Whether this is the URL of a PostgreSQL."""
    return url is not None and url.partition("://")[0] in POSTGRES_SCHEMES


def _is_broker(url: str) -> bool:
    return is_redis(url) or is_amqp(url)
