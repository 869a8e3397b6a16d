"""`livetape db` on a data folder and on a PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from livetape.adapters.sql.migrate import HEAD
from livetape.cli.app import run
from livetape.cli.checks import check_postgres
from livetape.runtime.folder import lock, make_folders
from livetape.runtime.maintenance import upgrade_database, without_password
from livetape.settings import Settings
from postgres_server import PostgresServer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def report(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    capsys.readouterr()
    assert run(["db", "status", "--json", *words]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_data_folder_is_looked_at_upgraded_and_copied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--data-dir", str(folder)]
    assert report(capsys, *here)["state"] == "missing"
    assert run(["db", "status", "--check", *here]) == 1
    assert not folder.exists(), "looking changes nothing"
    assert run(["db", "upgrade", *here]) == 0
    assert "upgraded" in capsys.readouterr().err
    assert run(["db", "upgrade", *here]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run(["db", "status", "--check", *here]) == 0
    assert (report(capsys, *here)["state"], report(capsys, *here)["revision"]) == ("ready", HEAD)

    with closing(sqlite3.connect(folder / "livetape.db")) as db:  # in use, with what is not in the main file yet
        db.execute("INSERT INTO queue_pause VALUES ('x', 1, 'why')")
        db.commit()
        assert run(["db", "backup", "copy.db", *here]) == 0
    copy = Path("copy.db")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT reason FROM queue_pause").fetchall() == [("why",)]
    assert run(["db", "backup", "copy.db", *here]) == 3
    assert run(["db", "backup", "nowhere/copy.db", *here]) == 3
    assert sorted(path.name for path in Path().iterdir()) == ["copy.db", "data"], "nothing is left beside it"


def test_a_data_folder_in_use_is_not_upgraded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data_dir=folder)
    make_folders(settings)
    with lock(settings):
        assert run(["db", "upgrade", "--data-dir", str(folder)]) == 3
    assert "another livetape uses" in capsys.readouterr().err


def test_what_is_no_database_is_said_to_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    (folder / "livetape.db").write_bytes(b"not a database, but long enough to look at" * 100)
    assert run(["db", "status", "--data-dir", str(folder)]) == 3
    assert run(["db", "backup", "copy.db", "--data-dir", str(folder)]) == 3
    assert not Path("copy.db").exists()


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://u:p%40ss@h:1/db?sslmode=require") == "postgresql://u@h:1/db?sslmode=require"
    assert without_password("postgresql://h/db") == "postgresql://h/db"


@pytest.mark.needs("postgres")
def test_a_postgresql_is_looked_at_upgraded_and_copied(
    folder: Path,
    postgres_url: str,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LIVETAPE_DATABASE", postgres_url.replace("postgres@", "postgres:secret@"))
    assert report(capsys)["state"] == "empty"
    assert run(["db", "upgrade"]) == 0
    found = report(capsys)
    assert (found["state"], found["revision"], found["place"]) == ("ready", HEAD, postgres_url)
    name = postgres_url.rpartition("/")[2]
    postgres_server.sql("INSERT INTO queue_pause VALUES ('x', 1, 'why')", database=name)
    assert run(["db", "backup", "copy.dump"]) == 0
    assert "secret" not in capsys.readouterr().err
    again = postgres_server.new_database()
    subprocess.run(["pg_restore", "--no-owner", f"--dbname={again}", "copy.dump"], check=True, capture_output=True)
    assert postgres_server.sql("SELECT reason FROM queue_pause", database=again.rpartition("/")[2]) == "why"
    postgres_server.sql("UPDATE alembic_version SET version_num = '9999'", database=name)
    assert report(capsys)["state"] == "newer"
    assert run(["db", "upgrade"]) == 3


@pytest.mark.needs("postgres")
def test_the_doctor_asks_the_server(postgres_url: str, postgres_server: PostgresServer, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database=postgres_url)
    assert check_postgres(settings).status == "ok"
    assert asyncio.run(upgrade_database(settings))
    assert (check_postgres(settings).status, HEAD in check_postgres(settings).found) == ("ok", True)
    name = postgres_url.rpartition("/")[2]
    for revision, remedy in (("0001", "livetape db upgrade"), ("9999", "newer")):
        postgres_server.sql(f"UPDATE alembic_version SET version_num = '{revision}'", database=name)
        check = check_postgres(settings)
        assert check.status == "fail"
        assert remedy in check.remedy
    gone = check_postgres(Settings(data_dir=tmp_path, database=postgres_server.url("nowhere")))
    assert (gone.status, "nowhere" in gone.found) == ("fail", True)


def test_a_server_that_is_away_is_said_to_be(
    folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIVETAPE_DATABASE", f"postgresql://u:secret@127.0.0.1:{free_port}/x")
    assert run(["db", "status"]) == 4
    assert "secret" not in capsys.readouterr().err
