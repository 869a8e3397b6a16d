"""Settings: precedence, sources, mistakes, secrets."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from livetape.engine.blocks.http_request import SendWebRequestBlock
from livetape.engine.blocks.language_model import LanguageModelBlock
from livetape.engine.blocks.options import ModelOptions
from livetape.errors import ConfigError
from livetape.events.open import check_url
from livetape.gateway.options import GatewayOptions
from livetape.runtime.engine import load_blocks
from livetape.settings import (
    EngineSettings,
    GatewaySettings,
    Settings,
    is_loopback,
    load_settings,
    read_or_create_secret,
    signing_key,
)
from livetape.settings.load import fields, variable_of
from livetape.settings.model import AMQP_SCHEMES, REDIS_SCHEMES, RequestSettings

KEY = "k" * 40


def test_defaults_are_the_embedded_development_server() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.app_env) == ("127.0.0.1", 8420, "local")
    assert settings.enable_auth
    assert settings.enable_metrics
    assert settings.show_docs
    assert settings.database_path == Path(".livetape/livetape.db")
    assert settings.files_dir == Path(".livetape/files")


def test_a_plain_settings_object_never_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETAPE_PORT", "1")
    assert Settings().port == 8420


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "livetape.toml").write_text(
        'port = 1\nhost = "::1"\nlog_level = "debug"\n[gateway]\nmax_channels = 5\n'
    )
    environ = {"LIVETAPE_PORT": "2", "LIVETAPE_HOST": "localhost", "LIVETAPE_GATEWAY__MAX_SOCKETS_PER_USER": "7"}
    loaded = load_settings({"port": 3, "host": None}, environ, tmp_path)
    settings = loaded.settings
    assert (settings.port, settings.host, settings.log_level) == (3, "localhost", "debug")
    assert (settings.gateway.max_channels, settings.gateway.max_sockets_per_user) == (5, 7)
    assert settings.gateway.max_message_bytes == 65_536
    assert loaded.sources == {
        "port": "--port",
        "host": "LIVETAPE_HOST in the environment",
        "log_level": f"log_level in {tmp_path / 'livetape.toml'}",
        "gateway.max_channels": f"gateway.max_channels in {tmp_path / 'livetape.toml'}",
        "gateway.max_sockets_per_user": "LIVETAPE_GATEWAY__MAX_SOCKETS_PER_USER in the environment",
    }
    assert loaded.warnings == ()


def test_the_data_folder_is_taken_from_the_working_folder(tmp_path: Path) -> None:
    assert load_settings({"data_dir": "d"}, {}, tmp_path).settings.data_dir == tmp_path / "d"
    assert load_settings({}, {}, tmp_path).settings.data_dir == tmp_path / ".livetape"


@pytest.mark.parametrize("text", ["a:f, b.c:g", '["a:f", "b.c:g"]'])
def test_lists_in_the_environment(tmp_path: Path, text: str) -> None:
    assert load_settings({}, {"LIVETAPE_BLOCKS": text}, tmp_path).settings.blocks == ("a:f", "b.c:g")


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    loaded = load_settings({}, {"LIVETAPE_BUS": "", "LIVETAPE_PORT": ""}, tmp_path)
    assert loaded.settings == Settings(data_dir=tmp_path / ".livetape")


@pytest.mark.parametrize(
    ("environ", "warning"),
    [
        ({"LIVETAPE_PRT": "1"}, "LIVETAPE_PRT in the environment: did you mean LIVETAPE_PORT?"),
        (
            {"LIVETAPE_GATEWAY__MAX_CHANELS": "1"},
            "LIVETAPE_GATEWAY__MAX_CHANELS in the environment: did you mean LIVETAPE_GATEWAY__MAX_CHANNELS?",
        ),
        ({"LIVETAPE_QQQQQQ": "1"}, "unknown variable LIVETAPE_QQQQQQ in the environment"),
    ],
)
def test_an_unknown_variable_is_a_warning_and_strictly_an_error(
    tmp_path: Path, environ: dict[str, str], warning: str
) -> None:
    (found,) = load_settings({}, environ, tmp_path).warnings
    assert found.endswith(warning)
    with pytest.raises(ConfigError, match="unknown variable"):
        load_settings({}, environ, tmp_path, strict=True)


def test_variables_of_the_client_are_no_mistakes(tmp_path: Path) -> None:
    environ = {"LIVETAPE_URL": "http://x", "LIVETAPE_TOKEN": "t", "OTHER": "x"}
    assert load_settings({}, environ, tmp_path, strict=True).warnings == ()


def test_unknown_keys_of_the_file_are_warnings(tmp_path: Path) -> None:
    (tmp_path / "livetape.toml").write_text("prt = 1\n[engine]\nstep_limt = 3\n[wrong]\nx = 1\n")
    first, second, third = load_settings({}, {}, tmp_path).warnings
    assert "unknown key prt" in first
    assert "did you mean port?" in first
    assert "did you mean engine.step_limit?" in second
    assert "unknown key wrong.x" in third


def test_a_wrong_value_names_where_it_was_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings({}, {"LIVETAPE_PORT": "abc", "LIVETAPE_ENGINE__LEASE_SECONDS": "-1"}, tmp_path)
    assert error.value.message == "port cannot be used"
    assert error.value.set_by == "LIVETAPE_PORT in the environment"
    assert "engine.lease_seconds" in str(error.value.because)
    assert error.value.fix
    (tmp_path / "bad.toml").write_text("port = 70000\n")
    with pytest.raises(ConfigError) as error:
        load_settings({}, {}, tmp_path, config=Path("bad.toml"))
    assert str(error.value.set_by).endswith("bad.toml")


def test_a_file_that_is_absent_or_broken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no settings file x\.toml") as error:
        load_settings({}, {"LIVETAPE_CONFIG": "x.toml"}, tmp_path)
    assert error.value.set_by == "LIVETAPE_CONFIG in the environment"
    (tmp_path / "livetape.toml").write_text("port = = 1")
    with pytest.raises(ConfigError, match=r"cannot read livetape\.toml"):
        load_settings({}, {}, tmp_path)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("BUS", "amqp://h"),
        ("STORE", "postgresql+psycopg://h/db"),
        ("LOG", "amqp://h"),
        ("FILES", "s3://bucket"),
    ],
)
def test_distributed_adapters_are_refused_honestly(tmp_path: Path, name: str, url: str) -> None:
    with pytest.raises(ConfigError, match="is not there yet") as error:
        load_settings({}, {f"LIVETAPE_{name}": url}, tmp_path)
    assert error.value.set_by == f"LIVETAPE_{name} in the environment"
    assert "unset" in str(error.value.fix)


REDIS = "redis://:secret@h:1/2"


@pytest.mark.parametrize("scheme", REDIS_SCHEMES)
def test_a_redis_bus_implies_all_that_others_share(scheme: str) -> None:
    url = f"{scheme}://h/0"
    for settings in (Settings(bus=url), Settings(log=url), Settings(bus=url, log=url, ephemeral=url)):
        assert settings.is_distributed
        assert (settings.bus_url, settings.log_url, settings.ephemeral_url) == (url, url, url)
        assert settings.database_path == Path(".livetape/livetape.db")
    assert Settings(bus=url, log=REDIS).log_url == REDIS
    assert Settings(bus=url, store="sqlite:///a.db").database_path == Path("a.db")


def test_the_schemes_are_those_of_the_event_library() -> None:
    for scheme in REDIS_SCHEMES:
        check_url(f"{scheme}:///run/redis.sock" if scheme == "unix" else f"{scheme}://h:1/{'svc' * ('sent' in scheme)}")


def test_nothing_is_shared_by_default_and_with_memory() -> None:
    for settings in (Settings(), Settings(bus="memory://"), Settings(ephemeral=REDIS)):
        assert not settings.is_distributed
        assert (settings.bus_url, settings.log_url) == ("memory://", None)
    assert Settings().ephemeral_url is None


@pytest.mark.parametrize(
    ("values", "message", "set_by"),
    [
        ({"bus": REDIS, "log": "sqlite:///a.db"}, "a Redis bus needs a Redis log", "bus, log"),
        ({"bus": "memory://", "log": REDIS}, "a Redis log needs a Redis bus", "bus, log"),
        ({"bus": REDIS, "ephemeral": "memory://"}, "needs tickets and revocations in Redis", "bus, ephemeral"),
    ],
)
def test_adapters_that_cannot_keep_the_promises_together(values: dict[str, str], message: str, set_by: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Settings.model_validate(values)
    assert (error.value.set_by, bool(error.value.because), "unset" in str(error.value.fix)) == (set_by, True, True)


def test_the_redis_of_the_seed_is_read_only_by_who_has_to_have_one(tmp_path: Path) -> None:
    environ = {"REDIS_HOST": "cache", "REDIS_PORT": "7", "REDIS_PASSWORD": "p@ss/w"}
    assert not load_settings({}, environ, tmp_path).settings.is_distributed
    loaded = load_settings({}, environ, tmp_path, redis=True)
    assert loaded.settings.bus_url == "redis://:p%40ss%2Fw@cache:7/0"
    assert loaded.sources == {"bus": "REDIS_HOST, REDIS_PORT, REDIS_PASSWORD in the environment"}
    assert load_settings({}, {"REDIS_HOST": "::1"}, tmp_path, redis=True).settings.bus_url == "redis://[::1]:6379/0"
    assert load_settings({}, {"REDIS_PORT": "9"}, tmp_path, redis=True).settings.bus_url == "redis://localhost:9/0"
    assert not load_settings({}, {"REDIS_PASSWORD": "x"}, tmp_path, redis=True).settings.is_distributed
    ours = {**environ, "LIVETAPE_LOG": REDIS}
    assert load_settings({}, ours, tmp_path, redis=True).settings.bus_url == REDIS


def test_a_broker_takes_doorbells_and_leaves_the_state_in_the_database() -> None:
    for scheme in AMQP_SCHEMES:
        settings = Settings(queue=f"{scheme}://guest:guest@h/", store="sqlite:///a.db")
        assert settings.broker_url == f"{scheme}://guest:guest@h/"
        assert settings.database_path == Path("a.db")
        assert not settings.is_distributed
    assert Settings(queue="amqp://h").database_path == Path(".livetape/livetape.db")
    assert Settings().broker_url is None
    assert Settings(queue="sqlite:///a.db").broker_url is None


def test_the_rabbitmq_of_the_seed_is_read_only_by_who_shares_its_queue(tmp_path: Path) -> None:
    environ = {
        "RABBITMQ_HOST": "mq", "RABBITMQ_PORT": "7", "RABBITMQ_DEFAULT_USER": "u/", "RABBITMQ_DEFAULT_PASS": "p@"
    }  # fmt: skip
    assert load_settings({}, environ, tmp_path).settings.broker_url is None
    loaded = load_settings({}, environ, tmp_path, rabbitmq=True)
    assert loaded.settings.broker_url == "amqp://u%2F:p%40@mq:7/"
    assert loaded.sources == {"queue": f"{', '.join(environ)} in the environment"}
    only = load_settings({}, {"RABBITMQ_HOST": "::1"}, tmp_path, rabbitmq=True)
    assert only.settings.broker_url == "amqp://guest:guest@[::1]:5672/"
    assert load_settings({}, {"RABBITMQ_DEFAULT_PASS": "x"}, tmp_path, rabbitmq=True).settings.broker_url is None
    ours = {**environ, "LIVETAPE_QUEUE": "amqp://ours/"}
    assert load_settings({}, ours, tmp_path, rabbitmq=True).settings.broker_url == "amqp://ours/"


def test_a_url_with_a_password_may_be_a_mounted_secret(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(REDIS + "\n")
    loaded = load_settings({}, {"LIVETAPE_BUS_FILE": str(tmp_path / "url")}, tmp_path)
    assert loaded.settings.bus_url == REDIS


@pytest.mark.parametrize("url", ["mongodb://x", "redis", "sqlite://host/x", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Settings(store=url)


def test_store_queue_and_log_are_one_file() -> None:
    assert Settings(store="sqlite:////tmp/x.db").database_path == Path("/tmp/x.db")
    assert Settings(store="sqlite:///a.db", log="sqlite:///a.db").database_path == Path("a.db")
    with pytest.raises(ConfigError, match="one database"):
        Settings(store="sqlite:///a.db", log="sqlite:///b.db")


def test_auth_off_is_for_loopback_only() -> None:
    Settings(enable_auth=False)
    Settings(enable_auth=False, host="0.0.0.0", allow_insecure=True)
    with pytest.raises(ConfigError, match=r"refusing to listen on 0\.0\.0\.0 with authentication off") as error:
        Settings(enable_auth=False, host="0.0.0.0")
    assert "LIVETAPE_ALLOW_INSECURE" in str(error.value.fix)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example.org", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_lease_must_leave_time_to_renew() -> None:
    with pytest.raises(ValueError, match="half of lease_seconds"):
        EngineSettings(lease_seconds=5, renew_seconds=4)


def test_every_option_of_the_gateway_can_be_set_and_has_one_default() -> None:
    settings = GatewaySettings()
    for name, field in GatewayOptions.model_fields.items():
        assert getattr(settings, name) == field.default, name


def test_the_seeds_names_are_fallbacks(tmp_path: Path) -> None:
    environ = {"SUPABASE_JWT_SECRET": KEY, "JWT_SIGN_ALGORITHM": "HS512", "ENABLE_METRICS": "false"}
    loaded = load_settings({}, environ, tmp_path)
    assert loaded.settings.jwt_verify_key is not None
    assert loaded.settings.jwt_verify_key.get_secret_value() == KEY
    assert loaded.settings.jwt_sign_algorithm == "HS512"
    assert not loaded.settings.enable_metrics
    assert loaded.sources["jwt_verify_key"] == "SUPABASE_JWT_SECRET in the environment"
    both = {**environ, "JWT_VERIFY_KEY": "j" * 40, "LIVETAPE_JWT_VERIFY_KEY": "l" * 40}
    assert signing_key(load_settings({}, both, tmp_path).settings) == "l" * 40


def test_metrics_are_on_locally_only(tmp_path: Path) -> None:
    settings = load_settings({}, {"LIVETAPE_APP_ENV": "prod"}, tmp_path).settings
    assert not settings.enable_metrics
    assert not settings.show_docs


def test_a_secret_may_be_mounted_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    environ = {"LIVETAPE_JWT_VERIFY_KEY_FILE": str(tmp_path / "key")}
    loaded = load_settings({}, environ, tmp_path, strict=True)
    assert signing_key(loaded.settings) == KEY
    with pytest.raises(ConfigError, match="cannot read the secret file"):
        load_settings({}, {"LIVETAPE_JWT_VERIFY_KEY_FILE": str(tmp_path / "none")}, tmp_path)


def test_secrets_are_masked(tmp_path: Path) -> None:
    loaded = load_settings({}, {"JWT_VERIFY_KEY": KEY}, tmp_path)
    assert KEY not in repr(loaded)
    assert KEY not in str(loaded.settings.model_dump())
    with pytest.raises(ConfigError) as error:
        load_settings({"port": -1}, {"JWT_VERIFY_KEY": KEY}, tmp_path)
    assert KEY not in repr(vars(error.value))


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short") as error:
        load_settings({}, {"JWT_VERIFY_KEY": "short"}, tmp_path)
    assert error.value.set_by == "JWT_VERIFY_KEY in the environment"
    assert "short" not in str(error.value.because)


def test_a_public_key_is_needed_for_asymmetric_algorithms() -> None:
    with pytest.raises(ConfigError, match="ES256 needs a public key"):
        Settings(jwt_sign_algorithm="ES256")
    with pytest.raises(ValueError, match="jwt_sign_algorithm"):
        Settings.model_validate({"jwt_sign_algorithm": "none"})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_a_postgresql_is_named_under_either_name() -> None:
    url = "postgresql://u:secret@h/db"
    assert Settings(database=url).postgres_url == url
    assert Settings(store="postgres://h/db").postgres_url == "postgres://h/db"
    assert Settings(database=url, queue="amqp://h").postgres_url == url
    assert Settings().postgres_url is None
    assert Settings(database="sqlite:///a.db").database_path == Path("a.db")
    for other in ({"store": "postgresql://h/other"}, {"log": "sqlite:///a.db"}, {"queue": "sqlite:///a.db"}):
        with pytest.raises(ConfigError, match="one database"):
            Settings(database=url, **other)


def test_every_setting_is_described_and_named_once() -> None:
    found = dict(fields(Settings))
    assert all(field.description for field in found.values())
    assert len({variable_of(path) for path in found}) == len(found)
    assert {path.partition(".")[0] for path in found if "." in path} == {"gateway", "engine", "requests", "llm"}


def test_blocks_get_their_limits_and_the_key_from_the_settings(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    environ = {
        "OPENAI_BASE_URL": "https://models.test/v1",
        "LIVETAPE_LLM__API_KEY_FILE": str(tmp_path / "key"),
        "LIVETAPE_REQUESTS__ALLOW": "10.1.0.0/16, intern.test",
    }
    settings = load_settings({}, environ, tmp_path).settings
    assert "sk-secret" not in repr(settings)
    blocks = {block.name: block for block in load_blocks(settings)}
    model, request = blocks["LanguageModelBlock"], blocks["SendWebRequestBlock"]
    assert isinstance(model, LanguageModelBlock)
    assert isinstance(request, SendWebRequestBlock)
    assert model.options == ModelOptions("https://models.test/v1", "sk-secret", None, 60.0)
    assert request.options.allow == ("10.1.0.0/16", "intern.test")
    assert "sk-secret" not in repr(model.options)
    broken = settings.model_copy(update={"requests": RequestSettings(allow=("http://x",))})
    with pytest.raises(ConfigError, match="no host name"):
        load_blocks(broken)


def test_variables_for_processes_of_blocks_are_names(tmp_path: Path) -> None:
    environ = {"LIVETAPE_ENGINE__PROCESS_ENVIRONMENT": "AWS_REGION, MODEL_CACHE"}
    settings = load_settings({}, environ, tmp_path).settings
    assert settings.engine.process_environment == ("AWS_REGION", "MODEL_CACHE")
    for wrong in ("AWS_*", "A=b", "1A", "A B"):
        with pytest.raises(ConfigError):
            load_settings({}, {"LIVETAPE_ENGINE__PROCESS_ENVIRONMENT": wrong}, tmp_path)


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(read_or_create_secret(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) >= 32
    assert stat.S_IMODE((folder / "secret.key").stat().st_mode) == 0o600
    assert [file.name for file in folder.iterdir()] == ["secret.key"]
    assert signing_key(Settings(data_dir=folder)) == found[0]


def test_a_secret_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("")
    with pytest.raises(ConfigError, match="is not one"):
        read_or_create_secret(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use the secret"):
        read_or_create_secret(tmp_path / "file")
