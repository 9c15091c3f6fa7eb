"""Each page by keyboard, by screen reader and on a phone: names, headings, focus, no overflow."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.harness.cluster import cluster
from tests.harness.real import require_real

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
_OVERFLOW: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


async def test_each_page_can_be_heard_typed_and_fits_a_phone(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import NAMELESS, PHONE, browser, open_page, page_of, sign_in
    from .screenshots import PAGES

    with cluster(tmp_path) as running:
        running.create_key("my-app")
        async with browser() as chromium, page_of(chromium, running, size=PHONE) as page:
            await sign_in(page, running)
            for title in (title for name, title in PAGES.items() if name != "node"):
                await open_page(page, title)
                heard = await page.locator("body").aria_snapshot()
                assert not NAMELESS.findall(heard), title
                assert await page.get_by_role("heading", level=1).count() == 1
                assert await page.evaluate(_OVERFLOW) <= 0, title
                if title != "Overview":  # where the link led that was there already
                    await page.locator("main:focus").wait_for()

            await open_page(page, "Keys")
            limits = page.get_by_role("button", name="Limits of my-app")
            await limits.focus()
            await page.keyboard.press("Enter")
            dialog = page.get_by_role("dialog", name="Limits of my-app")
            await dialog.wait_for()
            assert not NAMELESS.findall(await dialog.aria_snapshot())
            await page.keyboard.press("Escape")
            await dialog.wait_for(state="detached")
            await page.locator("button:focus", has_text="Limits").wait_for()
