"""A real browser for the console, and pages that fail their test when the browser complains about anything."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

import support
from browser.fake_server import FakeServer

CHROMIUM_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Set before any script of the page: what the browser's policy stopped, and whether foreign markup came to life.
PROBE = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.__violations.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sample}`);
});
"""

# All numbers of the tape in the order of the page. Only the visible rows exist, so it scrolls through them.
NUMBERS = """async (view) => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const found = new Map();
  const keep = view.scrollTop;
  const step = Math.max(240, Math.floor(view.clientHeight * 0.8));
  for (let top = 0; ; top += step) {
    view.scrollTop = top;
    await frame();
    for (const row of view.querySelectorAll("li")) {
      const line = row.querySelector("[data-offset]");
      found.set(Number(row.dataset.index), line ? line.dataset.offset : row.textContent);
    }
    if (top > view.scrollHeight) break;
  }
  view.scrollTop = keep;
  return [...found].sort((a, b) => a[0] - b[0]).map(([, number]) => number);
}"""


@dataclass
class Watched:
    """A page, and what the browser said about it. Unless allowed, any complaint fails the test at its end."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def allow(self, pattern: str) -> None:
        self.allowed.append(pattern)

    async def numbers(self) -> list[str]:
        """The numbers of all rows of the tape, notes as their text."""
        found: list[str] = await self.page.locator(".events-view").evaluate(NUMBERS)
        return found

    async def settle(self, last: int | str) -> None:
        """Wait until the newest event shown has this number."""
        await expect(self.page.locator("[data-offset]").last).to_have_attribute("data-offset", str(last))

    async def check(self) -> None:
        violations = await self.page.evaluate("() => window.__violations")
        left = [line for line in self.complaints if not any(re.search(pattern, line) for pattern in self.allowed)]
        assert violations == []
        assert left == []


OpenPage = Callable[..., Awaitable[Watched]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    path = support.services()["chromium"].path
    assert path is not None, "mark the test with @pytest.mark.browser"
    async with async_playwright() as playwright:
        # Playwright gives each launch a new folder for the user's data, and removes it.
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """`watched = await open_page(url, color_scheme="dark")`; every page is checked for complaints at the end."""
    pages: list[Watched] = []

    async def open_one(url: str, **context: Any) -> Watched:
        made = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **context})
        made.set_default_timeout(15_000)
        await made.add_init_script(PROBE)
        page = await made.new_page()
        watched = Watched(page)
        pages.append(watched)

        def said(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                watched.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

        page.on("console", said)
        page.on("pageerror", lambda error: watched.complaints.append(f"uncaught: {error}"))
        await page.goto(url)
        return watched

    yield open_one
    try:
        for watched in pages:
            await watched.check()
    finally:
        for watched in pages:
            await watched.page.context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer().running() as fake:
        yield fake


@pytest.fixture(autouse=True, scope="session")
def _patient() -> None:
    expect.set_options(timeout=10_000)
