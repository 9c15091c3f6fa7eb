"""How a sign-in ends, and what a slip of the hand does not do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.real import require_real

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e]


@asynccontextmanager
async def _signed_in(folder: Path) -> AsyncIterator[tuple[Cluster, Browser, Page]]:
    require_real("chromium", "dashboard")
    from .browser import browser, page_of, sign_in

    with cluster(folder) as running:
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)
            yield running, chromium, page


async def test_a_browser_whose_admin_was_revoked_shows_nothing_more(tmp_path: Path) -> None:
    async with _signed_in(tmp_path) as (running, chromium, page):
        from .browser import open_page, page_of

        await open_page(page, "Settings")
        await page.get_by_label("Name of the new admin").fill("anna")
        await page.get_by_role("button", name="Add an admin").click()
        token = await page.get_by_label("admin token, shown this once", exact=True).inner_text()
        async with page_of(chromium, running) as hers:
            await hers.goto("/dashboard")
            await hers.get_by_label("Admin token").fill(token)
            await hers.get_by_role("button", name="Sign in").click()
            await hers.get_by_role("heading", name="Overview").wait_for()
            await page.get_by_role("button", name="Revoke anna").click()
            await page.get_by_text("Revoke the token?").click()
            await hers.get_by_role("heading", name="Sign in to wai").wait_for()
        log = page.get_by_role("row", name="admin.revoke")
        await log.get_by_role("cell", name="anna").wait_for()


async def test_a_double_click_revokes_nothing(tmp_path: Path) -> None:
    async with _signed_in(tmp_path) as (running, _, page):
        from .browser import open_page

        running.create_key("my-app")
        await open_page(page, "Keys")
        await page.get_by_role("button", name="Revoke my-app").dblclick()
        await page.get_by_role("button", name="Revoke for good? my-app").wait_for()
        await page.get_by_role("cell", name="my-app", exact=True).wait_for()


async def test_who_could_not_be_signed_out_is_told_so(tmp_path: Path) -> None:
    async with _signed_in(tmp_path) as (_, _, page):
        # Not a relay that is away: what a browser says of that would count against the page.
        away = "new Response('{}', {status: 503})"
        await page.evaluate(f"window.fetch = async () => {away}")
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_text("You are still signed in.").wait_for()
        await page.get_by_role("heading", name="Overview").wait_for()


async def test_a_link_opens_the_dashboard_once_and_leaves_the_address_bar(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, page_of

    with cluster(tmp_path) as running:
        link = wai("sign-in", "link", "--data", running.data).splitlines()[0]
        path = "/dashboard/" + link.partition("/dashboard/")[2]
        async with browser() as chromium:
            async with page_of(chromium, running) as page:
                await page.goto(path)
                await page.get_by_role("heading", name="Overview").wait_for()
                assert "#" not in page.url
            async with page_of(chromium, running, allowed="status of 401") as page:
                await page.goto(path)
                await page.get_by_text("used already or has expired").wait_for()
                await page.get_by_label("Admin token").wait_for()
