"""Commands that need no server: token, config, doctor, version; the pure parts; the generated pages."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from livetape.cli import reference
from livetape.cli.errors import TABLE
from livetape.cli.options import UNITS, Duration
from livetape.cli.progress import Progress
from livetape.cli.render import Names, duration, preview
from livetape.cli.tape import Push
from livetape.cli.watch import draw
from unit.cli.fake import BLOCKS, COMPLETED_TAPE, GRAPH, METHODS, Result, node_event

Call = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[3]


def test_token_create_prints_the_token_alone(call: Call, tmp_path: Path) -> None:
    result = call("token", "create", "--user", "ann", "--role", "admin", "--ttl", "1h", "--data-dir", "d")
    assert result.code == 0
    assert result.err == ""
    assert result.out.count("\n") == 1
    key = (tmp_path / "d" / "secret.key").read_text().strip()
    claims = jwt.decode(result.out.strip(), key, algorithms=["HS256"], audience="authenticated")
    assert (claims["sub"], claims["role"], claims["exp"] - claims["iat"]) == ("ann", "admin", 3600)
    assert stat.S_IMODE((tmp_path / "d" / "secret.key").stat().st_mode) == 0o600


def test_token_create_uses_the_key_that_was_set(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIVETAPE_JWT_VERIFY_KEY", "k" * 64)
    token = call("token", "create", "--user", "ann").out.strip()
    assert jwt.decode(token, "k" * 64, algorithms=["HS256"], audience="authenticated")["sub"] == "ann"
    assert not (tmp_path / ".livetape").exists()
    monkeypatch.setenv("LIVETAPE_JWT_VERIFY_KEY", "short")
    assert call("token", "create", "--user", "ann").code == 3
    monkeypatch.delenv("LIVETAPE_JWT_VERIFY_KEY")
    assert call("token", "create", "--user", " ").code == 2
    assert call("token", "create", "--user", "a", "--ttl", "0").code == 2


def test_token_inspect(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    token = call("token", "create", "--user", "ann").out.strip()
    result = call("token", "inspect", token)
    assert result.code == 0
    assert re.search(r"sub +ann", result.out)
    assert re.search(r"exp +\d+  \(.* UTC, in \d+ s\)", result.out)
    assert result.out.endswith("valid  yes\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(token + "\n"))
    assert json.loads(call("token", "inspect", "-", "--json").out)["valid"] is True
    result = call("token", "inspect", token, "--data-dir", "elsewhere")
    assert result.code == 5
    assert "valid  no: Invalid token" in result.out
    expired = jwt.encode(
        {"sub": "a", "aud": "authenticated", "exp": 1}, Path(".livetape/secret.key").read_text().strip()
    )
    result = call("token", "inspect", expired)
    assert (result.code, "Token has expired" in result.out) == (5, True)
    assert call("token", "inspect", "no.token.").code == 5


def test_config_show(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "everything is at its default" in call("config", "show").err
    monkeypatch.setenv("LIVETAPE_PORT", "9000")
    monkeypatch.setenv("LIVETAPE_PRT", "1")
    monkeypatch.setenv("JWT_VERIFY_KEY", "secret" * 10)
    result = call("config", "show", "--show-sources")
    assert re.search(r"^port +9000 +LIVETAPE_PORT in the environment$", result.out, re.MULTILINE)
    assert "secretsecret" not in result.out
    assert "**********" in result.out
    assert result.err == "warning: unknown variable LIVETAPE_PRT in the environment: did you mean LIVETAPE_PORT?\n"
    everything = json.loads(call("config", "show", "--show-defaults", "--show-sources", "--json").out)
    assert everything["gateway.max_channels"] == {"value": 1024, "source": "default"}
    assert everything["port"]["value"] == 9000
    Path("other.toml").write_text("port = 1\n")
    assert json.loads(call("--config", "other.toml", "config", "show", "--json").out)["port"] == 9000


def test_version(call: Call) -> None:
    assert call("version").out.startswith("livetape ")
    assert json.loads(call("version", "--json").out)["packages"]["click"]


def statuses(call: Call, *arguments: str) -> tuple[int, dict[str, str]]:
    result = call("doctor", "--json", "--port", "0", *arguments)
    return result.code, {check["name"]: check["status"] for check in json.loads(result.out)}


def test_doctor_on_a_good_machine(call: Call) -> None:
    code, found = statuses(call)
    assert code == 0, found
    assert found["python"] == found["packages"] == found["settings"] == found["data folder"] == "ok"
    assert found["token key"] == found["database"] == found["server"] == "skip"
    assert re.search(r"^ok +python", call("doctor").out, re.MULTILINE)


def test_doctor_changes_nothing(call: Call, tmp_path: Path) -> None:
    call("doctor")
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_what_is_wrong(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / ".livetape"
    data.mkdir()
    (data / "secret.key").write_text("x" * 40)
    (data / "secret.key").chmod(0o644)
    (data / "livetape.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    monkeypatch.setenv("LIVETAPE_PRT", "1")
    code, found = statuses(call)
    assert code == 1
    assert (found["token key"], found["database"], found["settings"]) == ("fail", "fail", "warn")
    for check in json.loads(call("doctor", "--json").out):
        assert check["remedy"] or check["status"] in {"ok", "skip"}
    assert "fix: chmod 600" in call("doctor").out


def test_doctor_of_a_sound_database(call: Call, tmp_path: Path) -> None:
    (tmp_path / ".livetape").mkdir()
    database = sqlite3.connect(tmp_path / ".livetape" / "livetape.db")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE t (x)")
    database.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
    database.commit()
    assert statuses(call)[1]["database"] == "ok"
    database.close()
    with (tmp_path / ".livetape" / "livetape.db").open("r+b") as file:
        file.truncate(20_000)
    assert statuses(call)[1]["database"] == "fail"


def test_doctor_with_a_wrong_setting(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETAPE_BUS", "amqp://h")
    code, found = statuses(call)
    assert (code, found["settings"]) == (1, "fail")


def test_doctor_asks_the_redis_of_the_settings(
    call: Call, monkeypatch: pytest.MonkeyPatch, redis_url: str, free_port: int
) -> None:
    assert statuses(call)[1]["bus"] == "ok"
    monkeypatch.setenv("LIVETAPE_BUS", redis_url)
    assert statuses(call)[1]["bus"] == "ok"
    monkeypatch.setenv("LIVETAPE_LOG", f"redis://:hidden@127.0.0.1:{free_port}")
    assert statuses(call)[1]["bus"] == "fail"
    assert "hidden" not in call("doctor").out


def test_config_show_hides_the_password_in_a_url(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVETAPE_BUS", "redis://name:secret@h:1/0")
    shown = call("config", "show").out
    assert "secret" not in shown
    assert "redis://name:**********@h:1/0" in shown


def test_doctor_with_a_file_for_a_data_folder(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert statuses(call, "--data-dir", "file")[1]["data folder"] == "fail"


@pytest.mark.parametrize("name", ["blocks.md", "cli.md", "settings.md", "errors.md", "metrics.md"])
def test_the_reference_pages_are_fresh(name: str) -> None:
    found = (ROOT / "docs" / "reference" / name).read_text("utf-8")
    assert found == reference.pages()[name], "write them anew: .venv/bin/python -m livetape.cli.reference"


def test_every_error_code_has_a_row_in_the_docs() -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    for row in TABLE:
        assert f'<a id="{row.code.lower()}"></a>{row.code} | `{row.key}` | {row.exit} |' in text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("1h", 3600), ("7d", 604_800), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == pytest.approx(seconds)
    assert set(UNITS) == {"ms", "s", "m", "h", "d"}


@pytest.mark.parametrize(("seconds", "text"), [(0.421, "0.42 s"), (12.34, "12.3 s"), (200, "3 min 20 s")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_previews_hold_nothing_that_a_terminal_obeys() -> None:
    assert preview("a\nb\x1b[31m\x07") == "a b\ufffd[31m\ufffd"
    assert preview({"k": "x" * 200}, 20) == '{"k":"xxxxxxxxxxxxx…'
    assert preview("x" * 100_000, 5) == "xxxx…"


def test_names_are_their_own_then_the_blocks_and_never_alike() -> None:
    nodes = [
        *GRAPH["nodes"],
        {"id": "n3", "block_id": "b-count", "metadata": None},
        {"id": "n4", "block_id": "b-count"},
    ]
    names = Names({"nodes": nodes}, BLOCKS)
    assert list(names.all().values()) == ["input text", "count", "CountWords", "CountWords#2"]
    assert names.of("unknown-node") == "unknown-"


def pushes() -> list[Push]:
    return [Push(METHODS[event["event_type"]], event, offset) for offset, event in enumerate(COMPLETED_TAPE, 1)]


def test_progress_follows_the_events() -> None:
    progress = Progress(Names(GRAPH, BLOCKS))
    assert [node.status for node in progress.nodes.values()] == ["INCOMPLETE", "INCOMPLETE"]
    for now, push in enumerate(pushes()[:6]):
        progress.apply(push, float(now))
    first, second = progress.nodes.values()
    assert (progress.status, first.status, second.status) == ("RUNNING", "COMPLETED", "RUNNING")
    assert (first.outputs, first.last_output) == (1, "result = one two")
    assert second.elapsed(7.5) == 2.5, "since it was seen to run"
    times = {"start_time": "2026-01-01T00:00:01Z", "end_time": "2026-01-01T00:00:03.5Z"}
    progress.apply(Push("node_execution_event", node_event("n2", "COMPLETED", **times), 9), 8.0)
    assert second.elapsed(99.0) == 2.5, "by the server's clock"
    again = node_event("n1", "RUNNING") | {"node_exec_id": "n1-2"}
    progress.apply(Push("node_execution_event", again, 10), 8.0)
    assert (first.status, first.done, len(first.runs)) == ("RUNNING", 1, 2)


def test_the_tree_shows_every_node() -> None:
    from rich.console import Console

    progress = Progress(Names(GRAPH, BLOCKS))
    for push in pushes():
        progress.apply(push, 1.0)
    console = Console(width=80, file=io.StringIO(), no_color=True)
    console.print(draw(progress, "Count words", 2.0))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "✓ Count words  COMPLETED",
        "├── ✓ input text  1.0 s  1 output  result = one two",
        "└── ✓ count  1.0 s  1 output  words = 2",
    ]


@pytest.mark.parametrize(("name", "variable"), [("large values", "LIVETAPE_BLOBS"), ("files", "LIVETAPE_FILES")])
def test_doctor_looks_at_the_folders_that_processes_share(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    def check() -> dict[str, str]:
        checks = json.loads(call("doctor", "--json", "--port", "0").out)
        return next(check for check in checks if check["name"] == name)

    assert check()["status"] == "ok"
    (tmp_path / "in the way").write_text("")
    monkeypatch.setenv(variable, f"file://{tmp_path}/in%20the%20way")
    assert check()["status"] == "fail"
    assert variable in check()["remedy"]
    monkeypatch.setenv(variable, f"file://{tmp_path}/there")
    monkeypatch.setenv("LIVETAPE_DATABASE", "postgresql://nobody@127.0.0.1:1/x")
    assert check()["status"] == "ok"
    monkeypatch.delenv(variable)
    assert check()["status"] == "warn", "others have another data folder"
