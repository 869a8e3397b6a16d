"""Bad input of every kind: a clear error in the one shape, nothing lost, and the server lives on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from websockets.exceptions import ConnectionClosed

from acceptance.api import Api, graph, link, node
from acceptance.server import DEV_USER, MakeServer, Server, cli
from acceptance.watch import ask, receive, socket
from livetape_process import poll
from reference.blocks import CALCULATOR, CONDITION, INPUT, STORE

SHAPE = {"message", "detail", "hint", "type", "title", "status", "instance", "code", "errors"}
UNKNOWN_BLOCK = "00000000-0000-4000-8000-00000000dead"


def refused(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """An error in the one shape of the wire contract, section 5."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    body: dict[str, Any] = answer.json()
    assert body.keys() >= SHAPE
    assert body["status"] == status
    assert body["message"]
    assert body["hint"]
    assert "Traceback" not in answer.text
    return body


def adder(**defaults: Any) -> dict[str, Any]:
    return graph([node("add", CALCULATOR, operation="Add", **defaults)], [])


# ---- Graphs that cannot run ------------------------------------------------------------------------------------------


def test_an_unknown_block_is_kept_and_refuses_to_run(api: Api) -> None:
    created = api.create(graph([node("x", UNKNOWN_BLOCK, secret=[1, {"a": None}])], []))
    kept = api.ok(api.http.get(f"/api/graphs/{created['id']}"))["nodes"][0]
    assert kept["block_id"] == UNKNOWN_BLOCK
    assert kept["input_default"] == {"secret": [1, {"a": None}]}
    detail = refused(api.start_raw(created), 400)["detail"]
    assert detail["type"] == "validation_error"
    assert list(detail["node_errors"]) == [created["nodes"][0]["id"]]
    assert api.ok(api.http.get(f"/api/graphs/{created['id']}/executions"))["executions"] == []


BROKEN = {
    "source does not exist": link("nobody.output", "add.a"),
    "sink does not exist": link("one.output", "nobody.a"),
    "output pin does not exist": link("one.nothing", "add.a"),
    "input pin does not exist": link("one.output", "add.nothing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_link_is_refused_by_name(api: Api, case: str) -> None:
    body = {
        "graph": graph(
            [node("one", STORE, input=1), node("add", CALCULATOR, operation="Add", a=1, b=1)], [BROKEN[case]]
        )
    }
    answer = api.http.post("/api/graphs", json=body)
    error = refused(answer, 400)
    assert BROKEN[case]["source_name" if "output pin" in case else "sink_name"] in json.dumps(error)


def test_a_missing_input_is_named(api: Api) -> None:
    created = api.create(adder(a=1))
    detail = refused(api.start_raw(created), 400)["detail"]
    assert detail["type"] == "validation_error"
    assert detail["node_errors"] == {created["nodes"][0]["id"]: {"b": "This field is required"}}


def test_a_value_of_the_wrong_type_is_named_before_anything_runs(api: Api) -> None:
    created = api.create(adder(a="seven", b=1))
    errors = refused(api.start_raw(created), 400)["detail"]["node_errors"]
    assert list(errors) == [created["nodes"][0]["id"]]
    assert list(errors[created["nodes"][0]["id"]]) == ["a"]


def test_a_value_of_the_wrong_type_over_a_link_fails_the_execution_and_is_named(api: Api) -> None:
    one = graph(
        [node("one", STORE, input="seven"), node("add", CALCULATOR, operation="Add", b=1)],
        [link("one.output", "add.a")],
    )
    execution = api.wait(api.run(one))
    assert execution["status"] == "FAILED"
    failed = [x for x in execution["node_executions"] if x["status"] == "FAILED"]
    assert len(failed) == 1
    assert failed[0]["block_id"] == CALCULATOR
    assert failed[0]["node_id"] in json.dumps([execution["status_reason"], execution["stats"]])
    assert "a" in json.dumps(failed[0]["output_data"]["error"])


BODIES = {
    "inputs are a list": {"inputs": [1]},
    "not an object": [1],
    "dry_run is text": {"dry_run": "perhaps"},
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_of_the_wrong_type_is_422(api: Api, case: str) -> None:
    created = api.create(adder(a=1, b=1))
    answer = api.http.post(f"/api/graphs/{created['id']}/execute/1", json=BODIES[case])
    error = refused(answer, 422)
    assert isinstance(error["detail"], list)
    assert error["message"] == f"Invalid data for POST /api/graphs/{created['id']}/execute/1"
    assert error["hint"] == "Ensure the request matches the API schema."


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"graph":' + b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused(api: Api, content: bytes) -> None:
    answer = api.http.post("/api/graphs", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)


NUMBERS = ["NaN", "Infinity", "1e400", "-1e400", "9" * 400]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_json_cannot_carry_break_nothing(api: Api, number: str) -> None:
    text = json.dumps({"graph": adder(a=1, b="@")}).replace('"@"', number)
    answer = api.http.post("/api/graphs", content=text.encode(), headers={"Content-Type": "application/json"})
    if answer.status_code == 200:
        started = api.start_raw(answer.json())
        assert started.status_code in (200, 400), started.text
    else:
        refused(answer, answer.status_code)
    assert api.http.get("/health").json() == {"status": "healthy"}


def test_what_does_not_exist_is_404_and_405_in_the_same_shape(api: Api) -> None:
    created = api.create(adder(a=1, b=1))
    refused(api.http.get("/api/graphs/nothing"), 404)
    refused(api.http.get(f"/api/graphs/{created['id']}/executions/nothing"), 404)
    refused(api.http.get(f"/api/graphs/{created['id']}/executions/nothing/events"), 404)
    refused(api.http.post(f"/api/graphs/{created['id']}/execute/99", json={}), 404)
    refused(api.http.get("/api/nothing"), 404)
    refused(api.http.delete("/api/blocks"), 405)


def test_a_loop_without_end_is_ended_by_the_step_limit(api: Api) -> None:
    """The server of these tests has a limit of 500 node executions."""
    endless = graph(
        [
            node("start", STORE, input=0),
            node("add", CALCULATOR, operation="Add", b=1),
            node("test", CONDITION, operator=">", value2=-1),
        ],
        [link("start.output", "add.a"), link("add.result", "test.value1"), link("test.yes_output", "add.a")],
    )
    started = api.run(endless)
    execution = api.wait(started)
    assert execution["status"] == "FAILED"
    assert "limit" in json.dumps([execution["status_reason"], execution["stats"]]).lower()
    assert len(execution["node_executions"]) <= 501
    assert api.events(started)[-1].value["status"] == "FAILED"
    assert api.wait(api.run(adder(a=1, b=1)))["status"] == "COMPLETED"


# ---- Starting twice --------------------------------------------------------------------------------------------------


def test_twenty_concurrent_starts_with_one_key_are_one_execution(server: Server, api: Api) -> None:
    created = api.create(graph([node("in", INPUT, name="x", value=1)], []))
    barrier = threading.Barrier(20)

    def start(_: int) -> httpx2.Response:
        with Api(server.url) as own:
            barrier.wait(10)
            return own.start_raw(created, {"x": 5}, key="one key")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(start, range(20)))
    assert {a.status_code for a in answers} == {200}, [a.text for a in answers if a.status_code != 200][:2]
    assert len({a.json()["id"] for a in answers}) == 1
    # A twin may see the execution a step further on; what it started is the same.
    assert len({json.dumps([a.json()[name] for name in ("inputs", "graph_version", "stream")]) for a in answers}) == 1
    listed = api.ok(api.http.get(f"/api/graphs/{created['id']}/executions"))
    assert [e["id"] for e in listed["executions"]] == [answers[0].json()["id"]]
    # The same key with another body is a conflict; other keys, and none, are new executions.
    refused(api.start_raw(created, {"x": 6}, key="one key"), 409)
    others = [api.ok(api.start_raw(created, {"x": 5}, key=key)) for key in ("other", None, None)]
    assert len({x["id"] for x in others} | {answers[0].json()["id"]}) == 4


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "ü"])
def test_a_bad_key_is_refused(api: Api, key: str) -> None:
    created = api.create(adder(a=1, b=1))
    url = f"/api/graphs/{created['id']}/execute/1"
    answer = api.http.post(url, json={}, headers=[(b"Idempotency-Key", key.encode())])
    refused(answer, answer.status_code)
    assert answer.status_code in (400, 422)


# ---- Strangers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(server: Server) -> str:
    made = cli("token", "create", "--user", "stranger", "--data-dir", str(server.data_dir))
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.split()) == 1, "it prints the token alone"
    return made.stdout.strip()


@pytest.fixture
def strange(server: Server, stranger: str) -> Iterator[Api]:
    with Api(server.url, token=stranger) as client:
        yield client


def test_a_foreign_execution_does_not_exist_for_a_stranger(api: Api, strange: Api) -> None:
    started = api.run(adder(a=1, b=1))
    api.wait(started)
    path = f"/api/graphs/{started.graph_id}/executions/{started.id}"
    for answer in (
        strange.http.get(path),
        strange.http.get(f"{path}/events"),
        strange.http.post(f"{path}/stop"),
        strange.http.get(f"/api/graphs/{started.graph_id}"),
        strange.http.post(f"/api/graphs/{started.graph_id}/execute/1", json={}),
    ):
        refused(answer, 404)
    assert strange.ok(strange.http.get("/api/graphs")) == []
    assert strange.ok(strange.http.get("/api/executions")) == []


async def test_a_foreign_execution_is_never_delivered(server: Server, api: Api, stranger: str) -> None:
    slow = graph([node("s", "c4a05001-0000-4000-8000-000000000001", count=5, pause=0.1)], [])
    started = await asyncio.to_thread(api.run, slow)
    async with socket(server.ws_url, token=stranger) as ws:
        replies = []
        for asked in (
            {"graph_exec_id": started.id, "since": "earliest"},
            {"graph_exec_id": started.id, "outputs": "each"},
            {"graph_exec_id": started.id, "strict": True},
            {"graph_exec_id": "01900000-0000-7000-8000-000000000000", "strict": True},
        ):
            await ws.send(json.dumps({"method": "subscribe_graph_execution", "data": asked}))
        while len(replies) < 4:
            message = json.loads(await receive(ws))
            if message["method"] != "replay_complete":  # of nothing
                replies.append(message)
        for reply in replies[:2]:
            assert reply["success"] is True
            assert reply["channel"] == f"stranger|graph_exec#{started.id}"
        for reply in replies[2:]:
            assert (reply["method"], reply["success"]) == ("error", False)
        assert replies[2]["error"] == replies[3]["error"]
        await asyncio.to_thread(api.wait, started)
        assert await ask(ws, '{"method":"heartbeat"}') == '{"method":"heartbeat","data":"pong","success":true}'


# ---- Tokens ----------------------------------------------------------------------------------------------------------

KEY = "a key for tests of at least thirty-two bytes"


def token(**claims: Any) -> str:
    return jwt.encode({"aud": "authenticated", "sub": "user-1", "exp": time.time() + 600} | claims, KEY, "HS256")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose key the tests know, and which answers refused connections without waiting."""
    env = {
        "LIVETAPE_JWT_VERIFY_KEY": KEY,
        "LIVETAPE_GATEWAY__REFUSE_DELAY_MIN_SECONDS": "0",
        "LIVETAPE_GATEWAY__REFUSE_DELAY_MAX_SECONDS": "0.05",
    }
    started = Server(tmp_path_factory.mktemp("keyed") / "data", env=env)
    started.start()
    yield started
    if started.running:
        started.stop()


BAD_TOKENS = {
    "expired": (lambda: token(exp=time.time() - 120), 4003, "Invalid token", "Token has expired"),
    "wrong audience": (lambda: token(aud="somebody"), 4003, "Invalid token", None),
    "wrong key": (
        lambda: jwt.encode({"sub": "u", "aud": "authenticated"}, KEY[::-1], "HS256"),
        4003,
        "Invalid token",
        None,
    ),
    "no algorithm": (
        lambda: jwt.encode({"sub": "u", "aud": "authenticated", "exp": time.time() + 60}, "", "none"),
        4003,
        "Invalid token",
        None,
    ),
    "without a user": (lambda: token(sub=""), 4002, "Invalid token", "User ID not found in token"),
    "nonsense": (lambda: "nonsense", 4003, "Invalid token", None),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
async def test_a_bad_token_is_refused_with_its_code(keyed: Server, case: str) -> None:
    make, code, reason, text = BAD_TOKENS[case]
    bad = make()
    with Api(keyed.url, token=bad) as client:
        error = refused(await asyncio.to_thread(client.http.get, "/api/graphs"), 401)
        if text:
            assert error["detail"] == text
    async with socket(keyed.ws_url, token=bad) as ws:  # it accepts first, so that browsers see the code
        with pytest.raises(ConnectionClosed):
            await receive(ws)
        assert (ws.close_code, ws.close_reason) == (code, reason)


async def test_a_good_token_is_its_user(keyed: Server) -> None:
    with Api(keyed.url, token=token()) as client:
        created = await asyncio.to_thread(client.create, adder(a=1, b=1))
        assert created["user_id"] == "user-1"
    with Api(keyed.url) as client:
        created = await asyncio.to_thread(client.create, adder(a=1, b=1))
        assert created["user_id"] == DEV_USER
    async with socket(keyed.ws_url, token=token()) as ws:
        reply = json.loads(await ask(ws, {"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E"}}))
        assert reply["channel"] == "user-1|graph_exec#E"


async def test_another_host_name_or_origin_is_not_the_development_user(keyed: Server) -> None:
    """A page in a browser on this machine must not act for its user (DNS rebinding, cross-site sockets)."""
    with Api(keyed.url) as client:
        rebound = await asyncio.to_thread(client.http.get, "/api/graphs", headers={"Host": "evil.example"})
        assert rebound.status_code in (400, 401, 403, 421), rebound.text
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Origin": "https://evil.example",
    }
    with Api(keyed.url) as client:
        answer = await asyncio.to_thread(client.http.get, "/ws", headers=handshake)
        assert answer.status_code == 403


# ---- Starting the server ---------------------------------------------------------------------------------------------


def refuses_to_start(server: Server, *words: str) -> str:
    """It ends by itself with a code above zero and says what is wrong and what to do, without a traceback."""
    server.spawn()
    assert server.process is not None
    code = poll("it ends", lambda: server.process and server.process.poll(), timeout=20)
    server.kill()
    output = server.output()
    assert code > 0, output
    assert "Traceback" not in output
    assert "error[LT-E" in output
    assert "fix" in output
    for word in words:
        assert word in output, output
    return output


def test_a_port_in_use_is_refused_with_the_remedy(make_server: MakeServer) -> None:
    first = make_server("one").start()
    second = make_server("two", port=first.port)
    refuses_to_start(second, str(first.port), "--port", "LT-E301")
    assert httpx2.get(f"{first.url}/readyz", trust_env=False).status_code == 200


def test_a_data_folder_in_use_is_refused_naming_its_server(make_server: MakeServer) -> None:
    first = make_server("one").start()
    second = make_server("one")
    second.log_path = first.log_path.with_name("second.log")
    refuses_to_start(second, str(first.pid), first.url, "LT-E302")
    assert httpx2.get(f"{first.url}/readyz", trust_env=False).status_code == 200
    # After a kill the folder is free again: the lock dies with its process.
    first.kill()
    second.start()


@pytest.mark.parametrize("where", ["a file", "below a file", "/proc"])
def test_a_data_folder_that_cannot_be_written_is_refused(make_server: MakeServer, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    server = make_server("data")
    server.data_dir = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "data",
        "/proc": Path("/proc/livetape"),
    }[where]
    refuses_to_start(server, str(server.data_dir), "--data-dir")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_broken_database_is_refused_and_left_as_it_is(make_server: MakeServer) -> None:
    server = make_server().start()
    with Api(server.url) as client:
        for _ in range(5):
            client.wait(client.run(adder(a=1, b=1)))
    assert server.stop() == 0
    database = server.data_dir / "livetape.db"
    whole = database.read_bytes()
    for name, broken in {
        "truncated": whole[: len(whole) // 2 + 100],
        "no database": b"This is not a database. " * 1000,
        "a changed page": whole[:4096] + b"\xff" * 4096 + whole[8192:],
    }.items():
        database.write_bytes(broken)
        for side in ("livetape.db-wal", "livetape.db-shm"):
            (server.data_dir / side).unlink(missing_ok=True)
        output = refuses_to_start(server, "livetape.db")
        assert "malformed" in output or "not a database" in output or "broken" in output or "corrupt" in output, name
        assert database.read_bytes() == broken, f"{name}: the evidence was changed"
    database.write_bytes(whole)
    server.start()
    with Api(server.url) as client:
        assert len(client.ok(client.http.get("/api/executions"))) == 5


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LIVETAPE_PORT", "many"),
        ("LIVETAPE_BUS", "nats://127.0.0.1"),
        ("LIVETAPE_ENGINE__LEASE_SECONDS", "-1"),
        ("LIVETAPE_BLOCKS", "nowhere:blocks"),
        ("LIVETAPE_JWT_VERIFY_KEY", "short"),
    ],
)
def test_a_bad_setting_is_refused_by_name(make_server: MakeServer, variable: str, value: str) -> None:
    server = make_server(env={variable: value})
    if variable == "LIVETAPE_PORT":
        done = cli("config", "show", env={variable: value}, cwd=server.data_dir.parent)
        assert done.returncode > 0
        assert variable in done.stderr
        assert "Traceback" not in done.stderr
        return
    refuses_to_start(server, variable if variable != "LIVETAPE_BLOCKS" else "nowhere")


def test_authentication_off_beyond_loopback_is_refused(tmp_path: Path) -> None:
    done = cli(
        "up",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--data-dir",
        str(tmp_path / "d"),
        env={"LIVETAPE_ENABLE_AUTH": "false"},
    )
    assert done.returncode > 0
    assert "LIVETAPE_ENABLE_AUTH" in done.stderr + done.stdout


def test_the_secret_is_for_its_owner_only(server: Server) -> None:
    for path in server.data_dir.rglob("*"):
        if "secret" in path.name:
            assert path.stat().st_mode & 0o077 == 0, path
    assert list(server.data_dir.glob("*secret*"))


def test_the_database_is_sound_after_all_this(server: Server) -> None:
    """Not a second path into the data: only SQLite's own check of the file that a live server writes."""
    with sqlite3.connect(f"file:{server.data_dir / 'livetape.db'}?mode=ro", uri=True) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    assert server.running
