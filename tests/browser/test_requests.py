"""The requests that are over, in a browser: an outage shows, and its address can be sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import cluster
from tests.harness.real import require_real

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e]


async def test_what_failed_is_found_and_told_by_a_kept_address(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, open_page, page_of, sign_in

    with cluster(tmp_path) as running:
        key = running.create_key("my-app")
        headers = {"Authorization": f"Bearer {key.secret}"}
        for _ in range(2):
            with request(running, "/v1/chat/completions", chat("gone"), headers) as response:
                assert response.status == 404
        async with (
            browser() as chromium,
            page_of(chromium, running, allowed="status of 404") as page,
        ):
            await sign_in(page, running)
            await open_page(page, "Requests")
            await page.get_by_role("button", name="Over").click()
            await page.get_by_role("button", name="Failed").click()
            rows = page.get_by_role("row", name="my-app")
            await rows.first.wait_for()
            assert await rows.count() == 2
            await page.reload()  # the address holds the filter
            await page.get_by_role("button", name="Failed", pressed=True).wait_for()
            await page.get_by_role("button", name="Details of").first.click()
            await page.get_by_role("definition").filter(has_text="404, model_not_found").wait_for()
            await page.get_by_role("button", name="Close").click()
            await page.get_by_label("Only this key").fill("my-ap")
            await page.get_by_label("Only this key").press("Enter")
            await page.get_by_text("did you mean 'my-app'").wait_for()
