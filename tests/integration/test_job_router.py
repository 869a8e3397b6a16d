"""The job router in an application of somebody else: pages, publishing, and who may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from integration.job_site import SSE, Site, served
from livetape.auth import Principal
from livetape.errors import ConfigError
from livetape.events.channel import job_tape
from livetape.gateway.fastapi import create_job_router

# ---- pages -----------------------------------------------------------------------------------------------------------


async def test_a_page(site: Site) -> None:
    await site.publish("task_started", task_type="t")
    await site.publish("task_progress", progress="一半")
    await site.publish("task_completed", result={"n": 1})
    body = (await site.get()).json()
    assert [event["offset"] for event in body["events"]] == [1, 2, 3]
    assert [event["event_type"] for event in body["events"]] == ["task_started", "task_progress", "task_completed"]
    assert body["events"][1]["data"] == {
        "event_type": "task_progress",
        "job_id": "J",
        "timestamp": "",
        "data": {"event_type": "task_progress", "progress": "一半"},
    }
    assert (body["next"], body["offset"], body["final"]) == (3, 3, True)
    page = (await site.get(after=1, limit=1)).json()
    assert ([event["offset"] for event in page["events"]], page["next"]) == ([2], 2)
    chosen = (await site.get(types="task_completed,other")).json()
    assert [event["offset"] for event in chosen["events"]] == [3]


@pytest.mark.parametrize("query", [{"after": "-1"}, {"after": "x"}, {"limit": "0"}, {"limit": "1001"}])
async def test_a_page_that_cannot_be_is_refused(site: Site, query: dict[str, str]) -> None:
    await site.publish("task_started")
    assert (await site.get(**query)).status_code == 422


# ---- publishing ------------------------------------------------------------------------------------------------------


async def test_publish(site: Site) -> None:
    first = await site.post({"event_type": "task_started", "data": {"a": [1, None]}})
    assert first.status_code == 201
    assert set(first.json()) == {"offset", "epoch"}
    again = {"event_type": "x", "data": "d", "timestamp": "2030-01-01T00:00:00Z", "idempotency_key": "k"}
    second, third = await site.post(again), await site.post(again)
    assert second.json() == third.json() == {"offset": 2, "epoch": first.json()["epoch"]}
    body = (await site.get()).json()
    assert [event["data"]["data"] for event in body["events"]] == [{"a": [1, None]}, "d"]
    assert body["events"][1]["data"]["timestamp"] == "2030-01-01T00:00:00Z"
    assert body["events"][0]["data"]["timestamp"].startswith("20")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b'{"event_type":""}', 422),
        (b'{"event_type":"a\\u0000b"}', 422),
        (b'{"data":1}', 422),
        (b'{"event_type":"x","data":NaN}', 422),
        (b'{"event_type":"x","data":' + b"[" * 300 + b"]" * 300 + b"}", 422),
        (b"[]", 422),
        (b'{"event_type":"x","data":"' + b"a" * 1024 * 1024 + b'"}', 413),
        (b'{"event_type":"x","data":"\\ud800"}', 201),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bodies(site: Site, content: bytes, status: int) -> None:
    headers = {"authorization": "U", "content-type": "application/json"}
    answer = await site.http.post("/api/jobs/J/events", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()


async def test_a_form_of_another_page_is_refused(site: Site) -> None:
    answer = await site.http.post("/api/jobs/J/events", content=b"{}", headers={"authorization": "U"})
    assert answer.status_code == 415


# ---- who may ---------------------------------------------------------------------------------------------------------


def test_without_authentication_there_is_no_router() -> None:
    with pytest.raises(ConfigError) as raised:
        create_job_router("memory://")
    assert "authenticate" in str(raised.value.fix)


async def test_who_is_not_signed_in_is_told_by_the_application(site: Site) -> None:
    for answer in (await site.get(user=""), await site.post({"event_type": "x"}, user="")):
        assert (answer.status_code, answer.json()) == (401, {"detail": "Who are you?"})


async def test_a_job_is_its_owners(site: Site) -> None:
    await site.post({"event_type": "task_started"}, user="U")
    unknown = await site.get(job="unknown", user="V")
    for user in ("V", "V admin"):
        foreign = await site.get(user=user)
        assert foreign.status_code == 404
        assert foreign.text == unknown.text.replace("unknown", "J")
        assert (await site.get(user=user, headers=SSE)).status_code == 404
    assert (await site.post({"event_type": "x"}, user="V")).status_code == 404
    assert (await site.get()).json()["offset"] == 1


@pytest.mark.parametrize(("unowned", "statuses"), [("admin", (404, 200)), ("any_user", (200, 200))])
async def test_jobs_without_an_owner(url: str, unowned: str, statuses: tuple[int, int]) -> None:
    async with served(url, jobs_unowned=unowned) as site:
        await site.publish("task_started", user=None)
        assert ((await site.get()).status_code, (await site.get(user="A admin")).status_code) == statuses


async def test_nobody_gets_a_job_without_an_owner_by_writing_to_it(site: Site) -> None:
    await site.publish("task_started", user=None, secret="s")
    answer = await site.post({"event_type": "x"}, user="U")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Job #J not found."})
    assert (await site.get(user="U")).status_code == 404


async def test_who_may_write_to_a_job_without_an_owner_does_not_claim_it(url: str) -> None:
    async with served(url, jobs_unowned="any_user") as site:
        await site.publish("task_started", user=None)
        for user in ("U", "V", "A admin"):
            assert (await site.post({"event_type": "x"}, user=user)).status_code == 201
        tape = await site.events.log.describe(job_tape("J"))
        assert (tape.owner, tape.offset) == (None, 4)
        assert (await site.get(user="V")).status_code == 200


@pytest.mark.parametrize("given", [None, "", Principal("")])
async def test_an_empty_user_is_nobody(given: Any, tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(create_job_router(f"sqlite:///{tmp_path}/t.db", authenticate=lambda: given))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app") as http,
    ):
        answer = await http.get("/jobs/J/events")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
