"""What is wrong is on the Overview page by itself, with what to do, and goes when it is mended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.cluster import cluster
from tests.harness.keyed_server import keyed_server
from tests.harness.real import require_real

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e]


async def test_a_problem_comes_and_goes_on_a_page_that_nobody_touches(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, page_of, sign_in

    with keyed_server("good") as server, cluster(tmp_path) as running:
        await asyncio.to_thread(running.add_node, "box", server.url, upstream_key="good")
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)
            problems = page.get_by_role("region", name="Problems")
            await page.get_by_text("box", exact=True).first.wait_for()
            assert await problems.count() == 0
            server.key = "changed"
            await problems.get_by_text("is not used").wait_for()
            await problems.get_by_text("the address and the key that the node has").wait_for()
            await problems.get_by_text("· for").wait_for()
            server.key = "good"
            await problems.wait_for(state="detached")
