"""Measure the dashboard's pages in a headless Chromium: frames, and how long a page takes to open.

Frames are what the browser itself reports: gaps between animation frames, tasks of the page's
thread over 50 ms, and long animation frames (those over 50 ms, from the first work for them to
their paint). All of these grow with what else the machine does; so the browser's own trace also
tells the CPU time of each task of the page's thread, which does not.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Browser, Page, async_playwright

_OPENINGS: Final = 5
_SETTLE_S: Final = 2.0
_SIZES: Final = {"desktop": (1280, 800), "phone": (390, 844)}
# The address of each page, below /dashboard/, and what is there once it is filled.
_PAGES: Final = {
    "Overview": ("", ".strip li"),
    "Nodes": ("nodes", "tbody tr"),
    "A node": ("nodes/bench-7", ".charts svg path"),
    "Requests": ("requests", "tbody tr"),
    "Requests that are over": ("requests?over=", "tbody tr"),
    "Models": ("models", ".card"),
    "Keys": ("keys", "tbody tr"),
    "Usage": ("usage", "tbody tr"),
    "Try it": ("try", ".chat"),
    "Settings": ("settings", "tbody tr"),
}
_RECORDER: Final = """
window.frames_ms = []; window.tasks_ms = []; window.long_frames_ms = [];
let last = 0;
const next = (now) => {
  if (last) window.frames_ms.push(now - last);
  last = now;
  requestAnimationFrame(next);
};
requestAnimationFrame(next);
const observe = (type, into) => new PerformanceObserver((list) => {
  for (const one of list.getEntries()) into.push(one.duration);
}).observe({ type });
observe("longtask", window.tasks_ms);
observe("long-animation-frame", window.long_frames_ms);
"""
_TAKE: Final = (
    "() => [frames_ms.splice(0), tasks_ms.splice(0), long_frames_ms.splice(0),"
    " document.querySelectorAll('*').length]"
)
# Returns how long after the navigation's start the page that is being loaded is filled.
_FILLED: Final = """async (there) => {
  await new Promise((done) => {
    const look = () => document.querySelector("main " + there)
      ? requestAnimationFrame(() => setTimeout(done)) : requestAnimationFrame(look);
    look();
  });
  return performance.now();
}"""
# Goes to another page as the links do, and returns after the frame in which it is filled.
_OPEN: Final = """async ([path, there]) => {
  history.pushState(null, "", "/dashboard/" + path);
  const begun = performance.now();
  dispatchEvent(new PopStateEvent("popstate"));
  await new Promise((done) => {
    const look = () => document.querySelector("main " + there)
      ? requestAnimationFrame(() => setTimeout(done)) : requestAnimationFrame(look);
    look();
  });
  return performance.now() - begun;
}"""
_LEAVE: Final = """async () => {
  history.pushState(null, "", "/dashboard/try");
  dispatchEvent(new PopStateEvent("popstate"));
  await new Promise((done) => setTimeout(done, 300));
}"""


async def measure_pages(
    url: str, token: str, seconds: float, screens: Path | None
) -> dict[str, Any]:
    """Return the figures of each page, in ms, at two sizes of the window.

    `screens`: a folder for a picture of each page.
    """
    figures: dict[str, Any] = {}
    options = ["--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=options
        )
        for size, (width, height) in _SIZES.items():
            context = await browser.new_context(
                ignore_https_errors=True,
                base_url=url,
                viewport={"width": width, "height": height},
                color_scheme="light" if size == "desktop" else "dark",
            )
            await context.add_init_script(_RECORDER)
            page = await context.new_page()
            await _sign_in(page, token)
            for name, (path, there) in _PAGES.items():
                figures[f"{name}, {size}"] = await _measure(browser, page, path, there, seconds)
                if screens is not None:
                    await page.screenshot(path=screens / f"{name.replace(' ', '-')}-{size}.png")
            await context.close()
        await browser.close()
    return figures


async def _sign_in(page: Page, token: str) -> None:
    page.set_default_timeout(60_000)
    await page.goto("/dashboard")
    await page.get_by_label("Admin token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("heading", name="Overview").wait_for()


async def _measure(
    browser: Browser, page: Page, path: str, there: str, seconds: float
) -> dict[str, Any]:
    loaded, opened = [], []
    for _ in range(_OPENINGS):
        await page.goto(f"/dashboard/{path}", wait_until="commit")
        loaded.append(await page.evaluate(_FILLED, there))
    await asyncio.sleep(_SETTLE_S)
    await page.evaluate(_TAKE)
    await browser.start_tracing(page=page, categories=["toplevel"])
    for _ in range(_OPENINGS):
        await page.evaluate(_LEAVE)
        opened.append(await page.evaluate(_OPEN, [path, there]))
    await asyncio.sleep(_SETTLE_S)
    frames, tasks, long_frames, _ = await page.evaluate(_TAKE)
    opening_cpu_ms = longest_task_cpu_ms(await browser.stop_tracing())
    figures: dict[str, Any] = {
        "loads_ms": round(statistics.median(loaded), 1),
        "opens_ms": round(statistics.median(opened), 1),
        "opens_longest_ms": round(max(opened), 1),
        "opening_longest_frame_ms": round(max(*frames, *long_frames), 1),
        "opening_longest_task_cpu_ms": opening_cpu_ms,
        "opening_longest_task_ms": round(max(tasks, default=0.0), 1),
    }
    await browser.start_tracing(page=page, categories=["toplevel"])
    await asyncio.sleep(seconds)
    frames, tasks, long_frames, elements = await page.evaluate(_TAKE)
    cpu_ms = longest_task_cpu_ms(await browser.stop_tracing())
    return figures | {
        "longest_frame_ms": round(max(*frames, *long_frames), 1),
        "longest_task_cpu_ms": cpu_ms,
        "longest_task_ms": round(max(tasks, default=0.0), 1),
        "frames": len(frames),
        "elements": elements,
    }


def longest_task_cpu_ms(trace: bytes) -> float:
    """Return the CPU time of the longest task of any page's main thread in a Chromium's trace."""
    events = json.loads(trace)["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    longest_us = max(
        (
            event.get("tdur", 0)
            for event in events
            if event.get("ph") == "X" and (event["pid"], event["tid"]) in threads
        ),
        default=0,
    )
    return round(longest_us / 1000, 1)
