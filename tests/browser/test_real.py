"""The console on the real server, `livetape up` as a process: what it shows against what the API says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from acceptance.server import Server, cli
from browser.conftest import OpenPage, Watched

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STATUS = ".execution .status.big"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("console") / "data")
    server.start()
    yield server
    server.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def api(live: Server) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=live.url, trust_env=False, timeout=10) as client:
        yield client


async def get(api: httpx2.AsyncClient, path: str) -> Any:
    response = await api.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def run(page: Page, graph: str, **inputs: str) -> None:
    """By the Run button of the first page."""
    await page.get_by_role("button", name=f"Run {graph}").click()
    form = page.get_by_role("dialog")
    for label, value in inputs.items():
        await form.get_by_label(label).fill(value)
    await form.get_by_role("button", name="Run").click()
    await expect(page.locator(STATUS)).to_be_visible()


async def truth(api: httpx2.AsyncClient, page: Page) -> dict[str, Any]:
    """What the API says of the execution that the page shows."""
    graph, execution = page.url.split("#/executions/")[1].split("/")
    found: dict[str, Any] = await get(api, f"/api/graphs/{graph}/executions/{execution}")
    return found


async def is_whole(watched: Watched, api: httpx2.AsyncClient) -> dict[str, Any]:
    """The page shows the status that the API says, and all numbers of the tape, each once."""
    said = await truth(api, watched.page)
    last = said["stream"]["offset"]
    await watched.settle(last)
    assert await watched.numbers() == [str(number) for number in range(1, last + 1)]
    assert (await watched.page.locator(STATUS).inner_text()).upper() == said["status"]
    ran = {node["node_id"] for node in said["node_executions"]}
    for node_id in ran:
        runs = sum(node["node_id"] == node_id for node in said["node_executions"])
        row = watched.page.locator(f'tr[data-node="{node_id}"]')
        await expect(row.locator("td.figure").first).to_have_text(str(runs))
    return said


async def test_hello_by_the_run_button(live: Server, api: httpx2.AsyncClient, open_page: OpenPage) -> None:
    watched = await open_page(live.url)
    page = watched.page
    await expect(page.locator("#connection")).to_contain_text("Live")
    await run(page, "Hello", Name="reader")
    await expect(page.locator(STATUS)).to_have_text("Completed")
    await expect(page.get_by_role("region", name="Outputs")).to_contain_text("Hello, reader!")
    said = await is_whole(watched, api)
    assert said["outputs"] == {"greeting": ["Hello, reader!"]}
    assert said["inputs"] == {"name": "reader"}
    await page.get_by_role("link", name="Executions").click()
    await expect(page.locator(f'tr[data-execution="{said["id"]}"]')).to_contain_text("Completed")


async def test_alice_live_to_the_end(live: Server, api: httpx2.AsyncClient, open_page: OpenPage) -> None:
    watched = await open_page(live.url)
    page = watched.page
    await run(page, "Alice in Wonderland", Paragraphs="40")
    await expect(page.locator(STATUS)).to_have_text("Running")
    await expect(page.locator("#connection")).to_contain_text("Live", timeout=5_000)
    await expect(page.get_by_role("region", name="Outputs")).to_contain_text("paragraph 3:")  # while it runs
    await expect(page.locator(STATUS)).to_have_text("Running")
    await expect(page.locator(STATUS)).to_have_text("Completed", timeout=30_000)
    said = await is_whole(watched, api)
    assert len(said["outputs"]["progress"]) == 40
    # The same tape again, by somebody who comes later.
    later = await open_page(page.url)
    await expect(later.page.locator("#connection")).to_contain_text("Tape complete")
    await is_whole(later, api)


async def test_stop_a_running_one(live: Server, api: httpx2.AsyncClient, open_page: OpenPage) -> None:
    watched = await open_page(live.url)
    page = watched.page
    await run(page, "Alice in Wonderland", Paragraphs="400")
    await expect(page.get_by_role("region", name="Outputs")).to_contain_text("paragraph 3:")
    await page.get_by_role("button", name="Stop", exact=True).click()
    await expect(page.locator(STATUS)).to_have_text("Terminated")
    said = await is_whole(watched, api)
    assert said["status_reason"] == "cancelled_by_user"
    await expect(page.locator(".reason")).to_have_text("stopped by a user")


async def test_killed_server_costs_no_number(live: Server, api: httpx2.AsyncClient, open_page: OpenPage) -> None:
    watched = await open_page(live.url)
    watched.allow("WebSocket connection to|ERR_CONNECTION_REFUSED")
    page = watched.page
    await run(page, "Alice in Wonderland", Paragraphs="60")
    await expect(page.get_by_role("region", name="Outputs")).to_contain_text("paragraph 5:")
    await asyncio.to_thread(live.kill)
    await expect(page.locator("#connection")).to_contain_text("Offline")
    await asyncio.to_thread(live.start)
    await expect(page.locator(STATUS)).to_have_text("Completed", timeout=60_000)
    await is_whole(watched, api)


async def test_job_from_a_script(live: Server, api: httpx2.AsyncClient, open_page: OpenPage) -> None:
    watched = await open_page(f"{live.url}/#/jobs/nightly-7")
    await expect(watched.page.get_by_text("waiting for the first event")).to_be_visible()
    await expect(watched.page.locator("#connection")).to_contain_text("Live")
    events = [("task_started", {}), ("task_progress", {"percent": 50}), ("task_completed", {"files": 3})]
    for event_type, data in events:
        answer = await api.post("/api/jobs/nightly-7/events", json={"event_type": event_type, "data": data})
        assert answer.status_code == 201, answer.text
    await watched.settle(3)
    assert await watched.numbers() == ["1", "2", "3"]
    await expect(watched.page.locator(".job .status.big")).to_have_text("Completed")


async def test_sign_in_where_there_is_no_development_user(tmp_path: Path, open_page: OpenPage) -> None:
    server = Server(tmp_path / "data", env={"LIVETAPE_APP_ENV": "prod"})
    await asyncio.to_thread(server.start)
    try:
        made = await asyncio.to_thread(cli, "token", "create", "--user", "reader", "--data-dir", str(server.data_dir))
        assert made.returncode == 0, made.stderr
        watched = await open_page(f"{server.url}/#/jobs/mine")
        page = watched.page
        await expect(page.get_by_label("Token")).to_be_visible()  # the socket was closed with 4001
        await page.get_by_label("Token").fill(made.stdout.strip())
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator("#connection")).to_contain_text("Live")
        await page.get_by_role("link", name="Executions").click()
        await expect(page.get_by_role("heading", name="Graphs")).to_be_visible()
        await expect(page.locator("#connection")).not_to_contain_text("Not signed in")
        await page.get_by_role("button", name="Sign out").click()
        watched.allow("status of 401")
        await expect(page.get_by_label("Token")).to_be_visible()
    finally:
        await asyncio.to_thread(server.stop)


async def test_restarted_server_is_found_again(live: Server, api: httpx2.AsyncClient, open_page: OpenPage) -> None:
    """A stop in good order (SIGTERM) while somebody watches, and a start."""
    watched = await open_page(live.url)
    watched.allow("WebSocket connection to|ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET")
    page = watched.page
    await run(page, "Alice in Wonderland", Paragraphs="50")
    await expect(page.get_by_role("region", name="Outputs")).to_contain_text("paragraph 5:")
    await asyncio.to_thread(live.stop)
    await asyncio.to_thread(live.start)
    await expect(page.locator(STATUS)).to_have_text("Completed", timeout=60_000)
    await is_whole(watched, api)


async def test_page_by_the_real_server(live: Server, api: httpx2.AsyncClient) -> None:
    page = await api.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.text.startswith("<!doctype html>")
    assert (await api.get("/")).json() == {"status": "healthy"}
    missing = await api.get("/console/nothing.js")
    assert missing.status_code == 404
    assert {"message", "detail", "hint"} <= json.loads(missing.text).keys()
    assert Path(live.data_dir).is_dir()
