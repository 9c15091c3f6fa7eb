"""A real browser at a real relay; a console error or a CSP violation on a page fails its test."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.harness.cluster import Cluster

DESKTOP: Final = (1280, 800)
PHONE: Final = (390, 844)
TIMEOUT_MS: Final = 60_000
# What a screen reader has no name for, in an ARIA snapshot.
NAMELESS: Final = re.compile(
    r"- (button|link|textbox|searchbox|combobox|checkbox|spinbutton|progressbar|dialog)(?! \")(.*)"
)
# Chromium drops its connections when an interface of the machine comes or goes, as when a container
# starts; the page connects again, and what the browser says of it is not the page's fault.
_NOT_OURS: Final = "net::ERR_NETWORK_CHANGED"
_OPTIONS: Final = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A running Chromium."""
    options = [*_OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=options
        )
        yield running
        await running.close()


@asynccontextmanager
async def page_of(
    running: Browser,
    cluster: Cluster,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
    allowed: str = _NOT_OURS,
) -> AsyncIterator[Page]:
    """A fresh profile's page; when it ends without an error, its console must have been silent, but
    for what has `allowed` in it."""
    complaints: list[str] = []
    context = await running.new_context(
        ignore_https_errors=True,
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        base_url=cluster.url,
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = await context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.on(
        "console",
        lambda said: complaints.append(said.text) if _is_complaint(said, allowed) else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    await context.close()
    assert not complaints, complaints


def _is_complaint(said: ConsoleMessage, allowed: str) -> bool:
    ignored = (_NOT_OURS, allowed)
    return said.type in ("error", "warning") and not any(part in said.text for part in ignored)


async def sign_in(page: Page, cluster: Cluster) -> None:
    """As a person does, by the token in the relay's data folder."""
    await page.goto("/dashboard")
    await page.get_by_label("Admin token").fill((cluster.data / "admin.token").read_text().strip())
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("heading", name="Overview").wait_for()


async def open_page(page: Page, name: str) -> None:
    """By the navigation."""
    await page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
    await page.get_by_role("heading", name=name, level=1).wait_for()
