"""A data folder that cannot be written while the server runs: clear errors, nothing half done, and then it goes on."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from acceptance.api import Api, graph, link, node
from acceptance.server import DEV_USER, MakeServer
from livetape_process import poll
from reference.blocks import OUTPUT, STORE
from small_disk import SmallDisk, small_disk

STREAM = "c4a05001-0000-4000-8000-000000000001"
BULK = "c4a05001-0000-4000-8000-000000000006"
ECHO = "c4a05001-0000-4000-8000-000000000003"

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 16) as mounted:
        yield mounted


def test_a_full_disk_is_said_and_what_ran_goes_on_when_there_is_room(make_server: MakeServer, disk: SmallDisk) -> None:
    server = make_server("disk/data", blocks=True).start()
    with Api(server.url) as api:
        quick = api.create(graph([node("one", STORE, input="x" * 5000)], []))
        long = api.run(graph([node("s", STREAM, count=40, pause=0.1)], []))
        poll("it runs", lambda: api.execution(long)["status"] == "RUNNING")
        disk.fill()

        def refused() -> bool:
            answer = api.start_raw(quick)
            if answer.status_code == 200:
                return False  # what the log of the database has room for
            assert answer.status_code == 503, answer.text
            assert answer.json()["code"] == "store_unavailable"
            return True

        poll("it is refused", refused)
        assert api.http.get("/livez").status_code == 200
        time.sleep(3)
        disk.empty()
        assert api.ok(api.start_raw(quick))["status"] == "QUEUED"
        execution = api.wait(long, timeout=60)
        assert execution["status"] == "COMPLETED", execution
        assert len(execution["node_executions"][0]["output_data"]["value"]) == 40
        poll("all are over", lambda: {e["status"] for e in api.ok(api.http.get("/api/executions"))} == {"COMPLETED"})
    assert server.stop() == 0
    with closing(sqlite3.connect(server.data_dir / "livetape.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_large_value_without_room_fails_its_node(make_server: MakeServer, disk: SmallDisk) -> None:
    server = make_server("disk/data", blocks=True).start()
    with Api(server.url) as api:
        execution = api.wait(api.run(graph([node("bulk", BULK, value=20_000_000)], [])))
        assert execution["status"] == "FAILED"
        assert "folder of large values cannot be used" in execution["stats"]["error"]
        assert not [path for path in (server.data_dir / "blobs").rglob("*") if path.is_file()]
        assert api.wait(api.run(graph([node("bulk", BULK, value=2_000_000)], [])))["status"] == "COMPLETED"


def test_a_folder_that_may_only_be_read_is_refused(make_server: MakeServer, disk: SmallDisk) -> None:
    server = make_server("disk/data")
    server.log_path = disk.folder.with_name("server.log")
    server.start()
    with Api(server.url) as api:
        api.wait(api.run(graph([node("one", STORE, input=1)], [])))
    assert server.stop() == 0
    disk.lock()
    server.spawn()
    assert server.process is not None
    assert poll("it ends", lambda: server.process and server.process.poll(), timeout=20)
    server.kill()
    said = server.output()
    assert "LT-E303" in said, said
    assert "Traceback" not in said
    disk.unlock()
    server.start()
    with Api(server.url) as api:
        (kept,) = api.ok(api.http.get("/api/executions"))
        assert kept["status"] == "COMPLETED"


def test_a_body_of_fifty_megabytes_is_refused_and_the_server_lives_on(make_server: MakeServer) -> None:
    server = make_server().start()
    with Api(server.url) as api:
        created = api.create(graph([node("one", STORE, input=1)], []))
        answer = api.http.post(f"/api/graphs/{created['id']}/execute/1", json={"inputs": {"x": "x" * 50_000_000}})
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"
        assert api.ok(api.http.get("/api/executions")) == []
        assert api.ok(api.start_raw(created))["status"] == "QUEUED"


def test_a_kill_while_large_values_are_written_loses_nothing(make_server: MakeServer) -> None:
    """It hits before, at and after the commit that points to the file: the run goes on with whole values."""
    server = make_server(blocks=True)
    folder = server.data_dir / "blobs"
    nodes = [node("a", BULK, value=3_000_000), node("b", ECHO), node("c", ECHO), node("out", OUTPUT, name="r")]
    links = [link("a.text", "b.value"), link("b.value", "c.value"), link("c.value", "out.value")]
    started = []
    for pause in (0, 0.005, 0.02, 0.05, 0.1):
        server.start()
        with Api(server.url) as api:
            started.append(api.run(graph(nodes, links)))
            mine = folder / DEV_USER / started[-1].id
            poll("a file is begun", lambda mine=mine: mine.is_dir() and any(mine.iterdir()), every=0.001)
            time.sleep(pause)  # another moment each time
            server.kill()
    server.start()
    with Api(server.url) as api:
        for one in started:
            execution = api.wait(one)
            assert execution["status"] == "COMPLETED", execution
            (value,) = execution["outputs"]["r"]
            answer = api.http.get(f"/api/blobs/{one.id}/{value['$livetape.blob']['sha256']}")
            assert answer.json() == "x" * 3_000_000
            assert [len(n["output_data"].get("value", [1])) for n in execution["node_executions"]] == [1] * 4
