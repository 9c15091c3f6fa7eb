"""Two relays in the browser: what runs at the other one is seen, explained and ended here."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import ApiKey, Cluster
from tests.harness.counting_upstream import MODEL, counting_upstream
from tests.harness.postgres import PostgresServer
from tests.harness.processes import wait_until
from tests.harness.real import require_real
from tests.harness.relays import is_good, relays

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(300)]


def run_for_long(relay: Cluster, key: ApiKey, told: list[str], begun: threading.Event) -> None:
    headers = {"Authorization": f"Bearer {key.secret}"}
    body = chat(MODEL, stream=True, max_tokens=100_000)
    with request(relay, "/v1/chat/completions", body, headers) as answer:
        for event in events(answer):
            begun.set()
            told[:] = [event]


async def test_what_runs_at_another_relay_is_seen_and_ended_here(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, open_page, page_of, sign_in

    with (
        counting_upstream() as upstream,
        PostgresServer() as server,
        relays(tmp_path, server.create_database("fleet"), 2) as (here, there),
    ):
        here.add_node("box", upstream.url)
        key = here.create_key("app")
        wait_until(partial(is_good, there, key.secret), "the key or the node is not known")
        told: list[str] = []
        begun = threading.Event()
        caller = threading.Thread(target=run_for_long, args=(there, key, told, begun))
        caller.start()
        assert begun.wait(30)
        names = {row["this"]: row["name"] for row in here.admin("get", "/relays")["data"]}
        async with browser() as chromium, page_of(chromium, here) as page:
            await sign_in(page, here)
            await open_page(page, "Requests")
            row = page.get_by_role("row", name=f"box by {names[False]}")
            await row.get_by_role("button", name="Why").click()
            story = page.get_by_role("dialog")
            await story.get_by_text(names[False], exact=True).wait_for()
            await page.keyboard.press("Escape")
            await row.get_by_role("button", name="Cancel").click()
            await row.get_by_role("button", name="End it?").click()
            await page.get_by_text("Nothing runs now").wait_for()

            await open_page(page, "Settings")
            other = page.get_by_role("row", name=names[False])
            await other.get_by_role("button", name="Drain").click()
            await other.get_by_role("button", name="Send callers elsewhere?").click()
            await other.get_by_text("drained", exact=True).wait_for()
            await page.screenshot(path=tmp_path / "relays.png", full_page=True)
        caller.join(30)
        assert "ended by the relay's admin" in told[0]
        wait_until(lambda: there.get("/readyz") == 503, "it is not drained")
