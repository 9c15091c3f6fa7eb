"""Every page while the relay restarts, and when the network is silent: what is shown is marked with
its time, and comes back by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.harness.cluster import cluster
from tests.harness.keyed_server import keyed_server
from tests.harness.real import require_real

if TYPE_CHECKING:
    from playwright.async_api import Route

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(300)]

AWAY: Final = "The relay does not answer: what you see is of"
PAGES: Final = (
    *("", "nodes", "nodes/box", "requests", "requests?over=", "models", "keys", "usage", "try"),
    "settings",
)


async def test_every_page_comes_back_after_a_restart_without_a_reload(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, page_of, sign_in

    with keyed_server("good") as server, cluster(tmp_path) as running:
        await asyncio.to_thread(running.add_node, "box", server.url, upstream_key="good")
        running.create_key("my-app")
        async with (
            browser() as chromium,
            page_of(chromium, running, allowed="Failed to load resource") as first,
        ):
            await sign_in(first, running)
            pages = {}
            for path in PAGES:
                pages[path] = await first.context.new_page()
                await pages[path].goto(f"/dashboard/{path}")
                await pages[path].get_by_role("main").wait_for()
            running.relay.stop()
            for page in pages.values():
                await page.get_by_text(AWAY).wait_for()
            running.start_relay_again()
            running.create_key("made-later")
            for path, page in pages.items():
                await page.get_by_text(AWAY).wait_for(state="detached")
                await page.get_by_role("heading", level=1).wait_for()
                assert await page.get_by_role("heading", name="Sign in to wai").count() == 0, path
                await page.locator("main .problem").first.wait_for(state="detached")
            await pages["keys"].get_by_text("made-later").wait_for()
            await pages["settings"].get_by_role("cell", name="made-later").first.wait_for()
            await pages["nodes"].get_by_role("row", name="box").get_by_text("ready").wait_for()


async def test_a_page_that_is_opened_while_the_relay_starts_signs_nobody_out(
    tmp_path: Path,
) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, page_of, sign_in

    with cluster(tmp_path) as running:
        async with (
            browser() as chromium,
            page_of(chromium, running, allowed="status of 503") as page,
        ):
            await sign_in(page, running)
            away = True

            async def session(route: Route) -> None:
                if away:
                    await route.fulfill(status=503, body="{}")
                else:
                    await route.continue_()

            await page.route("**/dashboard/session", session)
            await page.goto("/dashboard/keys")
            await page.get_by_text("The relay does not answer. Trying again").wait_for()
            away = False
            await page.get_by_role("heading", name="Keys").wait_for()


async def test_a_silent_network_is_noticed_though_no_error_tells_of_it(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, page_of, sign_in

    with cluster(tmp_path) as running:
        async with (
            browser() as chromium,
            page_of(chromium, running, allowed="Failed to load resource") as page,
        ):
            await page.clock.install()
            await sign_in(page, running)
            await page.get_by_role("status", name="live").wait_for()
            running.relay.pause()  # connected, and nothing comes
            await page.clock.run_for(12_000)
            await page.get_by_text(AWAY).wait_for()
            running.relay.resume()
            await page.clock.run_for(12_000)
            await page.get_by_text(AWAY).wait_for(state="detached")
