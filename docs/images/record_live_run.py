"""Makes `live-run.gif`: the example about Alice, run by the button and watched, on a server that is running.

    scripts/up --port 8556 --data-dir /tmp/livetape-capture
    uv run --with playwright,pillow docs/images/record_live_run.py http://127.0.0.1:8556/ docs/images/live-run.gif

Needs Chromium and Pillow, which is no dependency of the project.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image
from playwright.async_api import Page, async_playwright

WIDTH, VIEW = 900, {"width": 1200, "height": 770}
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
# Colours that cover few pixels and carry the meaning: without these the palette would have greys only.
ACCENTS = [(0x25, 0x52, 0xC4), (0x1D, 0x5F, 0xD0), (0x1A, 0x74, 0x44), (0xB4, 0x26, 0x1D), (0xFF, 0xB8, 0x4D)]


@dataclass
class Frame:
    image: Image.Image
    at: float
    hold: float | None  # seconds; None: until the next frame


async def record(url: str) -> list[Frame]:
    frames: list[Frame] = []

    async def take(page: Page, hold: float | None = None) -> None:
        at = time.monotonic()
        image = Image.open(io.BytesIO(await page.screenshot())).convert("RGB")
        size = (WIDTH, round(image.height * WIDTH / image.width))
        frames.append(Frame(image.resize(size, Image.Resampling.LANCZOS), at, hold))

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        page = await browser.new_page(viewport=VIEW, color_scheme="light", locale="en-GB")
        await page.goto(url)
        await page.get_by_role("button", name="Run Alice").wait_for()
        await asyncio.sleep(1)
        await take(page, 1.2)
        await page.get_by_role("button", name="Run Alice").click()
        await page.get_by_label("Paragraphs").fill("120")
        await take(page, 1.2)
        await page.get_by_role("dialog").get_by_role("button", name="Run").click()
        status = page.locator(".execution .status.big")
        while await status.count() == 0 or await status.inner_text() not in {"Completed", "Failed", "Terminated"}:
            await take(page)
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        await take(page, 3)
        await browser.close()
    return frames


def palette(frames: list[Frame]) -> Image.Image:
    chosen = [frames[0], frames[1], frames[len(frames) // 2], frames[-1]]
    tints = [
        tuple(round(part * share + 255 * (1 - share)) for part in colour)
        for colour in ACCENTS
        for share in (1, 0.75, 0.5, 0.25, 0.1)
    ]
    height = frames[0].image.height // 2
    sheet = Image.new("RGB", (WIDTH, height * len(chosen) + 24 * len(tints)))
    for place, frame in enumerate(chosen):
        sheet.paste(frame.image.resize((WIDTH, height)), (0, place * height))
    for place, tint in enumerate(tints):
        top = height * len(chosen) + 24 * place
        sheet.paste(tint, (0, top, WIDTH, top + 24))
    return sheet.quantize(96, dither=Image.Dither.NONE)


def save(frames: list[Frame], path: str) -> None:
    colours = palette(frames)
    images = [frame.image.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    shown = [frame.hold or max(0.04, after.at - frame.at) for frame, after in pairwise(frames)]
    durations = [round(seconds * 1000) for seconds in [*shown, frames[-1].hold or 3]]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True, disposal=1)


if __name__ == "__main__":
    save(asyncio.run(record(sys.argv[1])), sys.argv[2])
