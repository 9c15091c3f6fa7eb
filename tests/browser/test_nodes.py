"""Fifty nodes in a browser: found, sorted, looked at by a kept address; the page stays small."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from bench.dashboard import AnsweringNode
from bench.nodes import make_invites
from tests.harness.cluster import Cluster, cluster
from tests.harness.real import require_real

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e]

NODES: Final = 50
SLOTS: Final = 11
LONG: Final = "gpu-box-in-the-attic-behind-the-old-wardrobe-number-49"
MOST_ELEMENTS: Final = 1500  # of the page with all fifty; each costs a phone time in every frame


@asynccontextmanager
async def fifty_nodes(running: Cluster) -> AsyncIterator[list[AnsweringNode]]:
    """Nodes that speak the real session, and have told a status; one has a long name."""
    nodes = [AnsweringNode(number, SLOTS) for number in range(NODES)]
    nodes[-1].name = LONG
    names = [node.name for node in nodes]
    invites = await asyncio.to_thread(lambda: list(make_invites(running.data, names)))
    for node, text in zip(nodes, invites, strict=True):
        await node.join(text)
        node.report()
    try:
        yield nodes
    finally:
        for node in nodes:
            node.close()


async def test_one_of_fifty_nodes_is_found_and_its_address_can_be_kept(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, open_page, page_of, sign_in

    with cluster(tmp_path) as running:
        async with (
            fifty_nodes(running) as nodes,
            browser() as chromium,
            page_of(chromium, running) as page,
        ):
            await sign_in(page, running)
            await open_page(page, "Nodes")
            rows = page.locator("tbody tr")
            await page.get_by_role("row", name="bench-48").wait_for()
            assert await rows.count() == NODES
            assert await page.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS

            nodes[7].close()
            away = page.get_by_role("row", name="bench-7")
            await away.get_by_text(re.compile("reconnecting|offline")).wait_for()
            await page.get_by_label("Filter nodes").fill("ready BENCH")
            await away.wait_for(state="detached")
            await page.get_by_role("button", name="Name", exact=False).click()
            await rows.nth(1).get_by_role("link", name="bench-48").wait_for()
            await page.reload()  # the address holds filter and order
            await rows.nth(1).get_by_role("link", name="bench-48").wait_for()
            assert await page.get_by_label("Filter nodes").input_value() == "ready BENCH"

            await page.get_by_label("Filter nodes").fill("wardrobe")
            link = rows.first.get_by_role("link")
            assert await link.get_attribute("title") == LONG
            shown = await link.inner_text()
            assert len(shown) < len(LONG)
            assert shown.endswith("number-49")
            await link.click()
            await _look_at(page)
            await page.reload()
            await _look_at(page)
            await page.go_back()
            await page.get_by_label("Filter nodes").wait_for()


async def _look_at(page: Page) -> None:
    """The page about the node with the long name."""
    await page.get_by_role("heading", level=1).filter(has_text="number-49").wait_for()
    assert page.url.endswith(f"/dashboard/nodes/{LONG}")
    await page.get_by_role("cell", name="bench-model").wait_for()
    for chart in ("Tokens per second", "Slots", "Use of the machine", "Reconnections"):
        await page.get_by_role("img", name=f"{chart} over the last hour").wait_for()


async def test_fifty_nodes_fit_a_phone_and_each_can_be_drained_on_its_page(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import NAMELESS, PHONE, browser, open_page, page_of, sign_in

    with cluster(tmp_path) as running:
        async with (
            fifty_nodes(running),
            browser() as chromium,
            page_of(chromium, running, size=PHONE, scheme="dark") as page,
        ):
            await sign_in(page, running)
            await open_page(page, "Nodes")
            await page.get_by_label("Sort by").select_option("By slots")
            assert not NAMELESS.findall(await page.locator("body").aria_snapshot())
            await page.get_by_role("link", name="bench-3", exact=True).click()
            await page.get_by_role("img", name="Slots over the last hour").wait_for()
            assert not NAMELESS.findall(await page.locator("body").aria_snapshot())
            await page.get_by_role("button", name="Drain bench-3").click()
            await page.get_by_role("button", name="Give requests again to bench-3").wait_for()
            wide = "document.documentElement.scrollWidth"
            assert await page.evaluate(wide) <= PHONE[0]
            await page.get_by_role("main").get_by_role("link", name="Nodes").click()
            await page.get_by_label("Filter nodes").fill("draining")
            await page.get_by_role("row", name="bench-3").wait_for()
            assert await page.evaluate(wide) <= PHONE[0]
