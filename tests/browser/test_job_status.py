"""What the console makes of the events of a job: its status, at a glance."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from browser.conftest import OpenPage
from browser.fake_server import FakeServer

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize(
    ("events", "status"),
    [
        (["task_started", "task_retried"], "Queued"),
        (["task_started", "task_retried", "task_started"], "Running"),
        (["task_started", "task_failed"], "Failed"),
        (["task_started", "task_revoked"], "Terminated"),
    ],
)
async def test_status_of_a_job(server: FakeServer, open_page: OpenPage, events: list[str], status: str) -> None:
    watched = await open_page(f"{server.url}/#/jobs/nightly")
    for event_type in events:
        await server.job_event("nightly", event_type, {}, final=event_type in {"task_failed", "task_revoked"})
    await watched.settle(len(events))
    await expect(watched.page.locator(".job .status.big")).to_have_text(status)
